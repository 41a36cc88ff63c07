"""QD7: padding and labels in the script."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, installed_version
from qlora_checks.runs import calls_named, edit_append, edit_span, family_of_load
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests
from qlora_doctor.source import Call, Script, TokenUse

# Models whose tokenizers have no pad token of their own, by the start of their names.
_NO_PAD = (
    "meta-llama/",
    "mistralai/",
    "huggyllama/",
    "tiiuae/falcon",
    "gpt2",
    "openai-community/gpt2",
    "nousresearch/",
)


@check("QD701", needs=["packages", "script"], since="0.1")
def end_token_masked_as_padding(facts: Facts, request: Requests) -> Iterator[Finding]:
    """The pad token is the end token, and the labels are masked wherever the pad token stands.

    Then the end of every answer is masked as well: the loss never asks for it, and the model learns to answer but not to
    stop. Who masks by the token: `DataCollatorForLanguageModeling(mlm=False)` of transformers (5.23 still does:
    `labels[labels == pad_token_id] = -100`), `DataCollatorForCompletionOnlyLM` of TRL below 0.20, SFTTrainer's own
    collator up to TRL 0.15, and `labels[labels == tokenizer.pad_token_id] = -100` in the script.

    Harmless, and silent: a mask made from the attention mask; DataCollatorForSeq2Seq over labels made before padding;
    SFTTrainer from TRL 0.16 on (pads labels with -100 and leaves the end alone); a script that only generates; models
    with a pad token of their own, where the assignment stands under `if tokenizer.pad_token is None` (Qwen, llava-hf,
    InstructBLIP): it does nothing there. Without that condition it does: on a Qwen chat model it replaces
    `<|endoftext|>` by `<|im_end|>`.

    A warning for models known to have no pad token and for an assignment without condition, information where it
    cannot be known whether the model has one.

    Fix: another token for padding (`tokenizer.unk_token` for Llama 2 and Mistral, `<|finetune_right_pad_id|>` for
    Llama 3.1 and newer), or labels masked by the attention mask.

    Source: transformers `data/data_collator.py` 4.44.2 to 5.23.0; trl `trainer/sft_trainer.py` 0.12.2, 0.15.2, 0.16.1, 1.16.0.
    """
    use = next((u for u in facts.script.tokens if u.kind == "pad-is-eos"), None)
    if use is None or not request.trains:
        return
    who = _masked_by_token(facts, facts.script, request)
    if who is None:
        return
    severity = _severity(use, request)
    if severity is None:
        return
    yield Finding(
        "The pad token is the end token, and {who} takes every pad token out of the labels, so the end of each answer "
        "goes with it{when}: the model does not learn to stop. Pad with another token (unk_token for Llama 2 and Mistral), "
        "or mask by attention_mask",
        {
            "who": who,
            "when": "" if severity == "warning" else " where the tokenizer has no pad token of its own",
        },
        severity=severity,
        site=use.site,
        fixes=(Advice("Pad with a token that is not the end token, or mask the labels by attention_mask"),),
    )


def _severity(use: TokenUse, request: Requests) -> Severity | None:
    if not use.detail:
        return "warning"
    names = [load.call.seen("pretrained_model_name_or_path") for load in request.loads]
    if any(family_of_load(load) is not None for load in request.loads):
        return None
    if any(isinstance(name, str) and name.lower().startswith(_NO_PAD) for name in names):
        return "warning"
    return "info"


def _masked_by_token(facts: Facts, script: Script, request: Requests) -> str | None:
    if any(u.kind == "mask" and u.detail == "pad" for u in script.tokens):
        return "the script"
    for call in calls_named(script, "DataCollatorForLanguageModeling", "DataCollatorForCompletionOnlyLM"):
        name = call.function.rpartition(".")[2]
        if name.endswith("OnlyLM") or (call.function.startswith("transformers.") and call.seen("mlm") is False):
            return name
    sft = [t for t in request.trains if t.trainer.function == "trl.SFTTrainer" and not t.subclass]
    if sft and all(not _has(t.trainer, "data_collator") for t in sft):
        version = installed_version(facts, "trl")
        if not at_least(version, "0.16"):
            return f"the collator of TRL {version}"
    return None


def _has(call: Call, name: str) -> bool:
    return call.open != "" or name in call.arguments


@check("QD702", needs=["script"], since="0.1")
def padding_counts_in_the_loss(facts: Facts, request: Requests) -> Iterator[Finding]:
    """The labels are a copy of input ids that were padded to full length, and nothing masks the padding.

    The loss looks at labels alone, not at the attention mask: a pad token that is not -100 is a target like any other
    (run: no error, the pads count). With `padding="max_length"` most targets of a short sample are then padding; the
    loss looks fine and the answers come out empty or cut short.

    Silent where anything in the script masks (by pad token or attention mask), with
    `DataCollatorForLanguageModeling(mlm=False)`, which makes the labels anew, and with TRL's trainers.
    DataCollatorForSeq2Seq does not help: it fills up labels with -100, and these are full already.

    Fix: `labels = [t if m else -100 for t, m in zip(ids, attention_mask)]`, or no padding before the collator.

    Source: transformers `data/data_collator.py` 5.23.0 (default_data_collator and DataCollatorWithPadding keep labels
    as they are); run on 5.23.0.
    """
    uses = {u.kind: u for u in facts.script.tokens}
    if not request.trains or "labels-copied" not in uses or "pad-to-length" not in uses:
        return
    if any(u.kind == "mask" and u.detail in ("pad", "attention", "eos") for u in facts.script.tokens):
        return
    if any(t.trainer.function.startswith("trl.") for t in request.trains):
        return
    if calls_named(facts.script, "DataCollatorForLanguageModeling", "DataCollatorForCompletionOnlyLM") or _collates(
        request
    ):
        return
    yield Finding(
        "The labels are a copy of input_ids padded to full length, and nothing sets the padding to -100: the loss counts "
        "every pad token. Set labels to -100 where attention_mask is 0, or leave padding to the collator",
        {},
        severity="warning",
        site=uses["labels-copied"].site,
        fixes=(Advice("Set the labels to -100 where attention_mask is 0"),),
    )


def _collates(request: Requests) -> bool:
    """Whether a trainer gets a collator that is not one of transformers' plain ones: it may mask."""
    plain = ("default_data_collator", "DataCollatorForSeq2Seq", "DataCollatorWithPadding", "DefaultDataCollator")
    for train in request.trains:
        if train.trainer.function == "loop" or train.trainer.open:
            return True
        value = train.trainer.arguments.get("data_collator")
        name = getattr(value, "function", getattr(value, "name", "")) if value is not None else plain[0]
        if not str(name).endswith(plain):
            return True
    return False


@check("QD703", needs=["script"], since="0.1")
def left_padding_in_training(facts: Facts, request: Requests) -> Iterator[Finding]:
    """`padding_side="left"` in a script that trains and does not generate.

    Left padding is for generating in batches. In training it is nearly harmless: with rotary positions (Llama, Qwen,
    Mistral) and an attention mask the loss is the same but for one more target per row, the first token, asked for from
    a padding position (run on 5.23.0: 4.9727 right, 4.9683 left, 4.9727 left with that target masked). With learned
    positions (GPT-2, OPT-like) the positions shift with the padding and the loss differs (run: 5.015 and 5.019).
    Information.

    Silent where the script generates, and with TRL's trainers, whose collator pads on the right in any case (0.16 and
    newer).

    Source: run on transformers 5.23.0 with tiny Qwen2 and GPT-2; trl `trainer/sft_trainer.py`.
    """
    yield from _side(
        facts,
        request,
        "padding-side",
        "padding_side='left' in training: right is usual. With rotary positions the loss is the same but for one target "
        "a row; with learned positions it shifts them. Left is for generating in batches",
        "Use padding_side='right' for training, 'left' for generating",
    )


@check("QD704", needs=["script"], since="0.1")
def left_truncation_in_training(facts: Facts, request: Requests) -> Iterator[Finding]:
    """`truncation_side="left"` in a script that trains and does not generate.

    A sample that is too long loses its beginning: the start token, the system prompt, the question, in a vision-language
    model the image placeholders (then: `ValueError: Image features and image tokens do not match`). What stays is an
    answer to a question that is not there. Truncation on the right loses the end of the answer and its end token. Neither
    is good; only samples over `max_length` are touched, so this is information.

    Source: transformers `tokenization_utils_base.py`; facts run for the mismatch on 5.23.0.
    """
    yield from _side(
        facts,
        request,
        "truncation-side",
        "truncation_side='left' in training: a sample over the length limit loses its question and keeps an answer "
        "without it. Drop or split long samples instead, or raise the limit",
        "Leave truncation_side at 'right', and drop samples that are too long",
    )


def _side(facts: Facts, request: Requests, kind: str, message: str, advice: str) -> Iterator[Finding]:
    uses = [u for u in facts.script.tokens if u.kind == kind]
    if not request.trains or any(u.detail != "left" for u in uses) or calls_named(facts.script, ".generate"):
        return
    if kind == "padding-side" and any(t.trainer.function.startswith("trl.") for t in request.trains):
        return
    for use in uses[:1]:
        yield Finding(message, {}, severity="info", site=use.site, fixes=(Advice(advice),))


@check("QD705", needs=["script"], since="0.1")
def masked_collator_for_a_causal_model(facts: Facts, request: Requests) -> Iterator[Finding]:
    """`DataCollatorForLanguageModeling` without `mlm=False`, for causal language models.

    It masks words at random as BERT was trained, unless told not to (`mlm=True` is the default), and asks for a mask token
    when it is made: `ValueError: This tokenizer does not have a mask token which is necessary for masked language
    modeling. You should pass mlm=False` (run on 5.23.0; in 4.44 the same). Tokenizers of Llama, Qwen, Mistral and their
    like have none.

    Only where every model of the script is loaded for causal language modelling. TRL's collator of the same name is
    another.

    Fix: `mlm=False`.

    Source: transformers `data/data_collator.py` 4.44.2 and 5.23.0.
    """
    if not request.loads or not all(load.class_name.endswith("CausalLM") for load in request.loads):
        return
    for call in calls_named(facts.script, "DataCollatorForLanguageModeling"):
        if not call.function.startswith("transformers.") or call.open or call.get("mlm", True) is not True:
            continue
        if any(name.startswith(("#", "*")) for name in call.arguments):
            continue
        if "mlm" in call.arguments:
            edits = tuple(edit_span(call.site, "mlm:value", "False", "pass mlm=False", safe=True))
        else:
            edits = tuple(edit_append(call.site, "mlm=False", "pass mlm=False", safe=True))
        yield Finding(
            "DataCollatorForLanguageModeling without mlm=False is for BERT: with the tokenizer of a causal model it stops "
            "with 'This tokenizer does not have a mask token'. Pass mlm=False",
            {},
            severity="error",
            site=call.site,
            fixes=edits or (Advice("Pass mlm=False to DataCollatorForLanguageModeling"),),
        )


CHECKS: tuple[Check, ...] = (
    end_token_masked_as_padding,
    padding_counts_in_the_loss,
    left_padding_in_training,
    left_truncation_in_training,
    masked_collator_for_a_causal_model,
)
