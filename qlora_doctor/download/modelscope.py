"""The same model from ModelScope, through its own library: `modelscope:OWNER/NAME`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from qlora_doctor.download.fetch import Downloaded
from qlora_doctor.download.listing import RemoteFile
from qlora_doctor.download.problem import NotDownloaded, Trouble
from qlora_doctor.download.transfer import wrong_hash
from qlora_doctor.download.wanted import wanted
from qlora_doctor.gather.hub import redact
from qlora_doctor.gather.model_files import leaves

PREFIX = "modelscope:"
BRANCH = "master"


def from_modelscope(
    name: str,
    *,
    revision: str | None = None,
    to: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    code: bool = False,
    offline: bool = False,
) -> Downloaded:
    """Downloads `name` (without `modelscope:`) with the library `modelscope`; its own settings and login hold.

    The library checks hashes itself; where its listing names them, we do so as well.

    Raises:
        NotDownloaded: the library is not installed, or ModelScope does not give the model.
    """
    try:
        api = import_module("modelscope.hub.api").HubApi
        snapshot_download = import_module("modelscope.hub.snapshot_download").snapshot_download
    except ImportError as error:
        raise NotDownloaded(
            f'{PREFIX}{name} needs the library modelscope ({error}): pip install "qlora-doctor[modelscope]", or '
            "pip install modelscope",
            "no client",
        ) from error
    started = time.monotonic()
    place: dict[str, Any] = {"local_dir": os.path.abspath(to)} if to else {}
    # The library prints to stdout, where our own output may be JSON.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if offline:
                folder = snapshot_download(name, revision=revision, local_files_only=True, **place)
                return Downloaded(f"{PREFIX}{name}", folder)
            listed = api().get_model_files(name, revision=revision or BRANCH, recursive=True)
            files = {f.name: f for f in map(_file, listed) if f is not None}
            names = wanted(list(files), include, exclude, code=code)
            folder = snapshot_download(name, revision=revision, allow_patterns=names, **place)
        except Trouble as trouble:
            raise NotDownloaded(f"{PREFIX}{name} cannot be downloaded: {trouble.detail}", trouble.cause) from None
        except Exception as error:  # the library raises errors of its own, of requests, and plain ones
            said = redact(" ".join(str(error).split()))[:300]
            raise NotDownloaded(
                f"{PREFIX}{name} cannot be downloaded: {type(error).__name__}: {said}. Check the name on ModelScope, and "
                "the network",
                "modelscope",
            ) from error
    _verify(name, folder, [files[n] for n in names])
    return Downloaded(
        f"{PREFIX}{name}",
        folder,
        endpoint="modelscope",
        fetched=tuple(names),
        bytes=sum(max(files[n].size, 0) for n in names),
        seconds=round(time.monotonic() - started, 2),
    )


def _file(entry: Any) -> RemoteFile | None:
    name, size, sha = entry.get("Path"), entry.get("Size"), entry.get("Sha256")
    if entry.get("Type") == "tree" or not isinstance(name, str) or leaves(name):
        return None
    sound = isinstance(sha, str) and len(sha) == 64
    return RemoteFile(name, size if type(size) is int else -1, sha if sound else "")


def _verify(name: str, folder: str, files: Sequence[RemoteFile]) -> None:
    """Removes what has the wrong hash, so that the next attempt does not trust it."""
    for file in files:
        path = os.path.join(folder, *file.name.split("/"))
        problem = wrong_hash(path, file)
        if problem is not None:
            if os.path.exists(path):
                os.unlink(path)
            raise NotDownloaded(f"{PREFIX}{name}: {problem.detail}; the file was removed, run it again", problem.cause)
