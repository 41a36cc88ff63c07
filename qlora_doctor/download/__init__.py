"""Downloading a model: only what a load needs, through the endpoint that was chosen, resumed, verified.

The files come through huggingface_hub's own session, so that proxies, certificates and tokens act as they will for the
user, and land in its own cache (or in a folder of the user's). The bytes are written by us, because huggingface_hub 2
throws a half-written file away where earlier ones went on with it. A file is given its name only when it is whole and
its hash is right, so nothing half-written is ever taken for a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from qlora_doctor.download.fetch import Downloaded, download
from qlora_doctor.download.modelscope import PREFIX, from_modelscope
from qlora_doctor.download.patience import Patience
from qlora_doctor.download.problem import NotDownloaded

__all__ = ["PREFIX", "Downloaded", "NotDownloaded", "Patience", "download", "get"]


def get(
    name: str,
    *,
    endpoint: str | None = None,
    revision: str | None = None,
    token: Any = None,
    cache: str | os.PathLike[str] | None = None,
    to: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    code: bool = False,
    offline: bool = False,
    patience: Patience | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Downloaded:
    """`download`, with the addresses, the cache and the mirrors that this process's settings name.

    `name` may be `modelscope:OWNER/NAME`. `offline`, or HF_HUB_OFFLINE, takes what lies in the cache.

    Raises:
        NotDownloaded: the model cannot be had; the message says why, for each address.
        UsageError: a setting that names an address is wrong.
    """
    from qlora_doctor.config import nearest_config
    from qlora_doctor.gather.endpoints import choose
    from qlora_doctor.gather.hub import told_offline
    from qlora_doctor.gather.hub_cache import cache_folder

    offline = offline or told_offline(os.environ)
    if name.startswith(PREFIX):
        own = name.removeprefix(PREFIX)
        return from_modelscope(
            own, revision=revision, to=to, include=include, exclude=exclude, code=code, offline=offline
        )
    return download(
        name,
        choose(os.environ, nearest_config(os.getcwd()), endpoint=endpoint),
        revision=revision,
        token=token,
        cache=os.path.abspath(os.path.expanduser(os.fspath(cache))) if cache else cache_folder(os.environ),
        to=to,
        include=include,
        exclude=exclude,
        code=code,
        offline=offline,
        patience=patience,
        progress=progress,
    )
