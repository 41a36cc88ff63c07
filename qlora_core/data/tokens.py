"""The tokenizer or processor of a model without its weights: what the audit needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qlora_doctor.errors import UsageError

# All that a tokenizer, a processor and a configuration are made of; no weights.
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
NOT = ("*.index.json", "pytorch_model*", "*/*")


def processor_of(model: str | os.PathLike[str]) -> tuple[Any, Any]:
    """`(processor, config)` of a model folder or a Hub name; of a Hub name only the small files are fetched.

    Raises:
        UsageError: no such model, or no tokenizer in it.
    """
    import transformers

    from qlora_core.checkpoint import is_local, read_folder
    from qlora_core.processor import load_processor

    name = os.fspath(model)
    folder = Path(name).expanduser() if is_local(name) else _fetched(name)
    checkpoint = read_folder(name, folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        return load_processor(checkpoint, config).processor, config
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{name}: its tokenizer or configuration cannot be read: {first}") from error


def _fetched(name: str) -> Path:
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(SMALL), ignore_patterns=list(NOT)))
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{name}: there is no such folder, and the Hub does not give it: {first}") from error
