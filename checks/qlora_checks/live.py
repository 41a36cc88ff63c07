"""QD9: what happened when the stack was really imported and used (`check --live`)."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks import live_causes, stack
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, LiveProbe
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

_BAD = ("died", "failed", "timeout")
_ENDS = "illegal instruction: it was built for another processor"
_SIGNALS = {
    "SIGSEGV": "a crash in native code",
    "ACCESS_VIOLATION": "a crash in native code (0xC0000005)",
    "SIGABRT": "native code gave up",
    "SIGILL": _ENDS,
    "ILLEGAL_INSTRUCTION": _ENDS,
    "SIGBUS": "a crash in native code; a full /dev/shm or disk does this too",
    "SIGKILL": "something ended it, most often the kernel for lack of memory",
    "DLL_NOT_FOUND": "a DLL is not there",
    "ENTRYPOINT_NOT_FOUND": "a DLL lacks a function; two builds are mixed",
}


def _how(probe: LiveProbe) -> str:
    """How a probe ended, in a clause with its evidence."""
    if probe.outcome == "timeout":
        words = f"did not end ({probe.detail})"
    elif probe.signal:
        words = f"died of {probe.signal} ({_SIGNALS.get(probe.signal, 'a signal')})"
    elif probe.outcome == "died":
        words = f"ended the whole process with exit status {probe.exit_code}"
    else:
        words = f"failed: {probe.detail}" if probe.detail else "failed"
    if probe.missing and probe.missing not in words:
        words += f"; missing: {probe.missing}"
    return words + (f", at {probe.last_frame}" if probe.last_frame else "")


def _bad(facts: Facts, start: str) -> Iterator[LiveProbe]:
    """The probes of this name that went wrong.

    Raises:
        UnknownFact: one of them was cut short by what ran before it, so that nobody knows how it would have ended.
    """
    mine = [p for p in facts.live if p.name.startswith(start)]
    yield from (p for p in mine if p.outcome in _BAD and not p.cut)
    for probe in mine:
        if probe.cut:
            raise UnknownFact(probe.name, probe.detail)


def _evidence(probe: LiveProbe, **more: str) -> dict[str, object]:
    return {
        "probe": probe.name,
        "how": _how(probe),
        "outcome": probe.outcome,
        "signal": probe.signal,
        "exit_code": probe.exit_code,
        "last_frame": probe.last_frame,
        "missing": probe.missing,
        **more,
    }


@check("QD901", needs=["live"], since="0.1")
def module_that_cannot_be_imported(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A package of the stack was imported in a process of its own, and the import failed, crashed or hung.

    Metadata can be in perfect order where the import is not: a library of the system is missing, two CUDA runtimes meet,
    a wheel was built for another processor or another torch. The message names the signal or exception, the last frame
    that faulthandler saw, and the missing library or symbol.

    Only with `check --live`. It does not apply to packages that are not installed.

    An error for torch, transformers and what the run uses; a warning for the others. flash_attn is an error only where
    the run asks for it.

    Fix: install the package again, together with the torch that it was built for; or take an optional one out.

    Source: the exit of the process.
    """
    for probe in _bad(facts, "import "):
        module = probe.name.partition(" ")[2]
        optional = module == "flash_attn"
        name = module.replace("_", "-")
        yield Finding(
            "import {module} {how}. {remedy}.",
            _evidence(probe, module=module, remedy=_remedy(probe, name, optional)),
            severity=_import_severity(module, requests),
            fixes=(Advice(_remedy(probe, name, optional)),),
        )


def _import_severity(module: str, requests: Requests) -> Severity:
    if module == "flash_attn":
        return "error" if _wants_flash(requests) else "warning"
    if module in ("torch", "transformers") or stack.empty(requests):
        return "error"
    return stack.severity(requests, (f"import:{module}",))


def _wants_flash(requests: Requests) -> bool:
    return any(load.call.seen("attn_implementation") == "flash_attention_2" for load in requests.loads)


def _remedy(probe: LiveProbe, name: str, optional: bool) -> str:
    named = live_causes.remedy(probe, name)
    if named:
        return named
    if optional:
        return (
            f"Uninstall {name}, or install the build for this torch (transformers imports it wherever it is installed)"
        )
    if probe.signal in ("SIGILL", "ILLEGAL_INSTRUCTION"):
        return f"Install a {name} that is built for this processor"
    if probe.signal == "SIGKILL":
        return "Free memory and try again"
    if probe.outcome == "timeout":
        return "Try again; a slow network disk or a driver that hangs may hold it up"
    return f"Install {name} again, with pip's --force-reinstall, and nothing else of another CUDA version on LD_LIBRARY_PATH"


@check("QD902", needs=["live"], since="0.1", requires=["QD901"])
def gpu_that_cannot_be_used(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """torch sees a GPU, and cannot allocate on it or computes something wrong there.

    Somebody else may hold its memory, it may be in exclusive mode, torch may carry no code for it, or it is broken.

    Only with `check --live`, and only for GPUs that torch sees.

    Fix: what the message says; `nvidia-smi` shows who uses the GPU.

    Source: 64 MB and a product of two 256 x 256 matrices on each GPU, compared with the CPU.
    """
    for probe in _bad(facts, "allocate "):
        remedy = "Look with nvidia-smi who holds it, or hide it with CUDA_VISIBLE_DEVICES"
        yield Finding(
            "using {gpu} {how}. {remedy}.",
            _evidence(probe, gpu=probe.name.rpartition(" ")[2], remedy=remedy),
            severity="error",
            fixes=(Advice(remedy),),
        )


@check("QD903", needs=["live"], since="0.1", requires=["QD901", "QD902"])
def broken_4_bit_arithmetic(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """bitsandbytes quantises to 4 bit, takes it back or multiplies, and fails or gives another result than plain torch.

    A library for another CUDA version, a GPU without code in it, or a broken build show here and nowhere before the
    first forward.

    Only with `check --live`. One finding for each compute dtype that fails, on the first GPU (else on the CPU).

    An error where the run quantises, else a warning.

    Fix: the bitsandbytes that belongs to the installed torch.

    Source: NF4 of a 128 x 256 weight against the 16 values of the QLoRA paper, and products of 1 and 8 rows.
    """
    for probe in _bad(facts, "4-bit "):
        yield Finding(
            "{probe}: it {how}. Install the bitsandbytes that belongs to the installed torch, or use another compute dtype.",
            _evidence(probe),
            severity=stack.severity(requests, ("quantized",)),
            fixes=(Advice("install the bitsandbytes that belongs to the installed torch"),),
        )


@check("QD904", needs=["live"], since="0.1", requires=["QD901", "QD902", "QD903"])
def broken_lora_gradient(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """One LoRA training step over 4-bit weights fails, or its gradients are not those of the same weights in full precision.

    Then a training would run, and learn something else or nothing.

    Only with `check --live`. An error where the run trains adapters, else a warning.

    Fix: the peft and bitsandbytes that belong together.

    Source: a model of two layers with PEFT, loss and every gradient compared with torch alone.
    """
    for probe in _bad(facts, "LoRA "):
        yield Finding(
            "{probe}: it {how}. Bring peft and bitsandbytes to versions that belong together.",
            _evidence(probe),
            severity=stack.severity(requests, ("adapters", "training")),
            fixes=(Advice("bring peft and bitsandbytes to versions that belong together"),),
        )


@check("QD905", needs=["live"], since="0.1", requires=["QD901", "QD902"])
def broken_paged_optimizer(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The paged 8-bit optimizer of bitsandbytes fails on this machine.

    It keeps its states in memory that moves between GPU and CPU (CUDA unified memory), which some containers, virtual
    machines and WSL do not allow.

    Only with `check --live`. An error where a run asks for a paged optimizer, else a warning.

    Fix: `optim="adamw_8bit"`, or `adamw_torch`.

    Source: three steps of PagedAdamW8bit, after which the loss must be lower.
    """
    for probe in _bad(facts, "paged "):
        paged = any(
            isinstance(t.settings.seen("optim"), str) and "paged" in str(t.settings.seen("optim"))
            for t in requests.trains
            if t.settings is not None
        )
        yield Finding(
            '{probe}: it {how}. Use optim="adamw_8bit" or "adamw_torch".',
            _evidence(probe),
            severity="error" if paged else "warning",
            fixes=(Advice('use optim="adamw_8bit" or "adamw_torch"'),),
        )


@check("QD906", needs=["live"], since="0.1", requires=["QD901", "QD902"])
def ranks_that_cannot_talk(facts: Facts) -> Iterator[Finding]:
    """Two processes on this machine cannot add up their numbers, over gloo or over NCCL.

    A run over several GPUs then hangs at its first step, or fails at its start. A firewall on the loopback interface, a
    host name that cannot be resolved, a small /dev/shm in a container, or GPUs that cannot reach each other are the
    usual reasons.

    Only with `check --live`. A warning: a run on one GPU does not need it.

    Fix: for NCCL, `NCCL_DEBUG=INFO` says what it tries; `--shm-size=1g` for containers; `NCCL_P2P_DISABLE=1` where GPUs
    cannot reach each other.

    Source: `torch.distributed.all_reduce` of two ranks.
    """
    for probe in _bad(facts, "all-reduce "):
        nccl = probe.name.endswith("NCCL")
        remedy = "Look at NCCL_DEBUG=INFO" if nccl else "Look whether this machine's name resolves and loopback is open"
        yield Finding(
            "{probe}: it {how}. A run over several processes will not start. {remedy}.",
            _evidence(probe, remedy=remedy),
            severity="warning",
            fixes=(Advice(remedy),),
        )


CHECKS: tuple[Check, ...] = (
    module_that_cannot_be_imported,
    gpu_that_cannot_be_used,
    broken_4_bit_arithmetic,
    broken_lora_gradient,
    broken_paged_optimizer,
    ranks_that_cannot_talk,
)
