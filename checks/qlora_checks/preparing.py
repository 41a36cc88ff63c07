"""QD6: prepare_model_for_kbit_training, before the adapters and not after."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, installed_version
from qlora_checks.runs import bits_of, by_trainer, by_trl, calls_named, checkpoints, script_of
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Edit, Fix, SourceEdit, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests, TrainRequest
from qlora_doctor.source import Call, Site


@check("QD601", needs=["packages"], since="0.1")
def quantized_training_without_prepare(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """Adapters are trained on a 4-bit or 8-bit model that `prepare_model_for_kbit_training` never saw.

    What that function does: it freezes the base, casts everything that is not quantised to float32, switches gradient
    checkpointing on, and lets the input embeddings require gradients. The last point decides.

    With transformers below 5.0, gradient checkpointing is re-entrant unless told otherwise, and a re-entrant
    checkpoint whose inputs need no gradient cuts the graph: `RuntimeError: element 0 of tensors does not require grad
    and does not have a grad_fn` (run on 4.57.6 with peft 0.18.1). An error where checkpointing is on.

    From 5.0 on checkpointing is not re-entrant by default, and in 5.23 all ways of switching it on give gradients;
    four steps gave the same losses with and without (run on 5.23.0, peft 0.21.2). There it changes memory and
    precision only: without it embeddings, norms and the output head stay in 16 bit, which on a 7B model with a
    vocabulary of 150,000 saves about 2 GiB. Then this is information.

    Silent for TRL's trainers: given a `peft_config` they prepare the model themselves (to 0.25), and from 0.26 on they
    enable the input gradients of any model with adapters. Silent where the script calls `enable_input_require_grads()`, or puts a forward hook
    on the input embeddings.

    Fix: `model = prepare_model_for_kbit_training(model)` before `get_peft_model`; or, below 5.0,
    `gradient_checkpointing_kwargs={"use_reentrant": False}`.

    Source: peft `utils/other.py`; transformers `modeling_utils.py` 4.44.2, 4.57.6, 5.0.0 and 5.23.0; runs on 4.57.6
    and 5.23.0.
    """
    bits = bits_of(request)
    if bits is None or request.peft is False or request.prepared:
        return
    if by_trl(request) and (request.trainer.seen("peft_config") is not None or _trl_enables_gradients(facts)):
        return
    script = script_of(facts)
    if calls_named(script, ".enable_input_require_grads", "prepare_model_for_kbit_training", ".register_forward_hook"):
        return
    if request.prepared is None:
        raise UnknownArgument("prepare_model_for_kbit_training", "whether it ran on this model cannot be seen")
    version = installed_version(facts, "transformers")
    wrap = _wrap_with_prepare(request, facts)
    evidence = {"bits": bits, "transformers": str(version)}
    if at_least(version, "5.0"):
        yield Finding(
            "A {bits}-bit model is trained without prepare_model_for_kbit_training. With transformers {transformers} "
            "training works all the same: norms, embeddings and head stay in 16 bit, which saves memory. "
            "Call it before get_peft_model if you want them in float32",
            evidence,
            severity="info",
            site=request.site,
            fixes=wrap,
        )
    elif _checkpointing(facts, request) and not _not_reentrant(request):
        yield Finding(
            "A {bits}-bit model is trained with gradient checkpointing but without prepare_model_for_kbit_training: "
            "in transformers {transformers} the first backward stops with 'element 0 of tensors does not require "
            "grad'. Call prepare_model_for_kbit_training(model) before get_peft_model, or pass "
            "gradient_checkpointing_kwargs={{'use_reentrant': False}}",
            evidence,
            severity="error",
            site=request.site,
            fixes=(*_without_reentrance(request), *wrap),
        )
    else:
        yield Finding(
            "A {bits}-bit model is trained without prepare_model_for_kbit_training: norms, embeddings and head stay "
            "in 16 bit. It trains; call it before get_peft_model if the loss is unstable, or before you switch "
            "gradient checkpointing on (transformers {transformers})",
            evidence,
            severity="info",
            site=request.site,
            fixes=wrap,
        )


def _trl_enables_gradients(facts: Facts) -> bool:
    return at_least(installed_version(facts, "trl"), "0.26")


def _checkpointing(facts: Facts, request: TrainRequest) -> bool:
    if calls_named(script_of(facts), ".gradient_checkpointing_enable"):
        return True
    if request.settings is None and not by_trainer(request):
        return False
    if request.settings is None:
        return request.setting("gradient_checkpointing") is True
    return checkpoints(request.settings)


def _not_reentrant(request: TrainRequest) -> bool:
    value = None if request.settings is None else request.settings.seen("gradient_checkpointing_kwargs")
    return isinstance(value, dict) and value.get("use_reentrant") is False


def _without_reentrance(request: TrainRequest) -> tuple[Fix, ...]:
    if request.settings is None:
        return ()
    return (TrainSetting("gradient_checkpointing_kwargs", {"use_reentrant": False}, site=request.settings.site),)


def _wrap_with_prepare(request: TrainRequest, facts: Facts) -> tuple[Fix, ...]:
    calls = calls_named(script_of(facts), "peft.get_peft_model")
    site = calls[0].site if len(calls) == 1 else None
    span = _model_span(site)
    if site is None or span is None or not site.sha256:
        return (Advice("Call prepare_model_for_kbit_training(model) before get_peft_model"),)
    edits = (Edit(span[0], span[0], "prepare_model_for_kbit_training("), Edit(span[1], span[1], ")"))
    return (
        SourceEdit(
            site.path,
            site.sha256,
            edits,
            what="call prepare_model_for_kbit_training before get_peft_model",
            cell=site.cell,
            imports=("from peft import prepare_model_for_kbit_training",),
            applicability="unsafe",
        ),
    )


def _model_span(site: Site | None) -> tuple[int, int] | None:
    spans = {} if site is None else site.spans
    return next((spans[name] for name in ("model:value", "#0:value", "#0") if name in spans), None)


@check("QD608", needs=["script"], since="0.1")
def adapters_frozen_by_prepare(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """`prepare_model_for_kbit_training` is called on a model that already has its adapters.

    It freezes every parameter that it finds, the adapters among them. Nothing is trained after that: on 5.23.0 the
    Trainer runs to its end, with a falling learning rate, grad_norm 0 and an adapter that is what it was at the start.
    (Run on 5.23.0 with peft 0.21.2 and on 4.57.6 with 0.18.1.)

    Judged where the call gets the variable that `get_peft_model` or `PeftModel.from_pretrained` gave, or their result
    itself. A warning where the script trains nothing itself, silent where it then generates. Silent where the script
    sets `requires_grad` again, and for adapters that were attached for inference (`PeftModel.from_pretrained` without
    `is_trainable=True`).

    Fix: prepare first, then attach: `model = get_peft_model(prepare_model_for_kbit_training(model), config)`.

    Source: peft `utils/other.py`; the two runs.
    """
    makers = ("get_peft_model", "PeftModel.from_pretrained", "PeftModelForCausalLM.from_pretrained")
    made = calls_named(facts.script, *makers)
    for call in calls_named(facts.script, "prepare_model_for_kbit_training"):
        model = call.arguments.get("model", call.arguments.get("#0"))
        name = model.function if isinstance(model, Call) else call.origin
        if not name.endswith(makers) or not made or calls_named(facts.script, ".requires_grad_"):
            continue
        if not requests.trains and calls_named(facts.script, ".generate"):
            continue
        if not name.endswith("get_peft_model") and not any(c.seen("is_trainable") is True for c in made):
            continue
        yield Finding(
            "prepare_model_for_kbit_training is called on a model that already has adapters, and freezes them too: the "
            "training runs and trains nothing (grad_norm 0). Call it before {maker}",
            {"maker": name.rpartition(".")[2] if name.endswith("get_peft_model") else "the adapters are attached"},
            severity="error" if requests.trains else "warning",
            site=call.site,
            fixes=(Advice("Call prepare_model_for_kbit_training before get_peft_model"),),
        )


CHECKS: tuple[Check, ...] = (quantized_training_without_prepare, adapters_frozen_by_prepare)
