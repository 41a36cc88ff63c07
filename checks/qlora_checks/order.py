"""QD1: environment variables that a script sets too late, or that nobody reads any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from qlora_checks.common import at_least, nvidia
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Edit, Fix, SourceEdit
from qlora_doctor.registry import Check, check
from qlora_doctor.source import EnvironWrite, Script

# Packages whose import, however it is written, runs huggingface_hub/constants.py (each imported alone on the current
# stack). accelerate, trl and huggingface_hub itself are lazy: only some names of theirs bring it in.
_HUB_READERS = ("transformers", "peft", "datasets", "diffusers", "sentence_transformers", "unsloth")
_HUB_NAMES = {"huggingface_hub": None, "trl": None}
_HUB = (
    "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_XET", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_XET_CACHE",
)  # fmt: skip
# Importing these asks CUDA for its devices: bitsandbytes does, and peft and transformers' Trainer import it.
_CUDA_READERS = ("bitsandbytes", "peft", "unsloth")
_CUDA_NAMES: Mapping[str, tuple[str, ...] | None] = {"transformers": ("Trainer", "Seq2SeqTrainer"), "trl": None}
_CUDA_CALLS = ("torch.cuda.is_available", "torch.cuda.device_count", "torch.cuda.get_device_properties",
               "torch.cuda.get_device_capability", "torch.cuda.get_device_name", "torch.cuda.current_device",
               "torch.cuda.init", "torch.cuda.set_device", "torch.cuda.empty_cache", "torch.cuda.mem_get_info",
               "torch.cuda.is_bf16_supported")  # fmt: skip


@check("QD130", needs=["script"], wants=["gpus", "environ", "packages"], since="0.1")
def environ_set_after_import(facts: Facts) -> Iterator[Finding]:
    """An environment variable that is set after the library that reads it has read it.

    huggingface_hub reads HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE once, when its constants are imported,
    and `import transformers`, `peft` or `datasets` imports them. Set later they change nothing: the download goes to
    the default endpoint and the default folder (run on transformers 5.23 and hub 2.4).

    CUDA_VISIBLE_DEVICES is read when CUDA starts, not when torch is imported, so setting it after `import torch` works.
    It is too late once something has asked CUDA for its devices: `torch.cuda.is_available()`, or `import bitsandbytes`,
    which calls it, and with it `import peft` and transformers' Trainer (each traced on the current stack).

    HF_TOKEN, TOKENIZERS_PARALLELISM, WANDB_* and PYTORCH_CUDA_ALLOC_CONF are read when they are used, and are not
    judged. A variable that the environment holds with the same value already is not reported, nor a CUDA_VISIBLE_DEVICES
    that names every GPU there is, in their order, as "0" does on a machine with one.

    Fix: set it before the imports, or in the shell.
    """
    script = facts.script
    seen: set[str] = set()
    for write in script.environ:
        readers = _late_for(script, write)
        if write.name in seen or not readers:
            seen.add(write.name)
            continue
        seen.add(write.name)
        if _held_already(facts, write):
            continue
        if write.name == "CUDA_VISIBLE_DEVICES" and (_no_cuda(facts, readers) or _every_gpu(facts, write)):
            continue
        yield Finding(
            "{name} is set too late and changes nothing: `{reader}` comes first and reads it. Set it before the imports "
            "or in the shell",
            evidence={"name": write.name, "reader": readers[0], "readers": readers},
            severity="warning",
            site=write.site,
            fixes=_fixes(script, write),
        )


def _late_for(script: Script, write: EnvironWrite) -> list[str]:
    """What reads the variable before the write: imports, or calls."""
    if write.name in _HUB:
        return _imported(script, write, _HUB_READERS, _HUB_NAMES)
    if write.name.startswith("HF_DATASETS_"):
        return _imported(script, write, ("datasets",), {})
    if write.name in ("BNB_CUDA_VERSION", "BNB_ROCM_VERSION"):
        return _imported(script, write, ("bitsandbytes", "peft"), {})
    if write.name == "CUDA_VISIBLE_DEVICES":
        found = _imported(script, write, _CUDA_READERS, _CUDA_NAMES)
        calls = [] if write.nested else [c.function for c in script.calls if c.order < write.order]
        return found or [f"{name}()" for name in calls if name in _CUDA_CALLS][:1]
    return []


def _imported(
    script: Script, write: EnvironWrite, always: tuple[str, ...], names: Mapping[str, tuple[str, ...] | None]
) -> list[str]:
    """The imports before the write that count: of `always` any, of `names` only those names (None: any from-import)."""
    found = [f"import {top}" for top in always if top in write.after_imports]
    for item in script.imports:
        top = item.module.partition(".")[0]
        if top not in write.after_imports or top in always or top not in names or not item.name:
            continue
        wanted = names[top]
        if (wanted is None or item.name in wanted) and (write.nested or item.order < write.order):
            found.append(f"from {item.module} import {item.name}")
    return found[:2]


def _no_cuda(facts: Facts, readers: list[str]) -> bool:
    """Whether nothing asked CUDA: there is no GPU, or no bitsandbytes that the imports would bring in."""
    packages = facts.state("packages")
    known = not isinstance(packages, Unknown) and bool(packages.distributions)
    by_import = readers[0].startswith(("import", "from"))
    return nvidia(facts) == () or (by_import and known and packages.find("bitsandbytes") is None)


def _every_gpu(facts: Facts, write: EnvironWrite) -> bool:
    """Whether the value leaves every GPU where it is, so that nobody can tell whether it was read."""
    gpus, environ = nvidia(facts), facts.state("environ")
    if not gpus or (not isinstance(environ, Unknown) and environ.get("CUDA_VISIBLE_DEVICES") is not None):
        return False
    entries = [entry.strip() for entry in write.value.split(",")] if isinstance(write.value, str) else []
    wanted = zip(entries, gpus, strict=False)
    return len(entries) == len(gpus) and all(e == str(g.index) or (g.uuid and e == g.uuid) for e, g in wanted)


def _held_already(facts: Facts, write: EnvironWrite) -> bool:
    environ = facts.state("environ")
    if isinstance(environ, Unknown) or write.name not in environ:
        return False
    return write.default_only or environ[write.name] == write.value


def _fixes(script: Script, write: EnvironWrite) -> tuple[Fix, ...]:
    """The line put first. A write inside a block may depend on what comes before it, and is left to a person."""
    advice = Advice(f"set {write.name} before the imports, or with `export {write.name}=...` before the script starts")
    site = write.site
    if not isinstance(write.value, str) or write.nested or site is None or site.column != 1 or site.cell is not None:
        return (advice,)
    if not script.sha256 or site.start < 0 or script.kind != "python":
        return (advice,)
    value = f'"{write.value}"' if write.value.isprintable() and not set('"\\') & set(write.value) else repr(write.value)
    line = f'os.environ["{write.name}"] = {value}'
    if write.default_only:
        line = f'os.environ.setdefault("{write.name}", {value})'
    first = _early_os(script)
    insertion = Edit(script.insertion, script.insertion, f"import os\n\n{line}\n\n")
    if first is not None:
        insertion = Edit(first, first, f"\n\n{line}\n")
    edits = (insertion, Edit(site.start, site.end, ""))
    what = f"set {write.name} before the imports"
    return (SourceEdit(script.path, script.sha256, edits, what=what, applicability="safe"),)


def _early_os(script: Script) -> int | None:
    """The byte after `import os`, where only the standard library is imported before it; None for anything else."""
    for item in sorted(script.imports, key=lambda i: i.order):
        if item.nested or item.guarded or item.site is None:
            return None
        if (item.module, item.name, item.alias) == ("os", "", "os"):
            alone = [i for i in script.imports if i.site is not None and i.site.line == item.site.line]
            return item.site.end if len(alone) == 1 and item.site.column == len("import ") + 1 else None
        if item.module.partition(".")[0] not in sys.stdlib_module_names:
            return None
    return None


@check("QD131", needs=["packages", "script"], since="0.1")
def environ_variable_nobody_reads(facts: Facts) -> Iterator[Finding]:
    """An environment variable that the installed version no longer reads.

    TRANSFORMERS_CACHE, PYTORCH_TRANSFORMERS_CACHE and PYTORCH_PRETRAINED_BERT_CACHE are gone from transformers 5 (its
    source was searched: 4.57 reads them, 5.23 does not), so the models go to the default folder, often on a disk that is
    too small. HF_HUB_CACHE (or HF_HOME) is the name now.

    It is a warning, because the files land elsewhere than meant.
    """
    version = facts.version("transformers")
    if version is None or not at_least(version, "5.0"):
        return
    for write in facts.script.environ:
        if write.name not in ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE"):
            continue
        if any(other.name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") for other in facts.script.environ):
            continue
        yield Finding(
            "{name}: transformers {transformers} no longer reads it, so the models go to the default folder; set "
            "HF_HUB_CACHE (before the imports)",
            evidence={"name": write.name, "transformers": str(version)},
            severity="warning",
            site=write.site,
            fixes=(Advice("set HF_HUB_CACHE instead, before the imports"),),
        )


CHECKS: tuple[Check, ...] = (environ_set_after_import, environ_variable_nobody_reads)
