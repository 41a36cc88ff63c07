"""Arguments that were renamed, moved, removed, or never there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import arguments, outdated
from qlora_checks.api import changes, nearest
from qlora_doctor.facts import Installed, Signature, Unknown
from qlora_doctor.fix import Advice, LoadKwarg, TrainSetting
from qlora_doctor.source import Call, ClassDefinition, Dotted, Method, Script, Site, Unresolved
from qlora_doctor.testing import assert_fixed_by, bnb, facts, findings, load, outcome, train

QD120 = outdated.outdated_load_argument
QD121 = outdated.outdated_training_argument
QD125 = arguments.unknown_load_argument
QD126 = arguments.unknown_training_argument
QD127 = arguments.unknown_quantization_argument
NOW = facts({"transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"})


def reading(**signatures: Signature) -> Any:
    """The current stack, with these signatures read from its source."""
    paths = {
        "TrainingArguments": "transformers.TrainingArguments",
        "Trainer": "transformers.Trainer",
        "LoraConfig": "peft.LoraConfig",
        "BitsAndBytesConfig": "transformers.BitsAndBytesConfig",
    }
    return NOW.but(installed=Installed(signatures={paths[k]: v for k, v in signatures.items()}))


@pytest.mark.parametrize("value", [True, False, None])
def test_load_in_4bit_as_a_keyword_is_an_error_in_transformers_5_whatever_its_value(value: Any) -> None:
    request = load(quantization_config=None, load_in_4bit=value)
    (found,) = findings(QD120, NOW, request)
    assert found.severity == "error"
    assert_fixed_by(QD120, NOW, request)


def test_load_in_4bit_becomes_a_config_with_the_options_beside_it() -> None:
    request = load(quantization_config=None, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    (found,) = findings(QD120, NOW, request)
    config = Call("transformers.BitsAndBytesConfig", arguments={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    assert found.fixes[-1] == LoadKwarg("quantization_config", config)
    assert [f.name for f in found.fixes if isinstance(f, LoadKwarg) and f.drop] == [
        "load_in_4bit",
        "bnb_4bit_quant_type",
    ]


def test_load_in_4bit_beside_a_config_is_dropped() -> None:
    request = load(load_in_4bit=True)
    (found,) = findings(QD120, NOW, request)
    assert found.fixes == (LoadKwarg("load_in_4bit", drop=True),)


def test_load_in_4bit_is_a_note_where_it_is_only_deprecated_and_silent_before() -> None:
    request = load(quantization_config=None, load_in_4bit=True)
    (note,) = findings(QD120, facts({"transformers": "4.57.6"}), request)
    assert note.severity == "info"
    assert findings(QD120, facts({"transformers": "4.36.2"}), request) == ()


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("use_auth_token", True, LoadKwarg("token", True, replaces="use_auth_token")),
        ("resume_download", True, LoadKwarg("resume_download", drop=True)),
        (
            "use_flash_attention_2",
            True,
            LoadKwarg("attn_implementation", "flash_attention_2", replaces="use_flash_attention_2"),
        ),
        ("use_flash_attention_2", False, LoadKwarg("use_flash_attention_2", drop=True)),
    ],
)
def test_what_transformers_5_removed_from_a_load_is_an_error_with_its_successor(
    name: str, value: Any, fix: LoadKwarg
) -> None:
    request = load(**{name: value})
    (found,) = findings(QD120, NOW, request)
    assert found.severity == "error"
    assert found.fixes == (fix,)
    assert_fixed_by(QD120, NOW, request)


def test_the_dtype_keyword_is_the_one_of_the_installed_version() -> None:
    bf16 = Dotted("torch.bfloat16")
    (note,) = findings(QD120, NOW, load(torch_dtype=bf16))
    assert note.severity == "info"
    assert note.fixes == (LoadKwarg("dtype", bf16, replaces="torch_dtype"),)
    old = facts({"transformers": "4.44.2"})
    (error,) = findings(QD120, old, load(dtype=bf16))
    assert error.severity == "error"
    assert error.fixes == (LoadKwarg("torch_dtype", bf16, replaces="dtype"),)
    assert findings(QD120, old, load(torch_dtype=bf16)) == ()
    assert findings(QD120, NOW, load(dtype=bf16)) == ()


def test_other_libraries_loads_and_tested_versions_are_not_judged() -> None:
    assert findings(QD120, NOW, load("unsloth/x", "unsloth.FastLanguageModel", load_in_4bit=True)) == ()
    tested = replace(load(load_in_4bit=True), when="version.parse(transformers.__version__) < 5")
    assert findings(QD120, NOW, tested) == ()
    caught = load(load_in_4bit=True)
    assert findings(QD120, NOW, replace(caught, call=replace(caught.call, guarded="try"))) == ()
    assert outcome(QD120, facts({}), load(use_auth_token=True)) == "ok"
    assert outcome(QD120, facts(), load(use_auth_token=True)) == "skipped"


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"evaluation_strategy": "steps"}, TrainSetting("eval_strategy", "steps", replaces="evaluation_strategy")),
        ({"warmup_ratio": 0.1}, TrainSetting("warmup_steps", 0.1, replaces="warmup_ratio")),
        ({"warmup_ratio": 0.1, "warmup_steps": 50}, TrainSetting("warmup_ratio", drop=True)),
        (
            {"group_by_length": True},
            TrainSetting("train_sampling_strategy", "group_by_length", replaces="group_by_length"),
        ),
        ({"group_by_length": False}, TrainSetting("group_by_length", drop=True)),
        ({"no_cuda": Unresolved("argparse")}, TrainSetting("use_cpu", Unresolved("argparse"), replaces="no_cuda")),
        ({"overwrite_output_dir": True}, TrainSetting("overwrite_output_dir", drop=True)),
        ({"include_inputs_for_metrics": True}, None),
        ({"optim": "adamw_hf"}, TrainSetting("optim", "adamw_torch")),
    ],
)
def test_removed_training_arguments_are_errors_with_their_successors(
    settings: dict[str, Any], fix: TrainSetting | None
) -> None:
    request = train(settings=settings)
    (found,) = findings(QD121, NOW, request)
    assert found.severity == "error"
    if fix is not None:
        assert found.fixes == (fix,)
    assert_fixed_by(QD121, NOW, request)


def test_a_value_that_cannot_be_read_is_not_translated() -> None:
    (found,) = findings(QD121, NOW, train(settings={"group_by_length": Unresolved("argparse")}))
    assert [type(fix) for fix in found.fixes] == [Advice]
    assert "train_sampling_strategy" in found.text


def test_a_deprecated_training_argument_is_a_note_and_a_valid_one_is_silent() -> None:
    settings = {"evaluation_strategy": "steps"}
    (note,) = findings(QD121, facts({"transformers": "4.46.3"}), train(settings=settings))
    assert note.severity == "info"
    assert findings(QD121, facts({"transformers": "4.40.2"}), train(settings=settings)) == ()
    assert findings(QD121, NOW, train(settings={"eval_strategy": "steps", "warmup_steps": 10})) == ()


def test_a_name_that_came_later_is_an_error_before() -> None:
    request = train(settings={"eval_strategy": "steps"})
    (found,) = findings(QD121, facts({"transformers": "4.40.2"}), request)
    assert found.severity == "error"
    assert found.fixes == (TrainSetting("evaluation_strategy", "steps", replaces="eval_strategy"),)
    assert findings(QD121, facts({"transformers": "4.40.2"}), train(settings={"warmup_steps": 10})) == ()


def test_the_installed_source_beats_the_table() -> None:
    request = train(settings={"warmup_ratio": 0.1})
    kept = reading(TrainingArguments=Signature(("output_dir", "warmup_ratio", "warmup_steps")))
    (note,) = findings(QD121, kept, request)
    assert note.severity == "info"


def test_tokenizer_became_processing_class() -> None:
    request = train(settings={}, trainer_arguments={"tokenizer": Unresolved("a variable")})
    (found,) = findings(QD121, NOW, request)
    assert found.severity == "error"
    assert found.fixes == (
        TrainSetting("processing_class", Unresolved("a variable"), replaces="tokenizer", target="trainer"),
    )
    assert_fixed_by(QD121, NOW, request)
    (note,) = findings(QD121, facts({"transformers": "4.57.6"}), request)
    assert note.severity == "info"


def test_a_subclass_with_its_own_constructor_may_take_what_it_likes() -> None:
    request = train(settings={}, trainer_arguments={"tokenizer": Dotted("tok")}, subclass="MyTrainer")
    own = Script("t.py", classes=(ClassDefinition("MyTrainer", ("transformers.Trainer",), (Method("__init__"),)),))
    assert findings(QD121, NOW, request, script=own) == ()
    loss = Script("t.py", classes=(ClassDefinition("MyTrainer", ("transformers.Trainer",), (Method("compute_loss"),)),))
    assert len(findings(QD121, NOW, request, script=loss)) == 1


def test_what_sfttrainer_gave_to_sftconfig_is_moved_there() -> None:
    request = train(
        "trl.SFTTrainer",
        {"output_dir": "o"},
        settings_class="trl.SFTConfig",
        trainer_arguments={"dataset_text_field": "text", "max_seq_length": 1024},
    )
    found = findings(QD121, NOW, request)
    assert [f.severity for f in found] == ["error", "error"]
    assert TrainSetting("max_length", 1024) in found[1].fixes
    assert_fixed_by(QD121, NOW, request)


def test_without_an_sftconfig_the_move_is_left_to_a_person() -> None:
    request = train("trl.SFTTrainer", {}, trainer_arguments={"max_seq_length": 1024})
    (found,) = findings(QD121, NOW, request)
    assert isinstance(found.fixes[0], Advice) and "SFTConfig" in found.fixes[0].text


def test_calls_that_belong_to_no_run_are_judged_once() -> None:
    site = Site("t.py", 3, 1, 3, 20, 60)
    orphan = Call("transformers.TrainingArguments", {"evaluation_strategy": "no"}, site=site)
    script = Script("t.py", calls=(orphan,))
    (found,) = findings(outdated.outdated_argument, NOW, script=script)
    assert found.severity == "error"
    run = replace(train(settings={}), settings=orphan)
    assert findings(outdated.outdated_argument, NOW, run, script=script) == ()


def test_settings_under_a_frameworks_own_names_are_left_to_it() -> None:
    request = train("axolotl.train", {"warmup_ratio": 0.1}, source="config")
    assert findings(QD121, NOW, request) == ()
    factory = train("llamafactory.train", {"warmup_ratio": 0.1}, source="config")
    assert len(findings(QD121, NOW, factory)) == 1


def test_every_row_of_the_table_can_be_acted_on() -> None:
    for change in changes("argument"):
        assert change.calls and (change.removed or change.deprecated), change.name
        assert change.new or change.drop or change.advice or change.moved, change.name


def test_a_misspelt_load_argument_is_named_and_renamed() -> None:
    request = load(torch_dytpe=Dotted("torch.float16"))
    (found,) = findings(QD125, NOW, request)
    assert found.severity == "error"
    assert found.fixes == (LoadKwarg("torch_dtype", Dotted("torch.float16"), replaces="torch_dytpe"),)
    assert_fixed_by(QD125, NOW, request)


@pytest.mark.parametrize(
    "name", ["use_cache", "num_labels", "rope_scaling", "output_attentions", "max_memory", "id2label"]
)
def test_config_attributes_and_known_arguments_are_silent(name: str) -> None:
    assert findings(QD125, NOW, load(**{name: 1})) == ()


def test_tokenizer_arguments_are_refused_by_native_models_only() -> None:
    (found,) = findings(QD125, NOW, load("Qwen/Qwen3-0.6B", padding_side="left"))
    assert "tokenizer" in found.text
    assert findings(QD125, NOW, load("Qwen/Qwen-VL-Chat", bf16=True, trust_remote_code=True)) == ()
    assert outcome(QD125, facts({}), load(padding_side="left")) == "unknown"


def test_bnb_options_beside_load_in_4bit_were_right_before_transformers_5() -> None:
    request = load(quantization_config=None, bnb_4bit_quant_type="nf4")
    assert findings(QD125, facts({"transformers": "4.57.6"}), request) == ()
    (found,) = findings(QD125, NOW, request)
    assert "BitsAndBytesConfig" in found.text


FIELDS = Signature(("output_dir", "learning_rate", "per_device_train_batch_size", "gradient_checkpointing"))


def test_an_argument_that_no_table_knows_is_found_in_the_installed_source() -> None:
    world = reading(TrainingArguments=FIELDS)
    request = train(settings={"output_dir": "o", "gradient_checkpoint": True})
    (found,) = findings(QD126, world, request)
    assert found.severity == "error"
    assert "gradient_checkpointing" in found.text
    assert_fixed_by(QD126, world, request)


def test_a_clear_misspelling_is_a_safe_fix_and_a_guess_is_not() -> None:
    world = reading(TrainingArguments=FIELDS)
    (clear,) = findings(QD126, world, train(settings={"learning_rte": 1e-4}))
    assert clear.fixes[0].applicability == "safe"
    (guess,) = findings(QD126, world, train(settings={"batch_size": 4}))
    assert guess.fixes == (
        TrainSetting("per_device_train_batch_size", 4, replaces="batch_size", applicability="unsafe"),
    )
    (lost,) = findings(QD126, world, train(settings={"frobnicate": 4}))
    assert lost.fixes == (TrainSetting("frobnicate", drop=True, applicability="unsafe"),)


def test_lora_rank_is_r() -> None:
    world = reading(LoraConfig=Signature(("r", "lora_alpha", "target_modules")))
    request = train(settings={}, lora={"rank": 8})
    (found,) = findings(QD126, world, request)
    assert found.fixes == (TrainSetting("r", 8, replaces="rank", target="lora", applicability="unsafe"),)
    assert_fixed_by(QD126, world, request)


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(Signature(("output_dir",), open=True), id="it takes **kwargs"),
        pytest.param(Signature(("output_dir", "gradient_checkpoint")), id="it has the field"),
    ],
)
def test_open_and_known_signatures_are_silent(signature: Signature) -> None:
    request = train(settings={"gradient_checkpoint": True})
    assert findings(QD126, reading(TrainingArguments=signature), request) == ()


def test_a_call_that_belongs_to_no_run_is_held_against_the_installed_source() -> None:
    site = Site("t.py", 3, 1, 3, 20, 60)
    world = NOW.but(
        installed=Installed(
            signatures={
                "peft.LoraConfig": Signature(("r", "target_modules")),
                "peft.get_peft_model": Signature(("model", "peft_config")),
            }
        )
    )
    lora = Call("peft.LoraConfig", {"r": 8, "target_module": ("q_proj",)}, site=site)
    wrap = Call("peft.get_peft_model", {"model": Unresolved("m"), "config": lora}, site=replace(site, start=80))
    found = findings(arguments.unknown_argument, world, script=Script("t.py", calls=(lora, wrap)))
    assert [f.evidence["name"] for f in found] == ["target_module", "config"]
    run = replace(train(settings={}), lora=lora)
    (left,) = findings(arguments.unknown_argument, world, run, script=Script("t.py", calls=(lora, wrap)))
    assert left.evidence["name"] == "config" and isinstance(left.fixes[0], Advice)


def test_what_another_version_has_is_left_to_the_table() -> None:
    assert findings(QD126, reading(TrainingArguments=FIELDS), train(settings={"warmup_ratio": 0.1})) == ()


def test_a_subclass_of_the_settings_may_have_fields_of_its_own() -> None:
    own = ClassDefinition("TrainingArguments", ("transformers.TrainingArguments",), fields=("lora_enable",))
    request = train(settings={"lora_enable": True, "lora_enabled": True})
    (found,) = findings(QD126, reading(TrainingArguments=FIELDS), request, script=Script("t.py", classes=(own,)))
    assert found.evidence["name"] == "lora_enabled"


def test_a_field_of_the_scripts_own_arguments_is_not_the_outdated_one_of_that_name() -> None:
    own = ClassDefinition("Ours", ("transformers.TrainingArguments",), fields=("evaluation_strategy",))
    request = train(settings={"evaluation_strategy": "no"})
    assert findings(QD121, NOW, request)
    assert findings(QD121, NOW, request, script=Script("t.py", classes=(own,))) == ()


def test_without_the_installed_source_unknown_arguments_are_unknown() -> None:
    world = NOW.but(installed=Unknown("transformers cannot be read"))
    assert outcome(QD126, world, train(settings={"frobnicate": 1})) == "unknown"


def test_bitsandbytes_config_drops_a_misspelt_argument_without_a_word() -> None:
    request = load(quantization_config=bnb(bnb_4bit_compute_dtyp=Dotted("torch.float16")))
    (found,) = findings(QD127, NOW, request)
    assert found.severity == "warning"
    other = Call("transformers.BitsAndBytesConfig", arguments={"load_in_4bit": True, "bnb_4bit_use_doublequant": True})
    (clear,) = findings(QD127, NOW, load(quantization_config=other))
    assert clear.fixes[0].applicability == "safe"
    assert_fixed_by(QD127, NOW, load(quantization_config=other))
    assert findings(QD127, NOW, load()) == ()


@pytest.mark.parametrize("config", [Call("transformers.GPTQConfig", {"bits": 4}), {"quant_method": "gptq", "bits": 4}])
def test_another_quantizers_options_are_its_own(config: Any) -> None:
    assert findings(QD127, NOW, load(quantization_config=config)) == ()


def test_a_new_field_of_an_installed_config_is_no_misspelling() -> None:
    world = reading(BitsAndBytesConfig=Signature(("load_in_4bit", "bnb_4bit_blocksize"), swallows=True))
    request = load(quantization_config={"load_in_4bit": True, "bnb_4bit_blocksize": 64})
    assert findings(QD127, world, request) == ()
    assert len(findings(QD127, NOW, request)) == 1


@pytest.mark.parametrize(
    ("word", "near", "clear"),
    [
        ("learning-rate", "learning_rate", True),
        ("learningrate", "learning_rate", True),
        ("eval_step", "eval_steps", True),
        ("xyz", "", False),
    ],
)
def test_the_nearest_name_is_clear_only_where_it_can_hardly_be_another(word: str, near: str, clear: bool) -> None:
    assert nearest(word, ("learning_rate", "eval_steps", "save_steps", "output_dir")) == (near, clear)
