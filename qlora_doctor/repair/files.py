"""Writing a file so that it is either the old one or the new one, never something between."""

from __future__ import annotations

import os
import stat

from qlora_doctor.errors import RepairError
from qlora_doctor.repair import hooks


def read(path: str) -> bytes | None:
    """The bytes of a file; None where there is none.

    Raises:
        RepairError: it is there and cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RepairError(f"{path} cannot be read: {error.strerror or error}") from None


def refuse_unwritable(path: str) -> None:
    """Raises RepairError where a file, or its folder, may not be written."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.exists(target) and not (os.access(target, os.W_OK) and os.stat(target).st_mode & 0o222):
        raise RepairError(f"{path} is read-only; make it writable (chmod u+w) and run the command again")
    existing = folder
    while not os.path.isdir(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    if not (os.access(existing, os.W_OK) and os.stat(existing).st_mode & 0o222):
        raise RepairError(f"the folder {existing} is read-only; make it writable (chmod u+w) and run the command again")


def temporary_of(path: str, tag: str) -> str:
    """The name of the file beside `path` (its target, where it is a link) that becomes it."""
    target = os.path.realpath(path)
    return os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{tag}.tmp")


def write(path: str, data: bytes | None, tag: str, moment: str = "file") -> None:
    """Puts `data` in the place of a file, with the old file's mode; None takes the file away.

    A link stays a link: its target is replaced. `tag` names the temporary file.

    Raises:
        RepairError: it cannot be written (full, read-only, gone); the old file is then untouched.
    """
    target = os.path.realpath(path)
    temporary = temporary_of(path, tag)
    try:
        if data is None:
            if os.path.exists(target):
                os.unlink(target)
            hooks.at(f"{moment}-replaced")
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
        with open(temporary, "wb") as file:
            file.write(data)
            hooks.at(f"{moment}-temporary")
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
            _keep_owner(temporary, target)
        hooks.at(f"{moment}-written")
        os.replace(temporary, target)
        sync_folder(os.path.dirname(target))
        hooks.at(f"{moment}-replaced")
    except OSError as error:
        remove_quietly(temporary)
        raise RepairError(f"{path} could not be written: {error.strerror or error}; it is as it was") from None


def _keep_owner(temporary: str, target: str) -> None:
    if hasattr(os, "chown"):
        was = os.stat(target)
        if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
            try:
                os.chown(temporary, was.st_uid, was.st_gid)
            except PermissionError:
                # Only root may give files away; the new file then belongs to the one who runs this, as an editor's would.
                return


def remove_quietly(path: str) -> None:
    """Takes a temporary file away where it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def sync_folder(folder: str) -> None:
    """Makes a rename in `folder` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
