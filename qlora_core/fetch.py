"""A model of the Hub as a local folder: only the files that a load needs, through the endpoint that was chosen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_core.errors import ModelProblem, show_size
from qlora_doctor.errors import UsageError

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "qformer_tokenizer/*")


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: Any = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Downloads what is missing of a repository into the Hub's cache; returns the folder of the snapshot.

    Raises:
        UsageError: the Hub cannot be reached and the cache is not complete, no such repository, no right to read it,
            too little room on the disk.
        ModelProblem: a repository without weights that we load.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    common = {"revision": revision, "cache_dir": cache_dir, "token": token, "endpoint": endpoint}
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _from_cache(name, common, "the Hub is not asked (offline)")
    unreachable: tuple[type[Exception], ...] = (errors.HfHubHTTPError, OSError, *_connection_errors())
    try:
        info = hub.HfApi(endpoint=endpoint, token=token).model_info(name, revision=revision, files_metadata=True)
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{name} is gated: accept its terms on its page, then `hf auth login` ({_line(error)})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(f"{name}: no such repository, or a private one that your token cannot read") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{name} has no revision {revision!r}") from error
    except unreachable as error:
        return _from_cache(name, common, f"the Hub cannot be reached: {_line(error)}")
    files = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    wanted = _wanted(name, list(files))
    _room(name, {f: files[f] for f in files if _matches(f, wanted)}, cache_dir)
    return Path(hub.snapshot_download(name, allow_patterns=wanted, **common))


def _wanted(name: str, files: Sequence[str]) -> list[str]:
    """The patterns to download: safetensors, and pickles only where there is nothing else."""
    top = [f for f in files if "/" not in f]
    for suffix in (".safetensors", ".bin"):
        if any(f.endswith(suffix) for f in top):
            return [*SMALL_FILES, f"*{suffix}"]
    if "adapter_config.json" in top or any(f.endswith(".gguf") for f in top):
        what = "an adapter" if "adapter_config.json" in top else "GGUF files"
        raise ModelProblem(f"{name} holds {what} and no 16-bit weights; use the repository that it was made from")
    raise ModelProblem(f"{name} holds neither safetensors nor .bin weights, so nothing can be loaded from it")


def _matches(file: str, patterns: Sequence[str]) -> bool:
    from fnmatch import fnmatch

    return any(fnmatch(file, pattern) for pattern in patterns)


def _room(name: str, sizes: dict[str, int], cache_dir: str | os.PathLike[str] | None) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    missing = {f: s for f, s in sizes.items() if not isinstance(try_to_load_from_cache(name, f, cache_dir=cache), str)}
    folder = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    free, need = shutil.disk_usage(folder).free, sum(missing.values())
    if need > free:
        raise UsageError(
            f"{name}: {show_size(need)} are still to be downloaded and {cache} has {show_size(free)} free. "
            "Free some room there, or give cache_dir= on a larger disk"
        )


def _from_cache(name: str, common: dict[str, Any], why: str) -> Path:
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return Path(hub.snapshot_download(name, local_files_only=True, **common))
    except (errors.LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"{name} is not in the cache, and {why}. Give a folder, or endpoint= with a Hub that can be reached "
            "(`qlora-doctor check --model` says which can)"
        ) from error


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the HTTP client under huggingface_hub raises; it was requests, then httpx, then httpx2."""
    import importlib
    import sys

    found: list[type[Exception]] = []
    for module, name in (("requests", "RequestException"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        if module in sys.modules:
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
