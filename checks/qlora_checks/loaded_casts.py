"""QD1: casts and moves of a model that was loaded quantised."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, bnb_quantization, installed_version
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Edit, SourceEdit
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Call, Dotted, Value

_DTYPES = frozenset(
    ["bfloat16", "half", "float16", "float", "float32", "double", "float64", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"]
)  # fmt: skip
# These give back the model they were given, so a later cast still meets transformers' own method.
_SAME_MODEL = ("peft.prepare_model_for_kbit_training", "prepare_model_for_kbit_training")


@check("QD117", needs=["script"], since="0.1")
def dtype_cast_of_a_quantized_model(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """`.half()`, `.float()`, `.to(torch.float16)` or `.to(dtype=...)` on a model that was loaded in 4 or 8 bit.

    transformers refuses each with a ValueError: `.half() is not supported for quantized model`, `You cannot cast a
    bitsandbytes model in a new dtype` (run on 5.23; `.half()` and `.float()` in the source since 4.36, `.to(dtype)` since
    4.45, and before that `.to` in any form).

    `.bfloat16()` and `.double()` raise nothing, and casts of a PeftModel raise nothing either (run): what those do to the
    adapters is another check. Moving a model (`.to("cuda")`) is not a cast. A model that only one branch of the script
    loads quantised is not judged.

    Fix: take the cast out, and name the dtype in the load.
    """
    for call in facts.script.calls:
        method = call.function.rpartition(".")[2]
        if not (method in ("half", "float") or (method == "to" and _names_a_dtype(call))) or call.guarded:
            continue
        bits = _bits_of_receiver(call, requests)
        if not bits:
            continue
        yield Finding(
            "{receiver}.{method}(...) casts a model that was loaded in {bits} bit, which transformers refuses with a "
            "ValueError; take it out and give the load its dtype",
            evidence={"receiver": _shown(call), "method": method, "bits": bits},
            severity="error",
            site=call.site,
            fixes=_without(call, requests),
        )


@check("QD118", needs=["packages", "script"], since="0.1")
def quantized_model_moved_by_an_old_version(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """`.to(device)` or `.cuda()` on a model that was loaded in 4 or 8 bit, where the installed versions refuse it.

    Today a 4-bit model can be moved (run on transformers 5.23 with bitsandbytes 0.50.2). Refused with a ValueError
    (source of 4.36 to 5.23): anything before transformers 4.45; 4 bit in 4.45 to 4.57 with bitsandbytes older than
    0.43.2; 8 bit up to 4.57; from 5.0 `.to` of 8 bit with bitsandbytes older than 0.48, and `.cuda()` of 8 bit always.

    Fix: leave the call out; the load puts a quantised model on the GPU itself (`device_map`).
    """
    for call in facts.script.calls:
        method = call.function.rpartition(".")[2]
        if method not in ("to", "cuda") or (method == "to" and _names_a_dtype(call)) or call.guarded:
            continue
        bits = _bits_of_receiver(call, requests)
        if not bits or not _refused(facts, method, bits):
            continue
        yield Finding(
            "{receiver}.{method}(...): transformers {transformers} with bitsandbytes {bitsandbytes} refuses to move a "
            "{bits}-bit model; take the call out, the load places the model (device_map)",
            evidence={
                "receiver": _shown(call),
                "method": method,
                "bits": bits,
                "transformers": str(facts.version("transformers")),
                "bitsandbytes": str(facts.version("bitsandbytes")),
            },
            severity="error",
            site=call.site,
            fixes=_without(call, requests),
        )


def _refused(facts: Facts, method: str, bits: int) -> bool:
    transformers = installed_version(facts, "transformers")
    if not at_least(transformers, "4.45"):
        return True
    bitsandbytes = installed_version(facts, "bitsandbytes")
    if not at_least(transformers, "5.0"):
        return bits == 8 or not at_least(bitsandbytes, "0.43.2")
    return bits == 8 and (method == "cuda" or not at_least(bitsandbytes, "0.48"))


def _names_a_dtype(call: Call) -> bool:
    return "dtype" in call.arguments or any(_is_dtype(value) for value in call.arguments.values())


def _is_dtype(value: Value) -> bool:
    return isinstance(value, Dotted) and value.name.startswith("torch.") and value.name[6:] in _DTYPES


def _bits_of_receiver(call: Call, requests: Requests) -> int | None:
    """4 or 8 where every way to load the receiver is quantised so; None otherwise.

    Raises:
        UnknownArgument: the load is found, but whether it is quantised cannot be known.
    """
    # What the reader followed is exact; the names are the way for a call that it could not follow.
    loads = [LoadRequest(one) for one in call.loads] or _loads_of_receiver(call, requests)
    found = {q.bits if (q := bnb_quantization(load)) is not None else None for load in loads}
    return found.pop() if len(found) == 1 else None


def _loads_of_receiver(call: Call, requests: Requests) -> list[LoadRequest]:
    """The requests of the one load call whose model `call` is a method of."""
    if not (call.origin.endswith(".from_pretrained") or call.origin in _SAME_MODEL):
        return []
    chained = [r for r in requests.loads if _inside(r.call, call)]
    if chained:
        return chained
    if not call.receiver:
        return []
    named = [r for r in requests.loads if r.call.result == call.receiver and r.call.order < call.order]
    last = max((r.call.order for r in named), default=-1)
    return [r for r in named if r.call.order == last]


def _inside(inner: Call, outer: Call) -> bool:
    a, b = inner.site, outer.site
    if a is None or b is None or a.start < 0 or a.cell != b.cell or a.path != b.path:
        return False
    return b.start <= a.start and a.end < b.end


def _named(call: Call) -> bool:
    """Whether the receiver is a plain variable or attribute, as it is written."""
    return call.receiver.isascii() and all(part.isidentifier() for part in call.receiver.split("."))


def _shown(call: Call) -> str:
    return call.receiver if _named(call) else "the model"


def _without(call: Call, requests: Requests) -> tuple[SourceEdit, ...]:
    """The edit that leaves the receiver and takes `.half()` away."""
    site = call.site
    if site is None or site.start < 0 or not site.sha256:
        return ()
    what = f"take .{call.function.rpartition('.')[2]}(...) out"
    whole = site.spans.get("statement")
    if whole is not None:
        return (SourceEdit(site.path, site.sha256, (Edit(*whole, ""),), what=what, cell=site.cell),)
    chained = [r.call.site for r in requests.loads if _inside(r.call, call)]
    if chained and chained[0] is not None:
        start = max(s.end for s in chained if s is not None)
    elif _named(call):
        start = site.start + len(call.receiver)
    else:
        return ()
    return (SourceEdit(site.path, site.sha256, (Edit(start, site.end, ""),), what=what, cell=site.cell),)


CHECKS: tuple[Check, ...] = (dtype_cast_of_a_quantized_model, quantized_model_moved_by_an_old_version)
