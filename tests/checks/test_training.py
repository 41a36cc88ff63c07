"""Training arguments, trainers and their overrides, judged by the installed versions and the GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from qlora_checks.overrides import columns_dropped_before_the_collator, trainer_override_takes_too_little
from qlora_checks.precision import bf16_training_without_bfloat16, fp16_and_bf16_together
from qlora_checks.training import (
    best_model_without_matching_strategies,
    cache_with_gradient_checkpointing,
    eight_bit_optimizer_without_gpu,
    evaluation_without_an_eval_set,
)
from qlora_doctor.facts import Installed, Signature
from qlora_doctor.fix import SourceEdit, TrainSetting
from qlora_doctor.request import TrainRequest
from qlora_doctor.source import Assignment, Call, ClassDefinition, Dotted, Method, Script, Site, Unresolved, Value
from qlora_doctor.testing import RTX_3060, T4, assert_fixed_by, facts, findings, load, outcome, train

NEW = facts({"transformers": "5.23.0", "bitsandbytes": "0.50.2"}, gpus=(RTX_3060,))
LLAVA = load("llava-hf/llava-1.5-7b-hf", "transformers.LlavaForConditionalGeneration")
UNRESOLVED = Unresolved("an argument of main()")


def with_settings(trainer_arguments: Mapping[str, Value] | None = None, /, **settings: Any) -> TrainRequest:
    return train(settings=settings, trainer_arguments=trainer_arguments or {})


def test_fp16_and_bf16_exclude_each_other_and_the_one_that_does_not_fit_the_card_goes() -> None:
    both = with_settings(fp16=True, bf16=True)
    assert_fixed_by(fp16_and_bf16_together, NEW, both)
    for gpu, dropped in ((RTX_3060, "fp16"), (T4, "bf16")):
        (finding,) = findings(fp16_and_bf16_together, NEW.but(gpus=(gpu,)), both)
        assert (finding.severity, finding.fixes[0].title) == ("error", f"drop {dropped}=")


def test_where_a_settings_file_may_be_added_to_the_one_that_goes_is_written_as_off() -> None:
    call = Call("transformers.TrainingArguments", {"fp16": True, "bf16": True}, open="a script may pass more")
    request = TrainRequest(trainer=Call("transformers.Trainer"), settings=call)
    (finding,) = findings(fp16_and_bf16_together, NEW, request)
    assert (finding.fixes[0].name, finding.fixes[0].value, finding.fixes[0].drop) == ("fp16", False, False)
    assert_fixed_by(fp16_and_bf16_together, NEW, request)


def test_one_precision_or_one_that_is_decided_at_run_time_is_left_alone() -> None:
    assert outcome(fp16_and_bf16_together, NEW, with_settings(fp16=False, bf16=True)) == "ok"
    assert outcome(fp16_and_bf16_together, NEW, with_settings(fp16=UNRESOLVED, bf16=UNRESOLVED)) == "unknown"


def test_bf16_is_a_warning_on_a_card_without_it_and_information_without_a_card() -> None:
    bf16 = with_settings(bf16=True)
    assert_fixed_by(bf16_training_without_bfloat16, NEW.but(gpus=(T4,)), bf16)
    assert [f.severity for f in findings(bf16_training_without_bfloat16, NEW.but(gpus=(T4,)), bf16)] == ["warning"]
    assert [f.severity for f in findings(bf16_training_without_bfloat16, NEW.but(gpus=()), bf16)] == ["info"]
    assert outcome(bf16_training_without_bfloat16, NEW, bf16) == "ok"
    assert outcome(bf16_training_without_bfloat16, NEW.but(gpus=()), with_settings(bf16=True, use_cpu=True)) == "ok"


def test_the_way_to_float16_is_not_through_trl() -> None:
    here = facts({"transformers": "5.23.0", "trl": "1.16.0"}, gpus=(T4,))
    stock, trl = train(settings={"bf16": True}), train("trl.SFTTrainer", {"bf16": True}, settings_class="trl.SFTConfig")
    fixes = [findings(bf16_training_without_bfloat16, here, r)[0].fixes[0].kind for r in (stock, trl)]
    assert fixes == ["train-setting", "advice"]


@pytest.mark.parametrize(
    ("trl", "settings", "expected"),
    [
        ("1.16.0", {}, "found"),
        ("1.16.0", {"fp16": True}, "ok"),
        ("1.16.0", {"bf16": False}, "ok"),
        ("0.16.1", {}, "ok"),
    ],
)
def test_trls_configs_take_bf16_by_themselves(trl: str, settings: dict[str, Value], expected: str) -> None:
    here = facts({"transformers": "5.23.0", "trl": trl}, gpus=(T4,))
    request = train("trl.SFTTrainer", settings, settings_class="trl.SFTConfig")
    assert outcome(bf16_training_without_bfloat16, here, request) == expected
    assert outcome(bf16_training_without_bfloat16, here, train(settings=settings)) == "ok"


@pytest.mark.parametrize(
    ("name", "version"), [("eval_strategy", "5.23.0"), ("evaluation_strategy", "4.40.2")], ids=["new name", "old name"]
)
def test_evaluating_without_an_eval_set_is_an_error_and_no_evaluation_cures_it(name: str, version: str) -> None:
    request = with_settings({"train_dataset": Dotted("ds")}, **{name: "steps"})
    here = facts({"transformers": version})
    assert [f.severity for f in findings(evaluation_without_an_eval_set, here, request)] == ["error"]
    assert_fixed_by(evaluation_without_an_eval_set, here, request)


def test_a_strategy_under_its_old_name_is_left_to_the_check_that_renames_it() -> None:
    request = with_settings({"train_dataset": Dotted("ds")}, evaluation_strategy="steps")
    (finding,) = findings(evaluation_without_an_eval_set, NEW, request)
    assert finding.text.endswith("Pass eval_dataset=, or eval_strategy='no'")
    assert (finding.severity, [f.applicability for f in finding.fixes]) == ("error", ["display-only"])


@pytest.mark.parametrize(
    ("arguments", "strategy", "expected"),
    [
        ({"eval_dataset": Dotted("ds")}, "steps", "ok"),
        ({}, "no", "ok"),
        ({"#3": Dotted("ds")}, "steps", "ok"),
        ({"eval_dataset": UNRESOLVED}, "steps", "ok"),
        ({"eval_dataset": Dotted("ds")}, UNRESOLVED, "ok"),
        ({}, UNRESOLVED, "unknown"),
    ],
    ids=["given", "no evaluation", "positional", "made at run time", "given, strategy open", "strategy open"],
)
def test_an_eval_set_that_is_given_or_cannot_be_seen_is_no_finding(
    arguments: dict[str, Value], strategy: Value, expected: str
) -> None:
    assert outcome(evaluation_without_an_eval_set, NEW, with_settings(arguments, eval_strategy=strategy)) == expected


def test_a_subclass_that_makes_its_own_eval_set_is_left_alone() -> None:
    own = ClassDefinition("Mine", ("transformers.Trainer",), (Method("__init__"),))
    request = train(settings={"eval_strategy": "steps"}, subclass="Mine")
    script = Script("train.py", classes=(own,))
    assert outcome(evaluation_without_an_eval_set, NEW, request, script=script) == "ok"
    bare = Script("train.py", classes=(ClassDefinition("Mine", ("transformers.Trainer",)),))
    assert outcome(evaluation_without_an_eval_set, NEW, request, script=bare) == "found"


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "steps", "save_strategy": "epoch"},
        {"eval_strategy": "no"},
        {},
        {"eval_strategy": "steps", "eval_steps": 50, "save_steps": 75},
        {"eval_strategy": "steps", "eval_steps": 200},
    ],
)
def test_the_best_model_needs_saving_and_evaluating_to_match(settings: dict[str, Value]) -> None:
    assert_fixed_by(best_model_without_matching_strategies, NEW, with_settings(load_best_model_at_end=True, **settings))


@pytest.mark.parametrize(("strategy", "fix"), [("epoch", "save_strategy"), ("no", "load_best_model_at_end")])
def test_the_best_model_is_kept_where_something_is_evaluated(strategy: str, fix: str) -> None:
    request = with_settings(load_best_model_at_end=True, eval_strategy=strategy)
    (finding,) = findings(best_model_without_matching_strategies, NEW, request)
    assert [f.name for f in finding.fixes if isinstance(f, TrainSetting)] == [fix]


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 50, "save_steps": 100},
        {"eval_strategy": "epoch", "save_strategy": "best"},
        {"eval_strategy": "steps", "logging_steps": 10},
        {"evaluation_strategy": "epoch", "save_strategy": Dotted("transformers.IntervalStrategy.EPOCH")},
        {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.2},
    ],
)
def test_matching_strategies_are_left_alone(settings: dict[str, Value]) -> None:
    request = with_settings(load_best_model_at_end=True, **settings)
    assert outcome(best_model_without_matching_strategies, NEW, request) == "ok"


def test_a_cache_that_is_asked_for_with_checkpointing_is_information_and_one_that_is_not_is_nothing() -> None:
    request = with_settings(gradient_checkpointing=True)
    asked = Script("train.py", assignments=(Assignment("model.config.use_cache", True),))
    (finding,) = findings(cache_with_gradient_checkpointing, NEW, request, script=asked)
    assert finding.severity == "info"
    off = Script("train.py", assignments=(Assignment("model.config.use_cache", False),))
    assert outcome(cache_with_gradient_checkpointing, NEW, request, script=off) == "ok"
    assert outcome(cache_with_gradient_checkpointing, NEW, with_settings(), script=asked) == "ok"


def test_an_8_bit_optimizer_without_a_gpu_fails_with_an_old_bitsandbytes_only() -> None:
    old = facts({"bitsandbytes": "0.48.2"}, gpus=())
    request = with_settings(optim="paged_adamw_8bit")
    assert_fixed_by(eight_bit_optimizer_without_gpu, old, request)
    assert outcome(eight_bit_optimizer_without_gpu, old.but(gpus=(RTX_3060,)), request) == "ok"
    assert outcome(eight_bit_optimizer_without_gpu, NEW.but(gpus=()), request) == "ok"
    assert outcome(eight_bit_optimizer_without_gpu, old, with_settings(optim="adamw_torch")) == "ok"


OLD_LOSS = ("self", "model", "inputs", "return_outputs")
OLD_TEXT = "    def compute_loss(self, model, inputs, return_outputs=False):\n"


def overriding(*parameters: str, name: str = "compute_loss", base: str = "transformers.Trainer") -> Script:
    site = Site("t.py", 1, 5, 1, 4, 63, sha256="0" * 64, spans={"parameters": (21, 62)})
    method = Method(name, parameters, site=site)
    return Script("t.py", classes=(ClassDefinition("Mine", (base,), (method,)),))


@pytest.mark.parametrize("base", ["transformers.Trainer", "transformers.Seq2SeqTrainer", "trl.SFTTrainer"])
def test_a_compute_loss_of_before_4_46_is_an_error_and_the_edit_adds_the_parameter(base: str) -> None:
    request = train(settings={}, subclass="Mine")
    (finding,) = findings(trainer_override_takes_too_little, NEW, request, script=overriding(*OLD_LOSS, base=base))
    assert finding.severity == "error"
    (edit,) = finding.fixes
    assert isinstance(edit, SourceEdit)
    text = OLD_TEXT[: edit.edits[0].start] + edit.edits[0].text + OLD_TEXT[edit.edits[0].end :]
    assert text == "    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):\n"


@pytest.mark.parametrize(
    ("version", "script", "expected"),
    [
        ("4.45.2", overriding(*OLD_LOSS), "ok"),
        ("4.46.0", overriding(*OLD_LOSS), "found"),
        ("5.23.0", overriding(*OLD_LOSS, "**kwargs"), "ok"),
        ("5.23.0", overriding(*OLD_LOSS, "num_items_in_batch"), "ok"),
        ("5.23.0", overriding(*OLD_LOSS, "*args"), "found"),
        ("5.23.0", overriding(*OLD_LOSS, base="torch.nn.Module"), "ok"),
        ("5.23.0", overriding(*OLD_LOSS, base="pytorch_lightning.Trainer"), "ok"),
        ("5.23.0", overriding(*OLD_LOSS, base="transformers.PreTrainedModel"), "ok"),
        ("5.23.0", overriding("self", "model", "inputs", name="training_step"), "found"),
        ("5.23.0", overriding("self", "model", "inputs", "n", name="training_step"), "ok"),
        ("5.23.0", overriding("self", "logs", name="log"), "found"),
        ("5.23.0", overriding("self", "logs", "*args", name="log"), "ok"),
        ("4.46.3", overriding("self", "logs", name="log"), "ok"),
    ],
)
def test_an_override_is_wrong_only_where_the_installed_trainer_passes_more(
    version: str, script: Script, expected: str
) -> None:
    request = train(settings={}, subclass="Mine")
    here = facts({"transformers": version})
    assert outcome(trainer_override_takes_too_little, here, request, script=script) == expected


def test_what_the_installed_trainer_takes_beats_its_version() -> None:
    request = train(settings={}, subclass="Mine")
    for parameters, expected in ((("self", "model", "inputs"), "ok"), (("self", "num_items_in_batch"), "found")):
        own = Installed(signatures={"transformers.Trainer.compute_loss": Signature(parameters)})
        here = facts({"transformers": "4.46.0.dev0"}, installed=own)
        assert outcome(trainer_override_takes_too_little, here, request, script=overriding(*OLD_LOSS)) == expected


def test_an_override_that_nothing_uses_is_a_warning_and_one_in_a_library_module_an_error() -> None:
    script = overriding(*OLD_LOSS)
    (unused,) = findings(trainer_override_takes_too_little, NEW, train(settings={}), script=script)
    (library,) = findings(trainer_override_takes_too_little, NEW, script=script)
    assert (unused.severity, library.severity) == ("warning", "error")


def test_a_class_built_on_a_class_of_the_script_is_judged_too() -> None:
    first = ClassDefinition("Base", ("transformers.Trainer",))
    second = ClassDefinition("Mine", ("Base",), (Method("compute_loss", OLD_LOSS),))
    script = Script("t.py", classes=(first, second))
    request = train(settings={}, subclass="Mine")
    assert outcome(trainer_override_takes_too_little, NEW, request, script=script) == "found"


RAW: dict[str, Value] = {"data_collator": Dotted("collate"), "train_dataset": Call("datasets.load_dataset")}


def test_a_vision_collator_on_raw_rows_needs_unused_columns_kept() -> None:
    request = train(settings={}, load=LLAVA, trainer_arguments=RAW)
    (finding,) = findings(columns_dropped_before_the_collator, NEW, request, script=Script("t.py"))
    assert (finding.severity, finding.fixes[0].title) == ("error", "pass remove_unused_columns=False")


@pytest.mark.parametrize(
    "request_",
    [
        train(settings={"remove_unused_columns": False}, load=LLAVA, trainer_arguments=RAW),
        train(settings={}, load=load("Qwen/Qwen3-4B"), trainer_arguments=RAW),
        train(settings={}, load=LLAVA, trainer_arguments={**RAW, "train_dataset": UNRESOLVED}),
        train(settings={}, load=LLAVA, trainer_arguments={**RAW, "train_dataset": Call("Records", open="own class")}),
        train(settings={}, load=LLAVA, trainer_arguments={"train_dataset": RAW["train_dataset"]}),
        train("trl.SFTTrainer", {}, load=LLAVA, trainer_arguments=RAW),
    ],
    ids=["kept", "text model", "mapped data", "own data set", "no collator", "trl"],
)
def test_a_collator_that_gets_its_columns_is_left_alone(request_: TrainRequest) -> None:
    assert outcome(columns_dropped_before_the_collator, NEW, request_, script=Script("t.py")) == "ok"
