"""Fixes in settings files: the key changes, comments and all other bytes stay."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml

from qlora_doctor.errors import RepairError
from qlora_doctor.fix import LoadKwarg, TrainSetting
from qlora_doctor.gather.config import read_config
from qlora_doctor.repair.edits import edited
from qlora_doctor.repair.settings import setting_edit, written
from qlora_doctor.source import Dotted

YAML = """# 训练
model_name_or_path: Qwen/Qwen3-0.6B
load_in_4bit: true
output_dir: out   # 输出
per_device_train_batch_size: 1
evaluation_strategy: steps  # 每 50 步
fp16: true
bf16: true
"""
RENAME = TrainSetting("eval_strategy", "steps", replaces="evaluation_strategy")
DROP = TrainSetting("fp16", drop=True)
SET = TrainSetting("per_device_train_batch_size", 4)
ADD = TrainSetting("gradient_checkpointing", True)


def after(path: str, text: str, fix: TrainSetting | LoadKwarg) -> str:
    data = text.encode()
    script, requests = read_config(path, data)
    call = requests.trains[0].settings
    assert call is not None and call.site is not None
    edit = setting_edit(data, script, fix, call.site)
    assert edit.sha256 == hashlib.sha256(data).hexdigest()
    return edited(data, edit).decode()


@pytest.mark.parametrize(
    ("fix", "old", "new"),
    [
        (RENAME, "evaluation_strategy:", "eval_strategy:"),
        (DROP, "fp16: true\n", ""),
        (SET, "batch_size: 1", "batch_size: 4"),
        (ADD, "output_dir:", "gradient_checkpointing: true\noutput_dir:"),
    ],
    ids=["rename", "drop", "set", "add"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_yaml_changes_in_one_place(fix: TrainSetting, old: str, new: str, end: str) -> None:
    text = YAML.replace("\n", end)
    assert after("a.yaml", text, fix) == text.replace(old.replace("\n", end), new.replace("\n", end))


@pytest.mark.parametrize("fix", [RENAME, DROP, SET, ADD, TrainSetting("bf16", drop=True)], ids=lambda f: f.title)
@pytest.mark.parametrize("indent", [2, None], ids=["lines", "one line"])
def test_json_stays_json_and_means_what_the_fix_says(fix: TrainSetting, indent: int | None) -> None:
    values = yaml.safe_load(YAML)
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    expected = {k: v for k, v in values.items() if k != fix.replaces and not (fix.drop and k == fix.name)}
    expected |= {} if fix.drop else {fix.name: fix.value}
    assert json.loads(after("a.json", text, fix)) == expected


def test_toml_changes_in_one_place() -> None:
    text = "[train]\noutput_dir = 'out'  # 输出\nfp16 = true\nlearning_rate = 0.0002\nmax_steps = 3\nbf16 = true\n"
    assert after("a.toml", text, DROP) == text.replace("fp16 = true\n", "", 1)
    assert after("a.toml", text, TrainSetting("learning_rate", 1e-5)) == text.replace("0.0002", "0.00001")


def test_an_argument_of_the_load_is_not_added_to_a_file_whose_reader_is_not_known() -> None:
    with pytest.raises(RepairError, match="add it yourself"):
        after("a.yaml", YAML, LoadKwarg("dtype", Dotted("torch.bfloat16")))


@pytest.mark.parametrize(
    ("value", "style", "expected"),
    [
        (True, "yaml", "true"),
        (None, "json", "null"),
        ("no", "yaml", '"no"'),
        ("adamw_torch", "yaml", "adamw_torch"),
        (1e-5, "yaml", "0.00001"),
        (Dotted("torch.bfloat16"), "json", '"bfloat16"'),
        (("q_proj", "v_proj"), "toml", '["q_proj", "v_proj"]'),
    ],
)
def test_values_are_written_as_the_format_has_them(value: object, style: str, expected: str) -> None:
    assert written(value, style) == expected  # type: ignore[arg-type]
