"""Settings as text: the words of `--set`, files of settings, and the generated docs/settings.md.

`python -m qlora_core.settings_file` prints that page.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_core.settings import NAMES, Settings, make_settings
from qlora_doctor.errors import UsageError


def parse_word(text: str) -> tuple[str, Any]:
    """`learning_rate=2e-4` as a name and a value: JSON where it is JSON, else the text itself.

    Raises:
        UsageError: no `=` in it, or no such setting.
    """
    name, equals, word = text.partition("=")
    name = name.strip()
    if not equals:
        raise UsageError(f"--set {text}: write it as NAME=VALUE, such as --set learning_rate=1e-4")
    if name not in NAMES:
        make_settings({name: None})
    word = word.strip()
    if word.lower() == "none" and "None" not in str(Settings.__dataclass_fields__[name].type):
        return name, "none"  # a word of its own there: report_to=none
    if word.lower() in ("none", "null", "true", "false"):
        return name, {"none": None, "null": None, "true": True, "false": False}[word.lower()]
    try:
        return name, json.loads(word)
    except ValueError:
        return name, _number(word)


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML, JSON or YAML file; `run.json` of an earlier run is one too.

    Raises:
        UsageError: it cannot be read, is not what its ending says, or holds no table of settings.
    """
    path = Path(path).expanduser()
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error}") from error
    data = _parsed(path, raw)
    if isinstance(data, Mapping) and isinstance(data.get("settings"), Mapping):
        data = {k: v for k, v in data["settings"].items() if k in NAMES}
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise UsageError(f"{path}: expected a table of settings, such as learning_rate = 1e-4")
    return dict(data)


def _parsed(path: Path, raw: str) -> Any:
    suffix = path.suffix.lower()
    try:
        if suffix == ".toml":
            import tomllib

            return tomllib.loads(raw)
        if suffix == ".json":
            return json.loads(raw)
        if suffix in (".yaml", ".yml"):
            import yaml

            return yaml.safe_load(raw)
    except ValueError as error:
        raise UsageError(f"{path}: is not valid {suffix[1:].upper()}: {error}") from error
    except ModuleNotFoundError as error:
        raise UsageError(f"{path}: reading YAML needs the package pyyaml (pip install pyyaml)") from error
    except Exception as error:
        # YAML's errors share no base with ValueError, and yaml may not be imported here.
        if type(error).__module__.partition(".")[0] != "yaml":
            raise
        raise UsageError(f"{path}: is not valid YAML: {error}") from error
    raise UsageError(f"{path}: settings are read from .toml, .json, .yaml or .yml")


def _number(word: str) -> Any:
    # JSON knows neither `.5` nor `2_000`.
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def pages() -> str:
    """docs/settings.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Settings of `qlora-core train`"
    yield ""
    yield "Generated from `qlora_core/settings.py` by `python -m qlora_core.settings_file`; do not edit."
    yield ""
    yield "Each is a keyword of `qlora_core.train(...)`, a key of a `--config` file (TOML, JSON, YAML), and a word of"
    yield "`--set NAME=VALUE`. An unknown name is an error. *chosen* means: the run chooses, and says what and why."
    group = ""
    for one in dataclasses.fields(Settings):
        if one.metadata["group"] != group:
            group = one.metadata["group"]
            yield from ("", f"## {group}", "", "| setting | default | what it is |", "|---|---|---|")
        shown = "*chosen*" if one.default is None else f"`{json.dumps(one.default)}`"
        words = f" One of {', '.join(f'`{w}`' for w in one.metadata['words'])}." if one.metadata["words"] else ""
        yield f"| `{one.name}` | {shown} | {one.metadata['text']}{words} |"


if __name__ == "__main__":
    print(pages(), end="")
