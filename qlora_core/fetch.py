"""A model of the Hub, or of ModelScope, as a local folder: the doctor's download, with the loader's exceptions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qlora_core.errors import ModelProblem
from qlora_doctor.download import PREFIX, NotDownloaded, Patience, get
from qlora_doctor.download.bar import Bar
from qlora_doctor.download.wanted import SMALL

__all__ = ["PREFIX", "fetch"]


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: Any = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    code: bool = False,
    weights: bool = True,
    patience: Patience | None = None,
) -> Path:
    """Downloads what is missing of a repository into the Hub's cache; returns the folder of the snapshot.

    `name` may be `modelscope:OWNER/NAME`. `code`: the Python files too. Without `weights` only
    configuration, tokenizer and processor, a few megabytes. How far it is stands on stderr.

    Raises:
        UsageError: the model cannot be had (NotDownloaded, with the cause for each address that was asked), or there is
            too little room on the disk.
        ModelProblem: a repository without weights that we load.
    """
    bar = Bar(name)
    try:
        done = get(
            name,
            endpoint=endpoint,
            revision=revision,
            token=token,
            cache=cache_dir,
            code=code,
            include=() if weights else SMALL,
            offline=local_files_only,
            patience=patience,
            progress=bar,
        )
    except NotDownloaded as error:
        if error.cause == "no weights":
            raise ModelProblem(str(error)) from error
        raise
    finally:
        bar.end()
    return Path(done.folder)
