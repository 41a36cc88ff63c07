"""What a path on the command line is: a script, a notebook, settings, data, a model, an adapter, a folder of scripts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_doctor.errors import UsageError
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Call, Script, Value

Kind = Literal["script", "notebook", "config", "data", "model", "adapter", "checkpoint", "folder"]

MAX_SCRIPTS = 200
_SKIPPED = frozenset(
    {
        ".venv", "venv", "env", "node_modules", ".git", "__pycache__", "site-packages", "build", "dist", ".tox", ".nox",
        ".mypy_cache", ".ipynb_checkpoints", ".qlora-doctor", ".eggs", "wandb", ".hg", ".svn", ".ruff_cache",
    }
)  # fmt: skip
_WORDS = (b"transformers", b"peft", b"bitsandbytes", b"trl", b"unsloth", b"modelscope", b"accelerate", b"qlora_core")
_HEAD = 400_000
_DATA = (".jsonl", ".ndjson", ".csv", ".parquet", ".arrow", ".tsv")
_BINARY_DATA = (".parquet", ".arrow")
_ROWS_READ = "its rows were judged; `qlora-core data FILE --model MODEL` judges their tokens too"
_ROWS_NOT_READ = "a Parquet or Arrow file; `qlora-core data` reads it"
_CONFIG = (".json", ".yaml", ".yml", ".toml")


@dataclass(frozen=True, slots=True)
class Target:
    """One path and what it is. `scripts` are the files to read; `note` says what was left out, for the user."""

    path: str
    kind: Kind
    scripts: tuple[str, ...] = ()
    note: str = ""


def read_targets(paths: Sequence[str]) -> list[tuple[Script, Requests]]:
    """Everything that can be read at these paths.

    A folder with a model or an adapter gives a load of which nothing but the name is known; data and checkpoints give
    no requests. The rows of data are facts (`collect`), and a `note` says what was read.

    Raises:
        UsageError: a path does not exist, or holds nothing that can be judged.
    """
    found: dict[str, tuple[Script, Requests]] = {}
    for path in paths:
        target = find_target(path)
        for name in target.scripts:
            if name not in found:
                found[name] = _read(name)
        if not target.scripts:
            found.setdefault(target.path, _without_source(target))
        elif target.note:
            script, requests = found[target.scripts[-1]]
            found[target.scripts[-1]] = dataclasses.replace(script, note=target.note), requests
    return list(found.values())


def _without_source(target: Target) -> tuple[Script, Requests]:
    script = Script(target.path, kind=target.kind, note=target.note)
    name = target.path if target.kind == "model" else ""
    if target.kind == "adapter":
        name = _base_of(Path(target.path) / "adapter_config.json")
    if not name:
        return script, Requests()
    arguments: dict[str, Value] = {"pretrained_model_name_or_path": name}
    call = Call(".from_pretrained", arguments, open="nothing here says how it will be loaded")
    return script, Requests(loads=(LoadRequest(call, source="command line"),))


def _base_of(path: Path) -> str:
    """The model that an adapter belongs to; "" where its configuration does not say."""
    import json

    try:
        data = json.loads(path.read_bytes()) if path.stat().st_size < _HEAD else None
    except (OSError, ValueError, RecursionError):
        return ""
    name = data.get("base_model_name_or_path") if isinstance(data, dict) else None
    return name if isinstance(name, str) else ""


def find_target(path: str) -> Target:
    """What a path is.

    Raises:
        UsageError: it does not exist, is of no kind that can be judged, or is a folder without scripts.
    """
    if not path.strip():
        raise UsageError("an empty path; a shell variable in the command may be unset. Name a script or a folder")
    here = Path(path)
    try:
        if here.is_dir():
            return _folder(here)
        if not here.exists():
            raise UsageError(f"{path}: there is no such file or folder{_nearest(here)}")
    except OSError as error:
        raise UsageError(f"{path}: it cannot be looked at: {error.strerror or error}") from None
    if not here.is_file():
        raise UsageError(f"{path}: a pipe or a device; name a file, which can be read more than once")
    suffix = here.suffix.lower()
    if suffix == ".ipynb":
        return Target(path, "notebook", (path,))
    if suffix in _DATA or (suffix in (".json", ".md", ".markdown") and _holds_rows(here, suffix)):
        return Target(path, "data", note=_ROWS_NOT_READ if suffix in _BINARY_DATA else _ROWS_READ)
    if suffix in _CONFIG:
        return Target(path, "config", (path,))
    if suffix in (".py", ".pyw") or _has_python_line(here):
        return Target(path, "script", (path,))
    raise UsageError(
        f"{path}: nothing that can be judged; name a .py script, an .ipynb notebook, a .json, .yaml or .toml file of "
        "settings, or a folder"
    )


def _holds_rows(here: Path, suffix: str) -> bool:
    """Whether a .json file is a list, or a Markdown file holds questions and answers; settings are neither."""
    try:
        with here.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if suffix == ".json":
        return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
    from qlora_doctor.gather.data.encodings import BadFile, decode
    from qlora_doctor.gather.data.markdown import is_questions_and_answers

    try:
        return is_questions_and_answers(decode(head).text)
    except BadFile:
        return False


def _read(name: str) -> tuple[Script, Requests]:
    if Path(name).suffix.lower() in _CONFIG:
        from qlora_doctor.gather.config import read_config

        return read_config(name)
    from qlora_doctor.gather.script import read_script

    return read_script(name)


def _folder(here: Path) -> Target:
    path = str(here)
    if (here / "adapter_config.json").is_file():
        return Target(path, "adapter", note="an adapter; what it needs is judged with the model that it belongs to")
    if (here / "trainer_state.json").is_file():
        return Target(path, "checkpoint", note="a checkpoint of a training run")
    scripts, seen, more = _scripts(here)
    if not scripts and (here / "config.json").is_file():
        return Target(path, "model", note="a model folder; pass it as --model to judge it as a 4-bit load")
    if not scripts:
        what = (
            "none of its Python files mentions transformers, peft or bitsandbytes"
            if seen
            else "it holds no Python files"
        )
        raise UsageError(f"{path}: {what}; name a folder with a training script, or the script itself")
    note = f"only the first {MAX_SCRIPTS} scripts of {path} were read; name a smaller folder" if more else ""
    return Target(path, "folder", tuple(scripts), note)


def _scripts(here: Path) -> tuple[list[str], bool, bool]:
    """The scripts in a folder that mention the stack, whether there were others, and whether some were left out."""
    found: list[str] = []
    seen = False
    for name in _python_files(here):
        seen = True
        if not _mentions_stack(name):
            continue
        if len(found) == MAX_SCRIPTS:
            return found, True, True
        found.append(name)
    return found, seen, False


def _python_files(here: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(here):
        folders[:] = sorted(
            f for f in folders if f not in _SKIPPED and not f.endswith(".egg-info") and not _is_venv(folder, f)
        )
        for name in sorted(files):
            if name.endswith((".py", ".ipynb")):
                yield os.path.join(folder, name)


def _is_venv(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))


def _mentions_stack(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return True
    return any(word in head for word in _WORDS) or head[:2] in (b"\xff\xfe", b"\xfe\xff")


def _has_python_line(here: Path) -> bool:
    try:
        with here.open("rb") as file:
            first = file.readline(200)
    except OSError:
        return False
    return first.startswith(b"#!") and b"python" in first


def _nearest(here: Path) -> str:
    import difflib

    try:
        names = [p.name for p in here.parent.iterdir()] if here.parent.is_dir() else []
    except OSError:
        return ""
    near = difflib.get_close_matches(here.name, names, 1)
    return f"; did you mean {here.parent / near[0]}?" if near else ""
