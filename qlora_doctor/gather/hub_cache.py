"""The user's Hub cache: where it is, on what kind of disk, which models lie in it, and whether they are whole.

Read only, by the layout that huggingface_hub has kept since 0.11: `models--OWNER--NAME/{refs,snapshots,blobs}`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qlora_doctor.facts import HubCache, ModelFacts, Snapshot

MOST_BLOBS = 5_000
_NO_LINKS = ("vfat", "exfat", "msdos", "fat32")


def cache_folder(environ: Mapping[str, str]) -> str:
    """The folder where huggingface_hub keeps models, by the variables it reads itself."""
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expanduser(os.path.expandvars(folder))


def cached_models(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The models of which the cache holds a snapshot with a configuration, by id and sorted."""
    root = cache_folder(environ)
    try:
        names = sorted(n for n in os.listdir(root) if n.startswith("models--"))
    except OSError:
        return ()
    return tuple(n.removeprefix("models--").replace("--", "/") for n in names if _started(os.path.join(root, n)))


def _started(folder: str) -> bool:
    snapshots = os.path.join(folder, "snapshots")
    try:
        return any(os.path.exists(os.path.join(snapshots, s, "config.json")) for s in os.listdir(snapshots))
    except OSError:
        return False


def repository_folder(name: str, environ: Mapping[str, str]) -> str:
    return os.path.join(cache_folder(environ), "models--" + name.replace("/", "--"))


def cached_files(name: str, environ: Mapping[str, str]) -> frozenset[str]:
    """The files of a repository that lie whole in the cache, in any snapshot."""
    folder = os.path.join(repository_folder(name, environ), "snapshots")
    found: set[str] = set()
    try:
        for snapshot in os.listdir(folder):
            inside = os.path.join(folder, snapshot)
            found |= {f for f in os.listdir(inside) if os.path.exists(os.path.join(inside, f))}
    except OSError:
        return frozenset(found)
    return frozenset(found)


def read_snapshots(
    names: Iterable[str], environ: Mapping[str, str], *, details: bool = True
) -> tuple[tuple[Snapshot, ...], tuple[ModelFacts, ...]]:
    """What the cache holds of these repositories, and with `details` the facts of those that are whole.

    Offline, and where the Hub does not answer, huggingface_hub loads what refs/main names and nothing else.
    """
    from qlora_doctor.gather.model_files import read_model

    snapshots, models = [], []
    for name in names:
        folder = repository_folder(name, environ)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or not os.path.isdir(folder):
            continue
        revision = _main(folder)
        place = os.path.join(folder, "snapshots", revision)
        if not revision or not os.path.isdir(place):
            snapshots.append(Snapshot(name, revision, ("everything",), _incomplete(folder)))
            continue
        model = replace(read_model(place), name=name, origin="hub")
        missing = _missing(model)
        snapshots.append(Snapshot(name, revision, missing, _incomplete(folder)))
        if details and not missing:
            models.append(model)
    return tuple(snapshots), tuple(models)


def _main(folder: str) -> str:
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="ascii") as file:
            revision = file.read(100).strip()
    except (OSError, ValueError):
        return ""
    return revision if re.fullmatch(r"[0-9a-f]{7,64}", revision) else ""


def _missing(model: ModelFacts) -> tuple[str, ...]:
    """The files of a snapshot that a load needs and that are not there."""
    if model.adapter_config is not None:
        return tuple(f.name for f in model.files if f.fault == "missing")
    found = [f.name for f in model.files if f.fault == "missing"]
    if not model.has("config.json"):
        found.insert(0, "config.json")
    elif not any(f.name.endswith((".safetensors", ".bin", ".gguf", ".pt", ".pth")) for f in model.files):
        # The index may be there, and none of what it names: then the files are in `found` already.
        found.append("the weights")
    return tuple(found)


def _incomplete(folder: str) -> int:
    """The bytes of downloads that were broken off."""
    blobs = os.path.join(folder, "blobs")
    total = 0
    try:
        for name in os.listdir(blobs)[:MOST_BLOBS]:
            if name.endswith(".incomplete"):
                total += os.stat(os.path.join(blobs, name)).st_size
    except OSError:
        return total
    return total


def read_cache(environ: Mapping[str, str]) -> HubCache:
    """The folder of the cache: its file system, and whether it can be written and can hold links."""
    path = os.path.abspath(cache_folder(environ))
    existing = path
    while not os.path.isdir(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    filesystem = _filesystem(os.path.realpath(existing))
    return HubCache(path, filesystem, os.access(existing, os.W_OK), _symlinks(filesystem))


def _filesystem(path: str) -> str:
    """The type of the file system under `path`, from the mounts of Linux; "" elsewhere."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
            lines = file.read(2**20).splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _symlinks(filesystem: str) -> bool | None:
    """Whether links can be made. On Windows that takes the developer mode, or an administrator; nothing is tried."""
    if sys.platform == "win32":
        import ctypes
        import winreg

        place = r"SOFTWARE\Microsoft\Windows\CurrentVersion\AppModelUnlock"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                if winreg.QueryValueEx(key, "AllowDevelopmentWithoutDevLicense")[0] == 1:
                    return True
        except OSError:
            return bool(ctypes.windll.shell32.IsUserAnAdmin())
        return bool(ctypes.windll.shell32.IsUserAnAdmin())
    return filesystem not in _NO_LINKS if filesystem else None
