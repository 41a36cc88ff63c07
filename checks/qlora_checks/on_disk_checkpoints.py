"""QD6: a checkpoint on disk: can a run go on from it, and is it of the run that it lies in?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qlora_doctor.facts import Facts, SavedRun
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check

_PARTS = {
    "optimizer": "the optimizer's state (optimizer.pt)",
    "scheduler": "the learning rate's place in its schedule (scheduler.pt)",
    "random": "the random states (rng_state.pth)",
}


def _checkpoints(facts: Facts) -> Iterator[SavedRun]:
    return (saved for saved in facts.saved if any(f.name == "trainer_state.json" for f in saved.files))


def _is_there(saved: SavedRun, part: str) -> bool:
    if any(name.startswith("global_step") for name in saved.folders):
        # DeepSpeed keeps all of it there.
        return True
    if part == "optimizer":
        files = ("optimizer.pt", "optimizer.bin")
        return any(map(saved.has, files)) or any(name.startswith("optimizer_") for name in saved.folders)
    if part == "random":
        return any(f.name.startswith("rng_state") and f.size > 0 for f in saved.files)
    return saved.has("scheduler.pt")


@check("QD641", needs=["saved"], since="0.3")
def checkpoint_that_cannot_be_resumed(facts: Facts) -> Iterator[Finding]:
    """A checkpoint without what a run needs to go on: the optimizer, the schedule, the random states, a readable state.

    The Trainer of transformers does not refuse it. It goes on with a fresh optimizer and a fresh schedule, without a word,
    so the learning rate jumps back up and the loss with it. `save_only_model=True` writes such checkpoints.

    Pickles are measured and never opened. The folders of FSDP (`optimizer_0`) and DeepSpeed (`global_step...`) count.

    Fix: an older checkpoint that is whole; or begin anew from this adapter, with a schedule for the steps that are left.

    Source: transformers `trainer.py`, _load_optimizer_and_scheduler and _load_rng_state (5.23.0).
    """
    for saved in _checkpoints(facts):
        lacking = [words for part, words in _PARTS.items() if not _is_there(saved, part)]
        broken = [f"{f.name} ({f.fault}: {f.detail})" for f in saved.files if f.fault and _resumes(f.name)]
        if saved.state is None:
            broken.insert(0, "trainer_state.json (no JSON that can be read)")
        empty = [f.name for f in saved.files if f.size == 0 and not f.fault and _resumes(f.name)]
        broken += [f"{name} (0 bytes)" for name in empty]
        if broken:
            yield Finding(
                "{folder} cannot be resumed: {broken} cannot be read. Take an older checkpoint, or begin anew from its adapter",
                {"folder": saved.name, "broken": ", ".join(broken)},
                severity="error",
                fixes=(Advice("Take an older checkpoint that is whole"),),
            )
        elif lacking:
            yield Finding(
                "{folder} lacks {lacking}: resumed from it, the Trainer goes on with fresh ones and says nothing. Take a whole "
                "checkpoint, or begin anew from its adapter; save_only_model=True writes such checkpoints",
                {"folder": saved.name, "lacking": ", ".join(lacking)},
                severity="warning",
                fixes=(Advice("Take a checkpoint that is whole, or begin anew from its adapter"),),
            )


def _resumes(name: str) -> bool:
    return name.startswith(("optimizer.", "scheduler.pt", "rng_state", "trainer_state.json", "adapter_model"))


@check("QD642", needs=["saved"], since="0.3")
def adapter_settings_differ_from_its_run(facts: Facts) -> Iterator[Finding]:
    """An adapter_config.json that says something else than the run.json of the run that wrote it.

    `lora_alpha`, `r` and `use_rslora` scale the adapter: changed after training, it acts stronger or weaker than it was
    trained, and nothing says so. Another base is another model.

    Judged where `qlora-core train` wrote a run.json, beside the adapter or in the folder above a checkpoint.

    Fix: the values of run.json.

    Source: peft `tuners/lora/layer.py`, scaling = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA.
    """
    for saved in facts.saved:
        config, run = saved.adapter_config, saved.run
        settings = run.get("settings") if run is not None else None
        if config is None or not isinstance(settings, Mapping):
            continue
        differs = _differences(config, settings)
        if differs:
            yield Finding(
                "{folder}: adapter_config.json was changed after training: {differs}. The adapter acts otherwise than it was "
                "trained; write the values of run.json back",
                {"folder": saved.name, "differs": ", ".join(differs)},
                severity="warning",
                fixes=(Advice("Write the values of run.json back into adapter_config.json"),),
            )


def _differences(config: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    found = []
    for ours, theirs in (
        ("lora_r", "r"),
        ("lora_alpha", "lora_alpha"),
        ("use_rslora", "use_rslora"),
        ("use_dora", "use_dora"),
    ):
        was, now = settings.get(ours), config.get(theirs)
        if was is not None and now is not None and was != now:
            found.append(f"{theirs} is {now!r} and was {was!r}")
    return found


@check("QD643", needs=["saved"], since="0.3")
def checkpoint_with_a_float16_adapter(facts: Facts) -> Iterator[Finding]:
    """A checkpoint whose adapter is in float16: a run that goes on from it as it is meets AdamW with eps = 0.

    1e-8 is 0 in float16, so a gradient of 0 is divided by 0, and the second step is NaN. Loaded to answer only, float16 is
    fine, and an adapter that is no checkpoint is not judged.

    Fix: load it with float32 adapters (peft's `autocast_adapter_dtype=True`, the default, does that).

    Source: torch `optim/adamw.py`; seen on a CPU in float16.
    """
    for saved in _checkpoints(facts):
        kinds = {tensor.dtype for name, tensor in saved.tensors.items() if ".lora_" in name}
        if kinds == {"F16"}:
            yield Finding(
                "{folder}: its adapter is in float16, in which AdamW's eps of 1e-8 is 0: a resumed run can turn to NaN at its "
                "second step. Load it with autocast_adapter_dtype=True, which makes it float32",
                {"folder": saved.name},
                severity="info",
                fixes=(Advice("Resume with float32 adapters"),),
            )


CHECKS: tuple[Check, ...] = (
    checkpoint_that_cannot_be_resumed,
    adapter_settings_differ_from_its_run,
    checkpoint_with_a_float16_adapter,
)
