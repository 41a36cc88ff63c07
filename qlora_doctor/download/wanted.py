"""Which files of a repository a load needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch

from qlora_doctor.download.problem import Trouble

SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "qformer_tokenizer/*", "additional_chat_templates/*")
CODE = "*.py"
# Beside the model, and read by no load: the states of a trainer, other formats, the authors' own layout.
_NOT_READ = re.compile(
    r"(^|/)(optimizer|scheduler|rng_state|training_args|trainer_state|consolidated|flax_model|tf_model)|\.onnx|^original/|^onnx/",
    re.IGNORECASE,
)


def wanted(
    names: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = (), *, code: bool = False
) -> list[str]:
    """The files to download: safetensors, and pickles only where there is nothing else; the small files beside them.

    `include` patterns take the place of that choice, `exclude` patterns are left out in either case. `code`: the Python
    files too, for a load that runs them.

    Raises:
        Trouble: `no weights`, a repository from which nothing can be loaded.
    """
    if include:
        chosen = [n for n in names if any(fnmatch(n, p) for p in include)]
    else:
        weights = _weights(names)
        chosen = [n for n in names if n in weights or (_small(n, code) and not _NOT_READ.search(n))]
    chosen = [n for n in chosen if not any(fnmatch(n, p) for p in exclude)]
    if not chosen:
        raise Trouble("no file", "no file of the repository is left by --include and --exclude")
    return chosen


def _small(name: str, code: bool) -> bool:
    patterns = (*SMALL, CODE) if code else SMALL
    return any(fnmatch(name, p) for p in patterns) and (
        "/" not in name or name.startswith(("qformer_tokenizer/", "additional_chat_templates/"))
    )


def _weights(names: Sequence[str]) -> set[str]:
    top = [n for n in names if "/" not in n]
    adapter = "adapter_config.json" in top and "config.json" not in top
    for suffix in (".safetensors", ".bin"):
        found = {n for n in top if n.endswith(suffix) and not _NOT_READ.search(n)}
        # A repository may hold its weights in one piece and in shards; transformers takes the piece.
        whole = {n for n in found if n in ("model.safetensors", "pytorch_model.bin")}
        shards = {n for n in found if re.search(r"-\d{5}-of-\d{5}\.", n)}
        if found:
            return found - shards if whole and shards else found
    if any(n.endswith(".gguf") for n in top):
        raise Trouble("no weights", "it holds GGUF files and no 16-bit weights; use the repository they were made from")
    if adapter:
        raise Trouble("no weights", "it holds an adapter's configuration and no weights")
    raise Trouble("no weights", "it holds neither safetensors nor .bin weights, so nothing can be loaded from it")
