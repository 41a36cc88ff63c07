"""QD633-QD643: adapters and checkpoints on disk, written byte by byte as peft and the Trainer write them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qlora_checks import on_disk, on_disk_checkpoints
from qlora_doctor.examine import Question, examine
from qlora_doctor.facts import Facts
from qlora_doctor.gather.model_files import read_models
from qlora_doctor.gather.saved_runs import read_saved_runs
from qlora_doctor.testing import facts, findings, outcome

CHECKS = {check.code: check for check in (*on_disk.CHECKS, *on_disk_checkpoints.CHECKS)}
Shape = tuple[int, ...]
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "base_model_name_or_path": "Qwen/Qwen3-0.6B",
    "task_type": "CAUSAL_LM",
}
PICKLE = b"PK\x03\x04" + b"\0" * 40 + b"PK\x05\x06" + b"\0" * 18


def tensors_file(path: Path, tensors: Mapping[str, tuple[str, Shape, bytes]]) -> None:
    header, body = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def numbers(count: int, value: float = 0.5, dtype: str = "F32") -> bytes:
    one = struct.pack("<e", value) if dtype == "F16" else struct.pack("<f", value)
    one = one[2:] if dtype == "BF16" else one
    return one * count


def lora(
    module: str = "model.layers.0.self_attn.q_proj", r: int = 2, sizes: Shape = (8, 8), **more: Any
) -> dict[str, Any]:
    """The A and B of one module; `b` is the value in B."""
    dtype, b = more.get("dtype", "F32"), more.get("b", 0.25)
    out, into = sizes
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": (dtype, (r, into), numbers(r * into, dtype=dtype)),
        f"{name}.lora_B.weight": (dtype, (out, r), numbers(out * r, b, dtype)),
    }


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """`adapter(tensors, config)`: a sound adapter folder, but for what is given."""

    def make(tensors: Mapping[str, Any] | None = None, folder: str = "adapter", **config: Any) -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
        tensors_file(place / "adapter_model.safetensors", lora() if tensors is None else tensors)
        return place

    return make


@pytest.fixture
def checkpoint(adapter: Callable[..., Path]) -> Path:
    place = adapter(folder="out/checkpoint-3")
    (place / "trainer_state.json").write_text('{"global_step": 3, "max_steps": 6}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (place / name).write_bytes(PICKLE)
    return place


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    def make(module: str = "model.layers.0.self_attn.q_proj", sizes: Shape = (8, 8), kind: str = "qwen3") -> Path:
        place = tmp_path / "base"
        place.mkdir()
        (place / "config.json").write_text(json.dumps({"model_type": kind}))
        count = sizes[0] * sizes[1]
        tensors_file(place / "model.safetensors", {f"{module}.weight": ("BF16", sizes, numbers(count, dtype="BF16"))})
        return place

    return make


def seen(*folders: Path, models: tuple[Path, ...] = ()) -> Facts:
    return facts({}, saved=read_saved_runs(map(str, folders)), models=read_models(map(str, models)))


def codes(*folders: Path, models: tuple[Path, ...] = ()) -> list[str]:
    """The codes of all these checks that find something."""
    known = seen(*folders, models=models)
    return [code for code, check in CHECKS.items() if outcome(check, known) == "found"]


def text(code: str, *folders: Path, models: tuple[Path, ...] = ()) -> str:
    (finding,) = findings(CHECKS[code], seen(*folders, models=models))
    return finding.text


def test_a_sound_adapter_and_a_sound_checkpoint_find_nothing(
    adapter: Callable[..., Path], checkpoint: Path, base: Callable[..., Path]
) -> None:
    folder = base()
    assert codes(adapter(base_model_name_or_path=str(folder)), checkpoint, models=(folder,)) == []


def test_without_such_a_folder_nothing_is_judged() -> None:
    assert {outcome(check, facts({})) for check in CHECKS.values()} == {"skipped"}


def test_an_adapter_without_weights_is_found(adapter: Callable[..., Path]) -> None:
    place = adapter()
    (place / "adapter_model.safetensors").unlink()
    assert codes(place) == ["QD633"] and "no weights" in text("QD633", place)
    (place / "adapter_model.bin").write_bytes(PICKLE)
    assert codes(place) == []


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda raw: raw[:-9], "truncated"),
        (lambda raw: b"", "truncated"),
        (lambda raw: b"version https://git-lfs" + raw, "lfs"),
    ],
    ids=["cut", "empty", "lfs"],
)
def test_weights_that_cannot_be_read_are_found(
    adapter: Callable[..., Path], spoil: Callable[[bytes], bytes], word: str
) -> None:
    place = adapter()
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(spoil(weights.read_bytes()))
    assert codes(place) == ["QD633"] and word in text("QD633", place)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_in_every_dtype(
    adapter: Callable[..., Path], dtype: str, value: float
) -> None:
    tensors = lora(dtype=dtype, b=1.5)
    name = next(name for name in tensors if "lora_B" in name)
    kind, shape, raw = tensors[name]
    one = numbers(1, value, dtype)
    tensors[name] = (kind, shape, raw[: len(one) * 5] + one + raw[len(one) * 6 :])
    assert codes(adapter(tensors)) == ["QD634"]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_large_values_are_finite(adapter: Callable[..., Path], dtype: str) -> None:
    largest = {"F32": 3e38, "F16": 65504.0, "BF16": 3e38}[dtype]
    assert codes(adapter(lora(dtype=dtype, b=largest, sizes=(64, 64)))) == []


def test_an_adapter_whose_b_are_all_zero_is_found_and_one_that_is_not_is_enough(adapter: Callable[..., Path]) -> None:
    second = "model.layers.1.self_attn.q_proj"
    assert codes(adapter(lora(b=0.0) | lora(second, b=0.0))) == ["QD635"]
    assert codes(adapter(lora(b=0.0) | lora(second, b=1e-7), folder="other")) == []


def test_another_rank_in_the_configuration_is_found_unless_a_pattern_gives_it(adapter: Callable[..., Path]) -> None:
    assert codes(adapter(lora(r=4))) == ["QD636"]
    assert codes(adapter(lora(r=4), folder="b", rank_pattern={"q_proj": 4})) == []


def test_dora_is_held_against_its_magnitudes(adapter: Callable[..., Path]) -> None:
    magnitude = {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": ("F32", (8,), numbers(8))}
    assert codes(adapter(use_dora=True)) == ["QD636"]
    assert codes(adapter(lora() | magnitude, folder="b")) == ["QD636"]
    assert codes(adapter(lora() | magnitude, folder="c", use_dora=True)) == []


def test_an_adapter_of_another_model_is_found(adapter: Callable[..., Path], base: Callable[..., Path]) -> None:
    folder = base()
    named = {"base_model_name_or_path": str(folder)}
    wider = adapter(lora(sizes=(16, 8)), **named)
    assert codes(wider, models=(folder,)) == ["QD637"] and "16 x 8" in text("QD637", wider, models=(folder,))
    deeper = adapter(lora("model.layers.7.self_attn.q_proj"), folder="b", **named)
    assert codes(deeper, models=(folder,)) == ["QD637"] and "not in it" in text("QD637", deeper, models=(folder,))


def test_a_base_that_is_packed_in_4_bit_is_not_held_against_the_adapters_sizes(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "packed"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "qwen3"}')
    names: dict[str, Any] = {"model.layers.0.self_attn.q_proj.weight": ("U8", (32, 1), bytes(32))}
    names["model.layers.0.input_layernorm.weight"] = ("BF16", (8,), numbers(8, dtype="BF16"))
    tensors_file(place / "model.safetensors", names)
    assert codes(adapter(base_model_name_or_path=str(place)), models=(place,)) == []


def test_both_module_layouts_of_a_vision_model_fit(adapter: Callable[..., Path], base: Callable[..., Path]) -> None:
    folder = base("language_model.model.layers.0.self_attn.q_proj", kind="llava")
    for place, module in enumerate(("model.language_model", "language_model.model")):
        named = {"base_model_name_or_path": str(folder)}
        assert (
            codes(adapter(lora(f"{module}.layers.0.self_attn.q_proj"), folder=str(place), **named), models=(folder,))
            == []
        )


def test_a_base_that_is_a_path_of_another_machine_is_found(adapter: Callable[..., Path]) -> None:
    assert codes(adapter(base_model_name_or_path="/data/models/qwen")) == ["QD638"]
    assert codes(adapter(base_model_name_or_path="D:\\models\\qwen", folder="b")) == ["QD638"]
    assert codes(adapter(base_model_name_or_path=None, folder="c")) == []


def test_a_task_that_is_not_of_the_base_is_found(adapter: Callable[..., Path], base: Callable[..., Path]) -> None:
    folder = base()
    named = {"base_model_name_or_path": str(folder)}
    assert codes(adapter(task_type="SEQ_2_SEQ_LM", **named), models=(folder,)) == ["QD639"]
    assert codes(adapter(task_type=None, folder="b", **named), models=(folder,)) == []


def test_an_adapter_on_the_vision_tower_alone_is_found_unless_it_was_asked_for(adapter: Callable[..., Path]) -> None:
    vision = lora("model.vision_tower.encoder.layers.0.self_attn.q_proj")
    place = adapter(vision)
    assert codes(place) == ["QD640"]
    (place / "run.json").write_text('{"settings": {"train": "vision"}}')
    assert codes(place) == []
    assert codes(adapter(vision | lora("model.language_model.layers.0.self_attn.q_proj"), folder="b")) == []


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_without_one_of_its_parts_is_found(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert codes(checkpoint) == ["QD641"] and name in text("QD641", checkpoint)


@pytest.mark.parametrize(
    ("name", "raw"),
    [("optimizer.pt", b""), ("optimizer.pt", PICKLE[:30]), ("trainer_state.json", b'{"global_step": 3')],
)
def test_a_checkpoint_with_a_damaged_part_cannot_be_resumed(checkpoint: Path, name: str, raw: bytes) -> None:
    (checkpoint / name).write_bytes(raw)
    (finding,) = findings(CHECKS["QD641"], seen(checkpoint))
    assert finding.severity == "error" and name in finding.text


@pytest.mark.parametrize("folder", ["optimizer_0", "global_step3"])
def test_the_folders_of_sharded_runs_are_parts_too(checkpoint: Path, folder: str) -> None:
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / folder).mkdir()
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert codes(checkpoint) == []


def test_settings_that_were_changed_after_the_run_are_found(checkpoint: Path) -> None:
    run = checkpoint.parent / "run.json"
    run.write_text(json.dumps({"settings": {"lora_r": 2, "lora_alpha": 4, "use_rslora": None}}))
    assert codes(checkpoint) == []
    run.write_text(json.dumps({"settings": {"lora_r": 2, "lora_alpha": 32}}))
    assert codes(checkpoint) == ["QD642"] and "lora_alpha is 4 and was 32" in text("QD642", checkpoint)


def test_a_float16_adapter_is_told_of_a_checkpoint_alone(adapter: Callable[..., Path], checkpoint: Path) -> None:
    tensors_file(checkpoint / "adapter_model.safetensors", lora(dtype="F16"))
    assert codes(checkpoint) == ["QD643"] and codes(adapter(lora(dtype="F16"))) == []


def test_pickles_are_never_opened_and_links_are_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()
    (tmp_path / "secret.pt").write_bytes(PICKLE)
    (checkpoint / "optimizer.pt").symlink_to(tmp_path / "secret.pt")
    assert codes(checkpoint) == ["QD641"] and "leaves the folder" in text("QD641", checkpoint)


def test_a_header_that_lies_does_no_harm(adapter: Callable[..., Path]) -> None:
    place = adapter()
    header = json.dumps({"x.lora_B.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}).encode()
    (place / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert codes(place) == ["QD633"]


def test_the_command_line_takes_the_folder_and_saves_what_it_saw(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()
    done = examine(Question(paths=(str(checkpoint),), select=("QD6",), offline=True))
    assert [f.code for f in done.verdict.findings if "QD633" <= f.code <= "QD649"] == ["QD641"]
    assert Facts.from_wire(json.loads(json.dumps(done.facts.to_wire()))).saved == done.facts.saved
