"""QD2: the folder of the Hub cache, and what it holds of the models that a run needs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks.hub import hub_models, needed, switched_on
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|lustre|beegfs|ceph|glusterfs|afs|ncpfs|fuse\.(sshfs|s3fs|gcsfuse|glusterfs|ceph.*|juicefs|rclone|"
    r"blobfuse\d?|davfs\d?|mountpoint-s3))\Z"
)
_WINDOWS_IN_WSL = ("9p", "drvfs", "v9fs")
_FULL = 64 * 2**20


@check("QD211", needs=["hub", "disks"], since="0.2")
def cache_that_cannot_be_written(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The folder of the Hub cache (HF_HOME) is read-only or full, and a model has to be downloaded into it.

    A volume that is mounted read-only, a folder of another user (a `sudo` once), or a quota: the download ends in
    PermissionError or `No space left on device`, the latter after its hours.

    It does not apply where every model that is loaded lies in the cache, nor where `cache_dir` names another one. Whether the
    download fits beside what is free is QD206's business; here the disk has less than 64 MiB.

    Fix: set HF_HOME to a folder that can be written, or mend the rights.

    Source: the rights and the free space of the nearest folder that exists.
    """
    hub = facts.hub
    partly = {s.name for s in hub.snapshots if s.missing}
    missing = [m for m in needed(facts, requests) if m not in hub.cached or m in partly]
    if not missing or any("cache_dir" in load.call.arguments for load in requests.loads):
        return
    disk = next((d for d in facts.disks if d.purpose == "hf-cache"), None)
    if disk is None:
        return
    if disk.writable is False:
        problem = "cannot be written"
    elif disk.free is not None and disk.free < _FULL:
        problem = "is on a disk that is full"
    else:
        return
    yield Finding(
        "The Hub cache {path} {problem}, and {models} has to be downloaded into it: set HF_HOME to another folder, or mend it.",
        {"path": disk.path, "problem": problem, "models": missing, "free": disk.free},
        severity="error",
        fixes=(Advice("set HF_HOME to a folder that can be written and has room"),),
    )


@check("QD212", needs=["hub"], since="0.2")
def cache_on_a_network_disk(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The Hub cache lies on a network file system, or in WSL on a disk of Windows.

    Weights are mapped into memory and read in small pieces, which takes minutes there instead of seconds; downloads take
    file locks, which some of these file systems do not have. In WSL, everything under /mnt/c goes through the 9p protocol.

    For information: it works, slowly. It does not apply where no model comes from the Hub.

    Fix: set HF_HOME to a folder on a local disk (in WSL: of the Linux side, such as ~/hf).

    Source: the type of the file system in /proc/self/mounts; `_fixes.py` (locks) of huggingface_hub 2.4.
    """
    cache = facts.hub.cache
    if cache is None or not hub_models(requests):
        return
    windows = cache.filesystem in _WINDOWS_IN_WSL and cache.path.startswith("/mnt/")
    if not (windows or _NETWORK.match(cache.filesystem)):
        return
    yield Finding(
        "The Hub cache {path} lies on a disk of Windows ({filesystem}), where WSL reads slowly: set HF_HOME to a folder of the "
        "Linux side, such as ~/hf."
        if windows
        else "The Hub cache {path} lies on a network file system ({filesystem}): loads are slow and locks may hang. Set HF_HOME to "
        "a local disk.",
        {"path": cache.path, "filesystem": cache.filesystem},
        severity="info",
        fixes=(Advice("set HF_HOME to a folder on a local disk"),),
    )


@check("QD213", needs=["hub"], since="0.2")
def cache_without_links(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The Hub cache cannot hold symbolic links, so that each revision of a model keeps files of its own.

    On Windows links take the developer mode or an administrator; FAT and exFAT disks have none. huggingface_hub then moves or
    copies the files into each snapshot: a model of which two revisions are loaded takes its room twice, and the warning
    at each download is about that.

    For information: it works. It does not apply where no model comes from the Hub.

    Fix: turn on the developer mode of Windows, or set HF_HOME to a disk that can hold links.

    Source: `are_symlinks_supported` and `_create_symlink` of huggingface_hub 2.4.
    """
    cache = facts.hub.cache
    if cache is None or cache.symlinks is not False or not hub_models(requests):
        return
    yield Finding(
        "The Hub cache {path} cannot hold symbolic links{where}: each revision takes its room anew. Turn on the developer mode of "
        "Windows, or set HF_HOME to a disk that can.",
        {"path": cache.path, "where": f" ({cache.filesystem})" if cache.filesystem else ""},
        severity="info",
        fixes=(Advice("turn on the developer mode of Windows, or set HF_HOME to another disk"),),
    )


@check("QD214", needs=["hub"], since="0.2", requires=["QD203"], wants=["environ"])
def incomplete_cache_offline(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Nothing may be downloaded, and the cache holds a model in part: a download that was broken off.

    Offline, huggingface_hub loads the snapshot that `refs/main` of the repository names, and nothing else: not another
    snapshot, and not the `.incomplete` parts of a download. What is missing was found by the index of the weights.

    An error with HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE; for information where only this check was told to stay offline
    (`--offline`), for then the load downloads the rest. It does not apply where `cache_dir` or `revision` is given.

    Fix: unset the variable and download once more: what is there already is kept.

    Source: `_snapshot_download.py` and `try_to_load_from_cache` of huggingface_hub 2.4; the files of the snapshot.
    """
    hub = facts.hub
    wanted = needed(facts, requests)
    elsewhere = any({"cache_dir", "revision"} & set(load.call.arguments) for load in requests.loads)
    if not hub.offline or elsewhere:
        return
    given = facts.state("environ")
    told = next(
        (n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if hasattr(given, "get") and switched_on(given.get(n))),
        "",
    )
    for snapshot in hub.snapshots:
        if snapshot.name not in wanted or not snapshot.missing or snapshot.name not in hub.cached:
            continue
        missing = list(snapshot.missing[:5])
        evidence = {
            "model": snapshot.name,
            "missing": missing,
            "more": f" and {len(snapshot.missing) - 5} more" if len(snapshot.missing) > 5 else "",
            "revision": snapshot.revision,
            "incomplete": snapshot.incomplete,
            "name": told,
        }
        yield Finding(
            "{name} is set, and the cache holds {model} in part (missing: {missing}{more}): the load fails. Unset {name} and "
            "run `hf download {model}` once more; what is there is kept."
            if told
            else "The cache holds {model} in part (missing: {missing}{more}). The load downloads the rest; without a network run "
            "`hf download {model}` before.",
            evidence,
            severity="error" if told else "info",
            fixes=(Advice("download the rest", f"hf download {snapshot.name}"),),
        )


CHECKS: tuple[Check, ...] = (
    cache_that_cannot_be_written,
    cache_on_a_network_disk,
    cache_without_links,
    incomplete_cache_offline,
)
