"""Padding and labels: what a script's text shows, and what the loss makes of it."""

from __future__ import annotations

import ast

import pytest

from qlora_checks.data import (
    end_token_masked_as_padding,
    left_padding_in_training,
    left_truncation_in_training,
    masked_collator_for_a_causal_model,
    padding_counts_in_the_loss,
)
from qlora_doctor.fix import Edit, SourceEdit
from qlora_doctor.gather.static.tokens import read_tokens
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call, Dotted, Script, Site, TokenUse, Value
from qlora_doctor.testing import facts, findings, load, outcome, train

NEW = facts({"transformers": "5.23.0", "trl": "1.16.0"})
LLAMA = load("meta-llama/Llama-2-7b-hf")
QWEN = load("Qwen/Qwen3-4B")
UNKNOWN = load("./my-model")
LM = Call("transformers.DataCollatorForLanguageModeling", {"tokenizer": Dotted("tokenizer"), "mlm": False})


def uses(text: str) -> tuple[TokenUse, ...]:
    return read_tokens(ast.parse(text), lambda node: None)


def script(text: str, *calls: Call) -> Script:
    return Script("t.py", calls=calls, tokens=uses(text))


PAD_IS_EOS = "tokenizer.pad_token = tokenizer.eos_token\n"
GUARDED = "if tokenizer.pad_token is None:\n    tokenizer.pad_token = tokenizer.eos_token\n"
MASK = "labels[labels == tokenizer.pad_token_id] = -100\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PAD_IS_EOS, ("pad-is-eos", "")),
        ("tok.pad_token_id = tok.eos_token_id", ("pad-is-eos", "")),
        ('tok.pad_token = "</s>"', ("pad-is-eos", "")),
        ('tok.add_special_tokens({"pad_token": tok.eos_token})', ("pad-is-eos", "")),
        (GUARDED, ("pad-is-eos", "guarded")),
        ("if not tok.pad_token_id:\n    tok.pad_token_id = tok.eos_token_id", ("pad-is-eos", "guarded")),
        ("tok.pad_token = tok.pad_token or tok.eos_token", ("pad-is-eos", "guarded")),
        ("if getattr(tok, 'pad_token') is None:\n    tok.pad_token = tok.eos_token", ("pad-is-eos", "guarded")),
        ('tok.padding_side = "left"', ("padding-side", "left")),
        ('tok = AutoTokenizer.from_pretrained(m, padding_side="left")', ("padding-side", "left")),
        ('tok.truncation_side = "left"', ("truncation-side", "left")),
        (MASK, ("mask", "pad")),
        ("labels[labels == tok.eos_token_id] = IGNORE_INDEX", ("mask", "eos")),
        ('batch["labels"][batch["attention_mask"] == 0] = -100', ("mask", "attention")),
        ("x = torch.where(ids == pad_id, -100, ids)", ("mask", "pad")),
        ("x = ids.masked_fill(mask_attention == 0, -100)", ("mask", "attention")),
        ("x = [-100 if t == tok.pad_token_id else t for t in ids]", ("mask", "pad")),
        ("labels[:, :n] = -100", ("mask", "other")),
        ('x["labels"] = x["input_ids"].copy()', ("labels-copied", "")),
        ("labels = input_ids.clone()", ("labels-copied", "")),
        ('out["labels"] = list(out["input_ids"])', ("labels-copied", "")),
        ('out = dict(input_ids=ids, labels=enc["input_ids"])', ("labels-copied", "")),
        ('enc = tok(text, padding="max_length", max_length=512)', ("pad-to-length", "")),
    ],
)
def test_a_use_of_padding_or_labels_is_read_off_the_syntax(text: str, expected: tuple[str, str]) -> None:
    assert expected in [(u.kind, u.detail) for u in uses(text)]


@pytest.mark.parametrize(
    "text",
    [
        "tok.pad_token = tok.unk_token",
        'tok.pad_token = "<pad>"',
        'tok.add_special_tokens({"pad_token": "<pad>"})',
        "labels = np.where(labels != -100, labels, tok.pad_token_id)",
        "labels = make_labels(input_ids)",
        "labels = [-100] * n + answer_ids",
        'enc = tok(text, padding="longest")',
        "model.config.pad_token_id = tok.pad_token_id",
    ],
)
def test_what_only_looks_alike_is_not_read_as_a_use(text: str) -> None:
    assert [u for u in uses(text) if u.kind != "padding-side"] == []


def verdict(source: Script, model: LoadRequest = LLAMA, trainer: TrainRequest | None = None) -> str | None:
    found = findings(end_token_masked_as_padding, NEW, model, trainer or train(settings={}), script=source)
    return found[0].severity if found else None


@pytest.mark.parametrize(
    ("text", "calls", "model", "expected"),
    [
        (PAD_IS_EOS, (LM,), LLAMA, "warning"),
        (PAD_IS_EOS, (LM,), QWEN, "warning"),
        (PAD_IS_EOS + MASK, (), UNKNOWN, "warning"),
        (GUARDED, (LM,), LLAMA, "warning"),
        (GUARDED, (LM,), UNKNOWN, "info"),
        (GUARDED, (LM,), QWEN, None),
        (PAD_IS_EOS, (), LLAMA, None),
        ("tokenizer.pad_token = tokenizer.unk_token", (LM,), LLAMA, None),
        (PAD_IS_EOS + 'batch["labels"][batch["attention_mask"] == 0] = -100', (), LLAMA, None),
        (PAD_IS_EOS, (Call("transformers.DataCollatorForSeq2Seq"),), LLAMA, None),
        (PAD_IS_EOS, (Call("transformers.DataCollatorForLanguageModeling"),), LLAMA, None),
        (PAD_IS_EOS, (Call("trl.trainer.sft_trainer.DataCollatorForLanguageModeling", {"mlm": False}),), LLAMA, None),
    ],
)
def test_the_end_is_masked_only_where_labels_are_masked_by_the_pad_token(
    text: str, calls: tuple[Call, ...], model: LoadRequest, expected: str | None
) -> None:
    assert verdict(script(text, *calls), model) == expected


def test_a_script_that_only_generates_is_left_alone() -> None:
    assert outcome(end_token_masked_as_padding, NEW, LLAMA, script=script(PAD_IS_EOS, LM)) == "ok"


@pytest.mark.parametrize(("trl", "expected"), [("0.15.2", "found"), ("0.16.1", "ok"), ("1.16.0", "ok")])
def test_the_sft_trainer_masks_the_end_below_trl_0_16(trl: str, expected: str) -> None:
    request = train("trl.SFTTrainer", {}, load=LLAMA)
    here = facts({"transformers": "4.48.0", "trl": trl})
    assert outcome(end_token_masked_as_padding, here, LLAMA, request, script=script(PAD_IS_EOS)) == expected


def test_the_sft_trainer_with_a_collator_of_its_own_is_left_alone() -> None:
    here = facts({"transformers": "4.48.0", "trl": "0.15.2"})
    own = train("trl.SFTTrainer", {}, load=LLAMA, trainer_arguments={"data_collator": Dotted("collate")})
    subclass = train("trl.SFTTrainer", {}, load=LLAMA, subclass="Mine")
    for request in (own, subclass):
        assert outcome(end_token_masked_as_padding, here, LLAMA, request, script=script(PAD_IS_EOS)) == "ok"


COPIED = 'out = tok(t, padding="max_length", max_length=512)\nout["labels"] = out["input_ids"].copy()\n'
COLLATOR: dict[str, Value] = {"data_collator": Dotted("transformers.default_data_collator")}


def test_a_mask_of_the_question_alone_does_not_reach_the_padding() -> None:
    source = script(COPIED + "labels[:, :n] = -100")
    assert outcome(padding_counts_in_the_loss, NEW, train(settings={}), script=source) == "found"


@pytest.mark.parametrize("arguments", [{}, COLLATOR, {"data_collator": Call("transformers.DataCollatorForSeq2Seq")}])
def test_padded_labels_that_nothing_masks_are_a_warning(arguments: dict[str, Value]) -> None:
    request = train(settings={}, trainer_arguments=arguments)
    assert [f.severity for f in findings(padding_counts_in_the_loss, NEW, request, script=script(COPIED))] == [
        "warning"
    ]


@pytest.mark.parametrize(
    ("source", "request_"),
    [
        (script(COPIED + MASK), train(settings={})),
        (script(COPIED + "x = ids.masked_fill(attention_mask == 0, -100)"), train(settings={})),
        (script(COPIED, LM), train(settings={}, trainer_arguments={"data_collator": LM})),
        (script(COPIED), train(settings={}, trainer_arguments={"data_collator": Dotted("my_collator")})),
        (script(COPIED), train("trl.SFTTrainer", {})),
        (script(COPIED), train("loop")),
        (script('x["labels"] = x["input_ids"].copy()'), train(settings={})),
    ],
    ids=["masked", "masked by attention", "made anew", "own collator", "trl", "own loop", "padded by the collator"],
)
def test_labels_that_something_may_mask_are_left_alone(source: Script, request_: TrainRequest) -> None:
    assert outcome(padding_counts_in_the_loss, NEW, request_, script=source) == "ok"


def test_the_left_side_is_information_in_training_and_nothing_for_generating() -> None:
    source = script('tok.padding_side = "left"\ntok.truncation_side = "left"')
    generating = script('tok.padding_side = "left"\ntok.truncation_side = "left"', Call(".generate", receiver="model"))
    switching = script('tok.padding_side = "left"\ntok.padding_side = "right"\ntok.truncation_side = "right"')
    for check in (left_padding_in_training, left_truncation_in_training):
        assert [f.severity for f in findings(check, NEW, train(settings={}), script=source)] == ["info"]
        assert outcome(check, NEW, script=source) == "ok"
        assert outcome(check, NEW, train(settings={}), script=generating) == "ok"
        assert outcome(check, NEW, train(settings={}), script=switching) == "ok"


def collator(**arguments: Value) -> Call:
    text = "c = DataCollatorForLanguageModeling(tokenizer)"
    spans = {"tokenizer": (36, 45), "tokenizer:value": (36, 45)}
    site = Site("t.py", 1, 5, 1, 4, len(text), sha256="0" * 64, spans=spans)
    return Call(
        "transformers.DataCollatorForLanguageModeling", {"tokenizer": Dotted("tokenizer"), **arguments}, site=site
    )


def test_a_collator_that_masks_words_for_a_causal_model_is_an_error_and_the_edit_says_mlm_false() -> None:
    (finding,) = findings(masked_collator_for_a_causal_model, NEW, QWEN, script=Script("t.py", calls=(collator(),)))
    (fix,) = finding.fixes
    assert isinstance(fix, SourceEdit)
    assert (finding.severity, fix.edits) == ("error", (Edit(45, 45, ", mlm=False"),))


@pytest.mark.parametrize(
    ("call", "model"),
    [
        (collator(mlm=False), QWEN),
        (collator(), load("bert-base-uncased", "transformers.AutoModelForMaskedLM")),
        (Call("trl.DataCollatorForLanguageModeling", {"pad_token_id": 0}), QWEN),
    ],
    ids=["mlm=False", "a masked model", "trl's collator"],
)
def test_a_collator_that_does_not_mask_words_is_left_alone(call: Call, model: LoadRequest) -> None:
    assert outcome(masked_collator_for_a_causal_model, NEW, model, script=Script("t.py", calls=(call,))) == "ok"
