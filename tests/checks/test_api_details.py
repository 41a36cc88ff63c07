"""What the interface checks say word for word, which fixes are safe, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import arguments, outdated
from qlora_doctor.facts import Facts, Installed, Signature
from qlora_doctor.fix import Advice, LoadKwarg, TrainSetting
from qlora_doctor.source import Call, ClassDefinition, Method, Script, Site, Unresolved
from qlora_doctor.testing import bnb, facts, findings, load, train

QD120 = outdated.outdated_load_argument
QD121 = outdated.outdated_training_argument
QD122 = outdated.outdated_argument
QD125 = arguments.unknown_load_argument
QD126 = arguments.unknown_training_argument
QD127 = arguments.unknown_quantization_argument
NOW = facts({"transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"})
SITE = Site("t.py", 3, 1, 3, 20, 60)


def reading(path: str, signature: Signature) -> Facts:
    return NOW.but(installed=Installed(signatures={path: signature}))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"evaluation_strategy": "no"},
            (
                "TrainingArguments: transformers 5.23.0 no longer takes evaluation_strategy= (removed in 4.51): it is a "
                "TypeError; write eval_strategy="
            ),
        ),
        (
            {"warmup_ratio": 0.1},
            (
                "TrainingArguments: transformers 5.23.0 no longer takes warmup_ratio= (removed in 5.15): it is a TypeError; "
                "write warmup_steps=; a warmup_steps below 1 is a ratio of all steps"
            ),
        ),
        (
            {"group_by_length": True},
            (
                "TrainingArguments: transformers 5.23.0 no longer takes group_by_length= (removed in 5.2): it is a "
                "TypeError; write train_sampling_strategy='group_by_length'"
            ),
        ),
        (
            {"use_ipex": True},
            (
                "TrainingArguments: transformers 5.23.0 no longer takes use_ipex= (removed in 4.57): it is a TypeError; "
                "drop use_ipex="
            ),
        ),
    ],
)
def test_the_message_says_what_to_write(settings: dict[str, Any], text: str) -> None:
    (found,) = findings(QD121, NOW, train(settings=settings))
    assert found.text == text


def test_the_message_of_a_load_names_its_class() -> None:
    (found,) = findings(QD120, NOW, load(quantization_config=None, load_in_8bit=True))
    assert found.text == (
        "AutoModelForCausalLM.from_pretrained: transformers 5.23.0 no longer takes load_in_8bit= (removed in 5.0): it is "
        "a TypeError; pass quantization_config=BitsAndBytesConfig(load_in_8bit=True)"
    )


def test_the_message_of_a_moved_argument_says_where_to() -> None:
    request = train("trl.SFTTrainer", {}, settings_class="trl.SFTConfig", trainer_arguments={"packing": True})
    (found,) = findings(QD121, NOW, request)
    assert found.text.endswith("it is a TypeError; give packing=True to the settings")


@pytest.mark.parametrize(
    ("settings", "safe"),
    [({"evaluation_strategy": "no"}, True), ({"logging_dir": "logs"}, False), ({"jit_mode_eval": True}, False)],
)
def test_a_fix_is_safe_only_where_the_meaning_stays(settings: dict[str, Any], safe: bool) -> None:
    (found,) = findings(QD121, NOW, train(settings=settings))
    assert (found.fixes[0].applicability == "safe") is safe


def test_what_a_person_should_know_is_said_beside_the_fix() -> None:
    (found,) = findings(QD121, NOW, train(settings={"logging_dir": "logs"}))
    assert isinstance(found.fixes[1], Advice) and "TENSORBOARD_LOGGING_DIR" in found.fixes[1].text


def test_a_value_is_translated_into_a_list() -> None:
    (found,) = findings(QD121, NOW, train(settings={"include_inputs_for_metrics": True}))
    assert found.fixes == (TrainSetting("include_for_metrics", ("inputs",), replaces="include_inputs_for_metrics"),)


def test_an_optimizer_that_was_still_there_is_silent() -> None:
    assert findings(QD121, facts({"transformers": "4.44.2"}), train(settings={"optim": "adamw_hf"})) == ()


def test_an_argument_that_the_settings_have_already_is_only_dropped() -> None:
    request = train(
        "trl.SFTTrainer", {"max_length": 64}, settings_class="trl.SFTConfig", trainer_arguments={"max_seq_length": 128}
    )
    (found,) = findings(QD121, NOW, request)
    assert found.fixes == (TrainSetting("max_seq_length", drop=True, target="trainer"),)


def test_a_trainer_whose_settings_are_not_seen_is_judged_by_itself() -> None:
    (found,) = findings(QD121, NOW, train(settings=None, trainer_arguments={"tokenizer": Unresolved("t")}))
    assert found.evidence["name"] == "tokenizer"


@pytest.mark.parametrize("check", [QD121, QD126], ids=lambda c: c.code)
def test_a_subclass_that_cannot_be_seen_may_take_what_it_likes(check: Any) -> None:
    world = reading("transformers.Trainer", Signature(("model", "args")))
    request = train(settings=None, trainer_arguments={"tokenizer": 1, "beta": 2}, subclass="other.MyTrainer")
    assert findings(check, world, request) == ()
    plain = ClassDefinition("MyTrainer", ("transformers.Trainer",), (Method("compute_loss"),))
    own = ClassDefinition("Another", ("transformers.Trainer",), (Method("__init__"),))
    assert len(findings(check, world, request, script=Script("t.py", classes=(own, plain)))) == 1


def test_llama_factory_keeps_a_field_that_transformers_dropped() -> None:
    settings = {"overwrite_output_dir": True, "evaluation_strategy": "no"}
    (found,) = findings(QD121, NOW, train("llamafactory.train", settings, source="config"))
    assert found.evidence["name"] == "evaluation_strategy"
    assert len(findings(QD121, NOW, train(settings=settings))) == 2


def test_calls_outside_any_run_are_judged_by_their_own_kind() -> None:
    other = Call("mylib.Trainer", {"tokenizer": 1}, site=SITE)
    assert findings(QD122, NOW, script=Script("t.py", calls=(other,))) == ()
    trainer = Call("transformers.Trainer", {"tokenizer": 1}, site=SITE)
    (found,) = findings(QD122, NOW, script=Script("t.py", calls=(trainer,)))
    assert found.fixes[0].target == "trainer"  # type: ignore[union-attr]
    settings = Call("transformers.TrainingArguments", {"no_cuda": True}, site=SITE)
    (found,) = findings(QD122, NOW, script=Script("t.py", calls=(settings,)))
    assert found.fixes[0].target == "settings"  # type: ignore[union-attr]
    own = Script("t.py", calls=(settings,), classes=(ClassDefinition("TrainingArguments"),))
    assert findings(QD122, NOW, script=own) == ()


def test_misspelt_load_arguments_of_other_libraries_and_guarded_calls_are_silent() -> None:
    assert findings(QD125, NOW, load("x", "unsloth.FastLanguageModel", torch_dytpe=1)) == ()
    guarded = load(torch_dytpe=1)
    assert findings(QD125, NOW, replace(guarded, call=replace(guarded.call, guarded="try"))) == ()
    beside = load(quantization_config=None, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert findings(QD125, NOW, beside) == ()


def test_a_new_argument_of_the_installed_from_pretrained_is_no_misspelling() -> None:
    request = load(device_maps="auto")
    assert len(findings(QD125, NOW, request)) == 1
    newer = reading("transformers.PreTrainedModel.from_pretrained", Signature(("device_maps",), open=True))
    assert findings(QD125, newer, request) == ()


def test_settings_files_and_guarded_calls_are_not_held_against_the_source() -> None:
    world = reading("transformers.TrainingArguments", Signature(("output_dir",)))
    request = train(settings={"frobnicate": 1})
    assert len(findings(QD126, world, request)) == 1
    assert findings(QD126, world, replace(request, source="config")) == ()
    guarded = Call("transformers.TrainingArguments", {"frobnicate": 1}, guarded="version")
    assert findings(QD126, world, replace(request, settings=guarded)) == ()
    assert findings(QD126, world, replace(request, when="version.parse(v) > w")) == ()


def test_the_message_names_the_nearest_argument_or_none() -> None:
    world = reading("transformers.TrainingArguments", Signature(("output_dir", "learning_rate")))
    (near,) = findings(QD126, world, train(settings={"learnin_rate": 1}))
    assert near.text.endswith("has no argument learnin_rate=, so this is a TypeError; learning_rate is meant")
    (far,) = findings(QD126, world, train(settings={"frobnicate": 1}))
    assert far.text.endswith("so this is a TypeError; drop it")
    path = "peft.get_peft_model"
    wrap = Call(path, {"mixd": True, "zzz": 1}, site=SITE)
    script = Script("t.py", calls=(wrap,))
    found = findings(arguments.unknown_argument, reading(path, Signature(("model", "mixed"))), script=script)
    assert [f.fixes[0].title for f in found] == ["write mixed=", "drop zzz="]


def test_an_option_that_bitsandbytes_config_never_had_is_dropped() -> None:
    (far,) = findings(QD127, NOW, load(quantization_config=bnb(frobnicate=1)))
    assert far.fixes == (LoadKwarg("frobnicate", drop=True, target="quantization"),)
    assert far.text.endswith("it has no effect, so drop it")
    (near,) = findings(QD127, NOW, load(quantization_config=bnb(llm_int8_treshold=6.0)))
    assert near.fixes[0].name == "llm_int8_threshold" and near.text.endswith("is meant")  # type: ignore[union-attr]
    (twice,) = findings(QD127, NOW, load(quantization_config=bnb(bnb_4bit_quant_typ="nf4")))
    assert twice.fixes == (LoadKwarg("bnb_4bit_quant_typ", drop=True, target="quantization"),)
