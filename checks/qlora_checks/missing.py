"""QD001: what the run needs and the environment lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qlora_checks import stack
from qlora_checks.environment import OBSOLETE
from qlora_doctor.facts import Facts, canonical
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, Fix, PipRequirement
from qlora_doctor.registry import check
from qlora_doctor.request import Requests

# Why a run takes a package, by path, the most telling first.
_REASONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "torch": (("load", "a model is loaded"), ("training", "a model is trained"), ("import:torch", "it is imported")),
    "transformers": (("load", "a model is loaded"), ("import:transformers", "it is imported")),
    "accelerate": (
        ("quantized", "transformers refuses a quantised load without it"),
        ("training", "the Trainer refuses to start without it"),
        ("import:peft", "peft imports it"),
        ("device-map", "device_map needs it"),
        ("import:accelerate", "it is imported"),
    ),
    "bitsandbytes": (
        ("quantized", "transformers refuses a 4-bit or 8-bit load without it"),
        ("bnb-optimizer", "the chosen optimizer comes from it"),
        ("import:bitsandbytes", "it is imported"),
    ),
    "peft": (("adapters", "the adapters come from it"), ("import:peft", "it is imported")),
}

# Import names of what training scripts use, and the distributions that bring them. Any other import may be the
# user's own module, which cannot be told from here.
_IMPORTS: Mapping[str, str] = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "datasets": "datasets",
    "decord": "decord",
    "deepspeed": "deepspeed",
    "einops": "einops",
    "evaluate": "evaluate",
    "flash_attn": "flash-attn",
    "huggingface_hub": "huggingface-hub",
    "jsonlines": "jsonlines",
    "numpy": "numpy",
    "pandas": "pandas",
    "qwen_vl_utils": "qwen-vl-utils",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sentencepiece": "sentencepiece",
    "sklearn": "scikit-learn",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "tiktoken": "tiktoken",
    "timm": "timm",
    "tokenizers": "tokenizers",
    "torchaudio": "torchaudio",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "transformers_stream_generator": "transformers-stream-generator",
    "trl": "trl",
    "unsloth": "unsloth",
    "wandb": "wandb",
    "yaml": "pyyaml",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """A distribution that is not installed, why it is wanted, and how bad that is."""

    package: str
    reason: str
    severity: Severity


@check("QD001", needs=["packages"], wants=["installed"], since="0.1")
def missing_package(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A package that this run needs is not installed.

    A 4-bit load needs bitsandbytes and accelerate, the Trainer needs accelerate, adapters need peft. None of them is
    a dependency that pip brings along with transformers, and transformers names one missing package a run: the next
    shows only after the first was installed.

    Where a script is judged, what it takes is an error and what it does not take is not mentioned. Where only the
    environment is judged, each missing package of the stack is a warning. What else a script imports is QD009's.

    Fix: install it, from the version on that the installed transformers works with, and below what would pull another
    torch. torch itself is never installed without being asked: which build is right depends on the driver.

    Source: quantizer_bnb_4bit.py and training_args.py of transformers 5.23; `import accelerate` in peft.
    """
    for missing in find(facts, requests):
        wanted = stack.requirement(facts, missing.package)
        yield Finding(
            "{package} is not installed: {reason}. Install {requirement}.",
            {"package": missing.package, "reason": missing.reason, "requirement": wanted},
            severity=missing.severity,
            fixes=(_fix(missing.package, wanted),),
        )


def _fix(package: str, wanted: str) -> Fix:
    if package == "flash-attn":
        return Advice(
            "install a flash-attn wheel for this torch, or drop attn_implementation", "pip install flash-attn"
        )
    heavy = package in ("torch", "torchvision", "torchaudio", "transformers", "deepspeed", "unsloth")
    return PipRequirement(wanted, applicability="unsafe" if heavy else "safe")


def find(facts: Facts, requests: Requests) -> tuple[Missing, ...]:
    """Everything that is missing for a run; for no run at all, the missing packages of the stack."""
    taken = stack.paths(requests) | set(_from_arguments(requests))
    unsure = any(stack.quantized(load) is None for load in requests.loads)
    found = []
    for package, reasons in _REASONS.items():
        if stack.installed(facts, package) is not None or _told_elsewhere(facts, package):
            continue
        why = next((text for path, text in reasons if path in taken), "")
        if why:
            found.append(Missing(package, why, "error"))
        elif stack.empty(requests):
            found.append(Missing(package, "QLoRA training needs it", "warning"))
        elif unsure and package in ("bitsandbytes", "accelerate"):
            found.append(Missing(package, "this load may be a quantised one, which needs it", "warning"))
    return tuple(found)


def _told_elsewhere(facts: Facts, package: str) -> bool:
    """Whether it lies there in another way, for which there is a check: no or broken metadata, an old stand-in."""
    paths = " ".join((*facts.packages.without_metadata, *facts.packages.broken))
    if re.search(rf"[\\/]{package}\b", paths):
        return True
    index = stack.by_name(facts.packages)
    stand_in = package == "bitsandbytes" and any(OBSOLETE.match(name) for name in index)
    return stand_in or any(package in distribution.provides for distribution in index.values())


@check("QD009", needs=["packages", "script"], since="0.1", wants=["installed"])
def import_that_is_not_installed(facts: Facts) -> Iterator[Finding]:
    """The script imports a well-known package that is not installed.

    It ends with ModuleNotFoundError, at the first line or, where the import stands in a function, hours later. Some
    thirty packages that training scripts use are looked at (trl, datasets, pillow, qwen-vl-utils, deepspeed, wandb ...);
    any other name may be a module of your own, which cannot be told from here.

    An error; a warning where the import stands in a function or class, which may never run. It does not apply where the
    import's failure is caught.

    Fix: install it.

    Source: the imports of the script, and the installed distributions.
    """
    seen = set()
    for one in facts.script.imports:
        module = one.module.partition(".")[0]
        package = _IMPORTS.get(module)
        if package is None or one.guarded or module in seen or _has(facts, module):
            continue
        seen.add(module)
        wanted = stack.requirement(facts, package)
        yield Finding(
            "the script imports {module}, and {package} is not installed. Install {requirement}.",
            {"module": module, "package": package, "requirement": wanted},
            severity="warning" if one.nested else "error",
            site=one.site,
            fixes=(_fix(package, wanted),),
        )


def _has(facts: Facts, module: str) -> bool:
    """Whether a distribution of this name is installed, or any that provides the module (opencv-python-headless)."""
    index = stack.by_name(facts.packages)
    if canonical(_IMPORTS[module]) in index or any(
        name.startswith(canonical(_IMPORTS[module]) + "-") for name in index
    ):
        return True
    return any(module in distribution.provides for distribution in index.values())


def _from_arguments(requests: Requests) -> Iterator[str]:
    for load in requests.loads:
        if "device_map" in load.call.arguments and load.call.seen("device_map") is not None:
            yield "device-map"
    for train in requests.trains:
        optimizer = train.settings.seen("optim") if train.settings is not None else None
        if isinstance(optimizer, str) and ("8bit" in optimizer or "bnb" in optimizer or optimizer.startswith("paged_")):
            yield "bnb-optimizer"
