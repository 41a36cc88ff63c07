"""Writes facts/*.json, the machines that the corpus is judged on.

    python tests/corpus/build_facts.py SITE_PACKAGES

SITE_PACKAGES is the folder of an environment with the current stack. What its packages say of their own arguments is
read there once, for every function of the stack that a script of the corpus calls, and saved without a path.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from qlora_doctor.collect import called_names
from qlora_doctor.examine import read_cases
from qlora_doctor.facts import (
    BnbBuild,
    Distribution,
    Driver,
    Facts,
    Gpu,
    Host,
    Installed,
    Interpreter,
    Packages,
    TorchBuild,
)
from qlora_doctor.gather.installed import DEFAULT_SIGNATURES, read_installed

FOLDER = Path(__file__).parent
SITE = "/venv/lib/python3.11/site-packages"
GIB = 2**30
BESIDE = {
    "deepspeed": "0.17.0", "filelock": "3.16.1", "packaging": "24.1", "regex": "2026.11.15", "requests": "2.32.3", "einops": "0.8.0", "evaluate": "0.4.6", "flash-attn": "2.8.3", "gradio": "5.0.0",
    "jsonlines": "4.0.0", "lightning": "2.5.0", "modelscope": "1.30.0", "opencv-python": "4.10.0.84",
    "pandas": "2.2.2", "pillow": "11.0.0", "pyyaml": "6.0.2", "qwen-vl-utils": "0.0.14", "scikit-learn": "1.6.0",
    "scipy": "1.14.1", "sentencepiece": "0.2.0", "swanlab": "0.6.0", "tensorboard": "2.18.0", "timm": "1.0.20",
    "tqdm": "4.66.5", "unsloth": "2026.10.1", "wandb": "0.19.0",
}  # fmt: skip
CURRENT = {
    **BESIDE, "accelerate": "1.15.0", "bitsandbytes": "0.50.2", "datasets": "5.2.0", "huggingface-hub": "2.4.0",
    "numpy": "2.4.6", "peft": "0.21.2", "safetensors": "0.8.0", "tokenizers": "0.23.3", "torch": "2.13.0",
    "torchvision": "0.28.0", "transformers": "5.23.0", "triton": "3.7.0", "trl": "1.16.0",
}  # fmt: skip
OLD = {
    **BESIDE, "accelerate": "0.33.0", "bitsandbytes": "0.44.1", "datasets": "2.21.0", "huggingface-hub": "0.24.6",
    "numpy": "1.26.4", "peft": "0.12.0", "safetensors": "0.4.4", "tokenizers": "0.19.1", "torch": "2.3.1",
    "torchvision": "0.18.1", "transformers": "4.44.2", "triton": "2.3.1", "trl": "0.9.6",
}  # fmt: skip
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", "8.6", 12 * GIB, 11 * GIB)


def packages(versions: dict[str, str]) -> Packages:
    return Packages(tuple(Distribution(n, v, SITE) for n, v in sorted(versions.items())))


def machine(versions: dict[str, str], torch: TorchBuild, libraries: tuple[str, ...], **parts: Any) -> Facts:
    given: dict[str, Any] = {
        "interpreter": Interpreter("3.11.9", "/venv/bin/python", "/venv", "/usr", venv=True),
        "host": Host(release="6.8.0-45-generic", libc="glibc 2.39", cpu_count=16, memory_total=64 * GIB),
        "packages": packages(versions),
        "shadows": (),
        "torch": torch,
        "bitsandbytes": BnbBuild(versions["bitsandbytes"], libraries),
        "gpus": (RTX_3060,),
        "driver": Driver("610.10", "13.2"),
        "environ": {},
    }
    return Facts(**{**given, **parts})


def installed(site: str) -> Installed:
    """What the packages in `site` say of themselves."""
    versions = {n: v for n, v in CURRENT.items() if (Path(site) / n.replace("-", "_")).is_dir()}
    there = Packages(tuple(Distribution(n, v, site) for n, v in versions.items()))
    names = dict.fromkeys((*DEFAULT_SIGNATURES, *called_names(read_cases([str(FOLDER / "scripts")]))))
    return read_installed(there, tuple(names))


def main() -> None:
    with tempfile.TemporaryDirectory() as empty:
        # What an earlier state of the reader kept must not come in.
        os.environ["QLORA_DOCTOR_CACHE"] = empty
        own = installed(sys.argv[1])
    new = TorchBuild("2.13.0", "13.0"), ("cpu", "cuda118", "cuda126", "cuda128", "cuda130", "cuda132")
    old = TorchBuild("2.3.1", "12.1"), ("cpu", "cuda117", "cuda118", "cuda121", "cuda124", "cuda125")
    machines = {
        "current": machine(CURRENT, *new, installed=own),
        "old": machine(OLD, *old, driver=Driver("550.120", "12.4")),
    }
    for name, facts in machines.items():
        text = json.dumps(facts.to_wire(), sort_keys=True)
        assert site_free(text), "a path of this machine is in the facts"
        (FOLDER / "facts" / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def site_free(text: str) -> bool:
    return str(Path(sys.argv[1]).resolve()) not in text and sys.argv[1] not in text


if __name__ == "__main__":
    main()
