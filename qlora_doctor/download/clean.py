"""What could be deleted to make room, with the sizes: only what the user names is, and never what a run goes on from."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlora_doctor.errors import UsageError

IN_USE = 600.0
DEPTH = 4
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")
_OPTIMIZER = re.compile(r"(optimizer\.(pt|bin)|optimizer_?\d*|global_step\d+|pytorch_model_fsdp_\d+)\Z")
_PASSED_BY = (".git", "node_modules", "__pycache__", "site-packages", ".venv", "venv")


@dataclass(frozen=True, slots=True)
class Deletable:
    """One thing on disk. `name` is what the user calls it, `paths` what goes with it, `size` the bytes that are freed.

    `kept` says why it is never deleted; "" where it may be.
    """

    name: str
    what: str
    paths: tuple[str, ...]
    size: int
    kept: str = ""


def deletable(cache: str, own: str, project: str) -> tuple[Deletable, ...]:
    """What lies in the Hub's cache folder, in the doctor's own, and in a project; the largest first."""
    found = (*_revisions(cache), *_incomplete(cache), *_converted(own), *_checkpoints(project))
    return tuple(sorted(found, key=lambda d: (-d.size, d.name)))


def delete(found: Sequence[Deletable], names: Sequence[str]) -> tuple[Deletable, ...]:
    """Deletes what has these names, and nothing else; returns it.

    Raises:
        UsageError: a name that nothing has, or of something that is kept; nothing was deleted then.
    """
    by_name = {d.name: d for d in found}
    for name in names:
        if name not in by_name:
            import difflib

            near = difflib.get_close_matches(name, by_name, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--delete {name}: there is no such thing in the list{hint}")
        if by_name[name].kept:
            raise UsageError(f"--delete {name}: it is kept, because {by_name[name].kept}")
    chosen = tuple(by_name[name] for name in dict.fromkeys(names))
    for one in chosen:
        for path in one.paths:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)
    return chosen


def _revisions(cache: str) -> Iterator[Deletable]:
    """Each revision of each model in the cache, with the bytes that no other revision has."""
    for folder, name in _repositories(cache):
        snapshots = os.path.join(folder, "snapshots")
        commits = {c: _targets(os.path.join(snapshots, c)) for c in _names(snapshots)}
        refs = {r: _ref(os.path.join(folder, "refs", r)) for r in _names(os.path.join(folder, "refs"))}
        for commit, files in commits.items():
            others = {p for c, paths in commits.items() if c != commit for p in paths}
            own = [p for p in files if p not in others]
            branches = [r for r, c in refs.items() if c == commit]
            paths = (
                *(os.path.join(folder, "refs", r) for r in branches),
                os.path.join(snapshots, commit),
                *(p for p in own if os.path.dirname(p) == os.path.realpath(os.path.join(folder, "blobs"))),
            )
            label = f" ({', '.join(branches)})" if branches else " (no branch names it)"
            yield Deletable(f"model:{name}@{commit[:8]}", f"cached revision{label}", paths, sum(map(_size, own)))


def _incomplete(cache: str) -> Iterator[Deletable]:
    for folder, name in _repositories(cache):
        blobs = os.path.join(folder, "blobs")
        paths = tuple(os.path.join(blobs, n) for n in _names(blobs) if n.endswith(".incomplete"))
        if paths:
            young = any(time.time() - _changed(p) < IN_USE for p in paths)
            kept = "it was written to within the last ten minutes" if young else ""
            yield Deletable(f"incomplete:{name}", "downloads that were broken off", paths, sum(map(_size, paths)), kept)


def _converted(own: str) -> Iterator[Deletable]:
    root = os.path.join(own, "converted")
    for name in _names(root):
        path = os.path.join(root, name)
        yield Deletable(
            f"converted:{name}", "LLaVA converted for transformers; made anew when needed", (path,), _tree(path)
        )


def _checkpoints(project: str) -> Iterator[Deletable]:
    """The trainer's checkpoints in a project; of each run the last that it can go on from is kept."""
    runs: dict[str, list[tuple[int, str]]] = {}
    base = project.rstrip(os.sep).count(os.sep)
    for folder, names, _ in os.walk(project):
        deep = folder.count(os.sep) - base >= DEPTH
        found = [(int(m[1]), os.path.join(folder, n)) for n in names if (m := _CHECKPOINT.match(n))]
        found = [
            (step, p)
            for step, p in found
            if not os.path.islink(p) and os.path.exists(os.path.join(p, "trainer_state.json"))
        ]
        if found:
            runs[folder] = sorted(found)
        names[:] = [] if deep else [n for n in names if n not in _PASSED_BY and not _CHECKPOINT.match(n)]
    for found in runs.values():
        resumable = [step for step, path in found if any(_OPTIMIZER.match(n) for n in _names(path))]
        last = max(resumable or [step for step, _ in found])
        for step, path in found:
            kept = "it is the last checkpoint that its run can go on from" if step == last else ""
            name = f"checkpoint:{os.path.relpath(path, project).replace(os.sep, '/')}"
            yield Deletable(name, f"checkpoint of step {step}", (path,), _tree(path), kept)


def _repositories(cache: str) -> Iterator[tuple[str, str]]:
    for entry in _names(cache):
        if entry.startswith("models--"):
            yield os.path.join(cache, entry), entry.removeprefix("models--").replace("--", "/")


def _targets(folder: str) -> list[str]:
    """The real files behind a snapshot, each once."""
    found = {os.path.realpath(os.path.join(at, n)): None for at, _, names in os.walk(folder) for n in names}
    return [p for p in found if os.path.exists(p)]


def _ref(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return ""


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _tree(path: str) -> int:
    return sum(_size(os.path.join(at, n)) for at, _, names in os.walk(path) for n in names)
