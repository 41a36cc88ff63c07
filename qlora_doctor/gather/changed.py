"""Which lines of a file are not as they were at a commit, asked of git."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
from collections.abc import Collection, Sequence

from qlora_doctor.errors import UsageError
from qlora_doctor.source import Site

_HUNK = re.compile(rb"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", re.MULTILINE)
# What a repository's own settings could make git run is switched off: a check runs nothing of what it judges.
_SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "diff.external=", "--no-optional-locks")
TIMEOUT = 60


class Changed:
    """The lines that differ from where `base` and HEAD parted, file by file.

    Raises:
        UsageError: git is not there, the folder is in no repository, or `base` is no commit of it.
    """

    def __init__(self, base: str, folder: str) -> None:
        self.folder = folder
        top = _git(["rev-parse", "--show-toplevel"], folder)
        if top is None:
            raise UsageError(f"--diff {base}: {folder} is in no git repository, so it has no changed lines")
        commit = (
            None if base.startswith("-") else _git(["rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"], folder)
        )
        if commit is None:
            raise UsageError(
                f"--diff {base}: git knows no such commit here; name a branch, a tag or a commit (in a shallow clone fetch it first)"
            )
        self.base = commit.decode().strip()
        head = _git(["rev-parse", "--verify", "--quiet", "HEAD"], folder)
        parted = _git(["merge-base", self.base, "HEAD"], folder) if head else None
        if parted:
            self.base = parted.decode().strip()

    def touches(self, site: Site | None) -> bool:
        """Whether a line of this place is changed. The environment has no lines."""
        if site is None:
            return False
        if site.cell is None:
            changed = self.lines(site.path)
        else:
            cells = self.cells(site.path)
            changed = None if cells is None else cells[site.cell] if site.cell < len(cells) else ()
        return changed is None or any(n in changed for n in range(site.line, max(site.line, site.end_line) + 1))

    def lines(self, path: str) -> Collection[int] | None:
        """The changed lines of a file, from 1; None for a file that the base has not, where every line is new."""
        full = os.path.abspath(path)
        folder, name = os.path.dirname(full), os.path.basename(full)
        if not self._was(folder, name):
            return None
        out = _git(
            [
                "diff",
                "--unified=0",
                "--no-color",
                "--no-ext-diff",
                "--no-textconv",
                "--no-renames",
                self.base,
                "--",
                f":(literal){name}",
            ],
            folder,
        )
        found: set[int] = set()
        for start, count in _HUNK.findall(out or b""):
            first, number = int(start), int(count) if count else 1
            found.update(range(first, first + number))
        return found

    def cells(self, path: str) -> Sequence[Collection[int]] | None:
        """For a notebook: the changed lines of each cell's source; None where the base has no such notebook."""
        full = os.path.abspath(path)
        folder, name = os.path.dirname(full), os.path.basename(full)
        if not self._was(folder, name):
            return None
        before = _sources(_git(["show", f"{self.base}:./{name}"], folder) or b"")
        with open(full, "rb") as file:
            after = _sources(file.read())
        known = {"".join(cell) for cell in before}
        old = [line for cell in before for line in cell]
        return [set() if "".join(cell) in known else _new_lines(old, cell) for cell in after]

    def _was(self, folder: str, name: str) -> bool:
        return _git(["cat-file", "-e", f"{self.base}:./{name}"], folder) is not None


def _new_lines(old: Sequence[str], new: Sequence[str]) -> set[int]:
    same = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    kept = {line for block in same for line in range(block.b, block.b + block.size)}
    return {line + 1 for line in range(len(new)) if line not in kept}


def _sources(data: bytes) -> list[list[str]]:
    """Each cell's source as lines; none where the notebook cannot be read."""
    try:
        cells = json.loads(data)["cells"]
        texts = ["".join(c["source"]) if isinstance(c["source"], list) else str(c["source"]) for c in cells]
    except (ValueError, KeyError, TypeError):
        return []
    return [text.split("\n") for text in texts]


def _git(arguments: Sequence[str], folder: str) -> bytes | None:
    """What git prints; None where it fails. Raises UsageError where there is no git, or it hangs."""
    environ = {k: v for k, v in os.environ.items() if k not in ("GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS")}
    try:
        done = subprocess.run(
            ["git", *_SAFE, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            env={**environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise UsageError("--diff asks git, which is not installed here") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"--diff: git did not answer within {TIMEOUT} seconds") from None
    return done.stdout if done.returncode == 0 else None
