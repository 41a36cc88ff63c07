"""`train` on tiny models: what a finished run leaves, what it says, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Build = Callable[..., Path]
QUIET = {"progress": False, "samples": 0, "save_strategy": "no"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions whose answers follow one pattern."""
    words = ("red", "blue", "green", "white")
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made = [{"instruction": f"What colour is the car {i}?", "output": f"the car is {words[i % 4]}."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tiny: Build, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from qlora_core.train import train

    output = tmp_path_factory.mktemp("run") / "out"
    return train(
        tiny("qwen3"), rows, output, num_train_epochs=6, learning_rate=5e-3, eval_split=0.1, save_total_limit=1,
        metrics=["exact_match"], samples=2, max_new_tokens=12, progress=False,
        measure=lambda said, expected: {"answers": float(len(said) == len(expected))},
    )  # fmt: skip


def test_a_run_learns_and_leaves_its_adapter_log_curve_samples_and_record(finished: Any) -> None:
    from PIL import Image

    output = finished.adapter.parent
    assert {p.name for p in output.iterdir()} >= {"adapter", "run.json", "train_log.jsonl", "loss.png", "samples.json"}
    assert [p.name for p in output.glob("checkpoint-*")] == [f"checkpoint-{finished.steps}"]
    assert finished.losses[-1][1] < finished.losses[0][1] - 0.5
    assert finished.eval_losses[-1][1] < finished.eval_losses[0][1]
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log if "loss" in line] == [loss for _, loss in finished.losses]
    assert all(line["tokens_per_second"] >= 0 and line["memory"]["resident"] > 0 for line in log)
    assert len(Image.open(output / "loss.png").convert("RGB").getcolors(10_000) or []) > 3
    assert finished.metrics.keys() == {"exact_match", "answers"} and finished.metrics["answers"] == 1.0


def test_the_samples_hold_the_question_the_data_and_both_answers(finished: Any) -> None:
    samples = json.loads((finished.adapter.parent / "samples.json").read_text(encoding="utf-8"))
    assert len(samples) == 2 and all(one["expected"].startswith("the car is") for one in samples)
    assert all("What colour" in one["question"] for one in samples)
    assert any(one["before"] != one["after"] for one in samples)


def test_the_saved_adapter_gives_the_losses_of_the_trained_model(finished: Any, tiny: Build) -> None:
    import torch

    from qlora_core import load_quantized
    from qlora_core.data.collate import make_collator

    data = finished.prepared.train.encoded
    batch = make_collator(finished.processor, finished.model.config)([data[i] for i in range(4)])
    again = load_quantized(tiny("qwen3"), adapter=finished.adapter).model
    plain = load_quantized(tiny("qwen3")).model
    with torch.no_grad():
        here, there, base = (float(m(**batch).loss) for m in (finished.model.eval(), again, plain))
    assert here == pytest.approx(there, rel=1e-3) and here < base - 0.5


def test_the_record_says_what_is_needed_to_repeat_and_judge_the_run(finished: Any, tiny: Build) -> None:
    run = json.loads((finished.adapter.parent / "run.json").read_text(encoding="utf-8"))
    assert run["status"] == "finished" and run["model"]["name"] == str(tiny("qwen3"))
    assert run["versions"].keys() >= {"torch", "transformers", "peft", "bitsandbytes", "python"}
    assert run["settings"]["learning_rate"] == 5e-3 and "learning_rate" in run["given"]
    assert {c["setting"] for c in run["chosen"]} >= {"max_length", "lora_r", "per_device_train_batch_size"}
    assert len(run["data"]["hash"]) == 64 and run["data"]["rows"] == 36
    assert run["memory"]["predicted"]["allocated"] > 0 and run["memory"]["measured"]["resident"] > 0
    assert run["result"]["last_loss"] == finished.losses[-1][1]
    assert run["scope"] == {"language model": {"tensors": 28, "parameters": 32768}}
    assert str(finished).count("warning") == len(finished.warnings)


def test_the_same_settings_and_data_give_the_same_losses_and_other_seeds_others(
    finished: Any, tiny: Build, rows: Path, tmp_path: Path
) -> None:
    from qlora_core.settings_file import read_settings_file
    from qlora_core.train import train

    settings = read_settings_file(finished.adapter.parent / "run.json") | {"max_steps": 5, **QUIET}
    settings |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "metrics": (), "logging_steps": 1}
    seen = [
        [loss for _, loss in train(tiny("qwen3"), rows, tmp_path / str(i), **{**settings, "seed": seed}).losses]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert len(seen[0]) == 5 and seen[0] == seen[1] != seen[2]


def test_the_card_names_base_and_figures_and_quotes_no_row(finished: Any, tiny: Build) -> None:
    card = (finished.adapter / "README.md").read_text(encoding="utf-8")
    assert f'base_model: "{tiny("qwen3")}"' in card and "| rows | 36 |" in card and "exact_match" in card
    assert "colour" not in card
    base = json.loads((finished.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny("qwen3"))


def test_a_dry_run_needs_no_weights_and_writes_nothing(copied: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    result = train(copied("qwen3", without=("model.safetensors",)), rows, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists() and result.report is None and result.adapter is None
    text = str(result)
    for part in ("memory:", "expected", "40 rows", "lora_r", "alpaca", "course", "holds no weights"):
        assert part in text, part


def test_a_quick_run_takes_five_steps_on_the_longest_rows_and_keeps_nothing(tiny: Build, tmp_path: Path) -> None:
    from qlora_core.train import train

    made = [{"instruction": "a", "output": "b " * (1 + i)} for i in range(100)]
    result = train(tiny("qwen3"), made, tmp_path / "out", quick=True, progress=False, per_device_train_batch_size=2)
    assert result.steps == 5 and not (tmp_path / "out").exists()
    assert "14 linears in 4-bit" in str(result) and "a step" in str(result)
    # Ten rows of about a hundred letters each; short ones would be a tenth of that.
    assert result.run and result.prepared.train.encoded.lengths[-1] == max(result.prepared.train.encoded.lengths)


@pytest.mark.parametrize(
    ("kind", "scope", "parts"),
    [
        ("llava", "language", {"language model": 28}),
        ("qwen2_vl", "language+projector", {"language model": 28, "projector": 4}),
        ("instructblip_t5", "qformer", {"Q-Former": 40}),
    ],
)
def test_each_family_trains_the_part_that_is_named_and_no_other(
    kind: str, scope: str, parts: dict[str, int], tiny: Build, tmp_path: Path
) -> None:
    from PIL import Image

    from qlora_core.train import train

    for name in ("red", "blue"):
        Image.new("RGB", (40, 40), name).save(tmp_path / f"{name}.png")
    made = [
        {"image": str(tmp_path / f"{name}.png"), "question": "Which colour?", "answer": name}
        for name in ("red", "blue") * 4
    ]
    result = train(tiny(kind), made, tmp_path / "out", train=scope, max_steps=2, learning_rate=1e-3, **QUIET)
    assert {part: tensors for part, (tensors, _) in result.scope.items()} == parts
    assert all(loss > 0 for _, loss in result.losses)


@pytest.mark.parametrize(("rank", "weights"), [(8, 2_420_736), (4, 1_210_368)])
def test_a_qformer_adapter_on_the_flan_t5_xl_shape_has_the_published_size(rank: int, weights: int) -> None:
    import torch
    import transformers

    from qlora_core.adapters import attach, scope

    text = transformers.T5Config(
        vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.InstructBlipForConditionalGeneration(transformers.InstructBlipConfig(text_config=text))
        made = attach(model, r=rank, train="qformer")
    assert scope(made) == {"Q-Former": (240, weights)}


def test_a_peft_configuration_passes_through_as_it_is(tiny: Build, rows: Path, tmp_path: Path) -> None:
    import peft

    from qlora_core.train import train

    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], use_rslora=True, task_type="CAUSAL_LM")
    result = train(tiny("qwen3"), rows, tmp_path / "out", lora=config, max_steps=1, **QUIET)
    saved = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["use_rslora"]) == (3, 5, True)
    assert result.scope["language model"][0] == 4 and result.settings.lora_r == 3


def test_a_dictionary_goes_to_the_lora_configuration(tiny: Build, rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    result = train(tiny("qwen3"), rows, tmp_path / "out", lora={"r": 2, "use_dora": True}, max_steps=1, **QUIET)
    saved = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["use_dora"]) == (2, 4, True) and result.settings.lora_r == 2


def test_a_saved_adapter_goes_on_learning(finished: Any, tiny: Build, rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    more = {"max_steps": 2, "learning_rate": 1e-5, "logging_steps": 1, **QUIET}
    result = train(tiny("qwen3"), rows, tmp_path / "out", adapter=str(finished.adapter), **more)
    assert result.losses[0][1] < finished.losses[0][1] - 0.5


def test_a_run_goes_on_from_its_checkpoint(tiny: Build, rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "samples": 0, "progress": False}
    settings |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
    whole = train(tiny("qwen3"), rows, tmp_path / "whole", max_steps=4, **settings)
    first = train(tiny("qwen3"), rows, tmp_path / "part", max_steps=2, **settings)
    rest = train(tiny("qwen3"), rows, tmp_path / "part", max_steps=4, resume=True, **settings)
    assert [*first.losses, *rest.losses] == list(whole.losses)
    assert rest.run["resumed_from"].endswith("checkpoint-2")


def test_early_stopping_ends_the_run_and_keeps_the_best_adapter(tiny: Build, rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    result = train(
        tiny("qwen3"), rows, tmp_path / "out", num_train_epochs=30, learning_rate=1e-7, early_stopping_patience=1,
        eval_split=8, logging_steps=1, progress=False, samples=0,
    )  # fmt: skip
    assert result.steps < 30 * 8 and result.settings.load_best_model_at_end
    assert len(result.eval_losses) >= 2


def test_a_loss_that_does_not_fall_is_warned_of_with_a_cause(tiny: Build, rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    more = {"max_steps": 12, "logging_steps": 1, "learning_rate": 1e-8, **QUIET}
    result = train(tiny("qwen3"), rows, tmp_path / "out", **more)
    assert any("did not fall" in w and "1e-08" in w for w in result.warnings), result.warnings
    assert any("adamw_bnb_8bit in place of paged_adamw_8bit" in note for note in result.prepared.notes)
    assert result.run["warnings"] == list(result.warnings)


def test_an_exception_of_the_libraries_arrives_with_its_cause_and_the_record_says_stopped(
    tiny: Build, rows: Path, tmp_path: Path
) -> None:
    from importlib.metadata import entry_points

    from qlora_core.train import train

    def fails(said: Any, expected: Any) -> dict[str, float]:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    with pytest.raises(RuntimeError, match="no kernel image") as raised:
        train(tiny("qwen3"), rows, tmp_path / "out", max_steps=1, eval_split=2, measure=fails, **QUIET)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "stopped" and "no kernel image" in run["stopped"]["what"]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    if not entry_points(group="qlora_doctor.signatures"):
        pytest.skip("installed before the signatures were an entry point; pip install -e . --no-deps")
    assert "qlora-doctor" in "".join(raised.value.__notes__)


def test_rows_without_a_picture_in_a_run_that_trains_the_projector_set_find_unused_parameters(
    tiny: Build, tmp_path: Path
) -> None:
    from PIL import Image

    from qlora_core.train import train

    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    asked = [{"type": "image", "image": str(tmp_path / "red.png")}, {"type": "text", "text": "Which colour?"}]
    picture, talk = (
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]}
        for content in (asked, "Which colour has a tomato?")
    )
    for made, scope, wanted in (
        ([picture, talk] * 4, "language+projector", True),
        ([picture, talk] * 4, "language", False),
        ([picture] * 8, "language+projector", False),
    ):
        result = train(tiny("llava"), made, tmp_path / "out", train=scope, dry_run=True, progress=False)
        assert result.prepared.gate.settings()["ddp_find_unused_parameters"] is wanted


def test_a_cap_on_memory_that_cannot_be_kept_is_said(tiny: Build, rows: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    result = train(tiny("qwen3"), rows, tmp_path / "out", device="cpu", max_memory=4, max_steps=1, **QUIET)
    assert any("nothing is capped" in text for text in result.warnings)


def test_the_package_exports_what_a_loop_of_ones_own_needs() -> None:
    import qlora_core

    for name in ("train", "TrainResult", "Settings", "NanGuard", "TrainingStopped"):
        assert name in qlora_core.__all__ and getattr(qlora_core, name)


def test_tensorboard_gets_the_losses_where_it_is_installed_and_nobody_said_otherwise(
    tiny: Build, rows: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="needs: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from qlora_core.train import train

    result = train(tiny("qwen3"), rows, tmp_path / "out", max_steps=3, logging_steps=1, **QUIET)
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    assert [e.value for e in read.Scalars("train/loss")] == pytest.approx([loss for _, loss in result.losses])


def test_adapters_on_packed_experts_are_placed_without_a_warning(tiny: Build) -> None:
    import warnings

    from qlora_core import attach, load_quantized

    model, _ = load_quantized(tiny("qwen3_moe"), for_training=True, gate="off", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        placed = attach(model, r=4)
    # Twice the rank on the two matrices that are packed into one, times four experts: what PEFT's pattern asks for.
    ranks = {n: p.shape[0] for n, p in placed.named_parameters() if ".layers.0.mlp.experts." in n and "lora_A" in n}
    assert sorted(ranks.values()) == [16, 32]
