"""Where the doctor keeps what it needs for undo: in the project, and for packages in the user's state folder."""

from __future__ import annotations

import hashlib
import os
import sys

from qlora_doctor.errors import RepairError

OWN = ".qlora-doctor"


def project_of(start: str) -> str:
    """The nearest folder at or above `start` with a pyproject.toml or .git, else `start`."""
    folder = origin = os.path.abspath(start)
    while True:
        if any(os.path.exists(os.path.join(folder, name)) for name in ("pyproject.toml", ".git")):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return origin
        folder = parent


def own_folder(project: str) -> str:
    """`<project>/.qlora-doctor`, made if need be and kept out of git.

    Raises:
        RepairError: it cannot be made.
    """
    folder = os.path.join(project, OWN)
    try:
        os.makedirs(os.path.join(folder, "journal"), exist_ok=True)
        ignore = os.path.join(folder, ".gitignore")
        if not os.path.exists(ignore):
            with open(ignore, "w", encoding="utf-8") as file:
                file.write("*\n")
    except OSError as error:
        raise RepairError(
            f"{folder} cannot be written ({error.strerror or error}), so nothing could be undone; nothing was changed. "
            "Make the project folder writable, or run from a folder that is"
        ) from None
    return folder


def state_folder(prefix: str) -> str:
    """The folder for the lock of one interpreter's packages, in the user's state directory."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Application Support")
    else:
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    key = hashlib.sha256(os.path.realpath(prefix).encode()).hexdigest()[:16]
    folder = os.path.join(base, "qlora-doctor", key)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise RepairError(f"{folder} cannot be made ({error.strerror or error}); nothing was changed") from None
    return folder
