"""QD6: a saved adapter: its weights, its configuration, and the base that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qlora_doctor.facts import Facts, ModelFacts, SavedRun, Tensor, Unknown
from qlora_doctor.families import BY_TYPE
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check

WEIGHTS = "adapter_model.safetensors"
_LORA = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<letter>[AB])(?:\.[^.]+)?\.weight\Z")
_LAYER = re.compile(r"(?<![^.])(?:layers|layer|blocks|block|h)\.\d+\..+\Z")
_VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder)\.")
_PROJECTOR = re.compile(r"(^|\.)(multi_modal_projector|merger|mm_projector|language_projection)(\.|\Z)")
_FLOATS = ("F32", "F16", "BF16")
_ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "umt5")


def adapters(facts: Facts) -> Iterator[SavedRun]:
    """The folders that hold an adapter's configuration."""
    return (saved for saved in facts.saved if saved.adapter_config is not None)


def modules(saved: SavedRun) -> dict[str, dict[str, Tensor]]:
    """The modules that have LoRA weights: their A and B."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in saved.tensors.items():
        match = _LORA.match(name)
        if match:
            found.setdefault(match["module"], {})[match["letter"]] = tensor
    return found


@check("QD633", needs=["saved"], since="0.3")
def adapter_without_weights(facts: Facts) -> Iterator[Finding]:
    """An adapter folder without weights, or with a weights file that cannot be read: cut off, empty, a Git LFS pointer.

    peft then looks for the weights on the Hub and ends with a name that nobody typed (`... is not a valid repo id`), or
    safetensors stops with `SafetensorError`, which names no file.

    An `adapter_model.bin` is weights too; it is a pickle, and is not looked into.

    Fix: copy the folder again, or save the adapter again from a checkpoint.

    Source: peft `utils/save_and_load.py`, load_peft_weights (0.21.2); the format of safetensors.
    """
    for saved in adapters(facts):
        fault = saved.fault(WEIGHTS)
        if fault:
            yield Finding(
                "{folder}: {file} cannot be read ({fault}). Copy the folder again, or save the adapter again from its last "
                "checkpoint",
                {"folder": saved.name, "file": WEIGHTS, "fault": fault},
                severity="error",
                fixes=(Advice("Copy the adapter again, or save it again from its last checkpoint"),),
            )
        elif not saved.has(WEIGHTS) and not saved.has("adapter_model.bin") and not _sharded(saved):
            yield Finding(
                "{folder} has an adapter_config.json and no weights ({file}): it was copied in part, or its training ended "
                "before the adapter was saved. Copy the weights too, or take the last checkpoint of that run",
                {"folder": saved.name, "file": WEIGHTS},
                severity="error",
                fixes=(Advice("Copy adapter_model.safetensors too, or take the last checkpoint"),),
            )


def _sharded(saved: SavedRun) -> bool:
    return any(name.startswith(("pytorch_model_fsdp", "global_step")) for name in saved.folders)


@check("QD634", needs=["saved"], since="0.3", requires=["QD633"])
def adapter_with_nan_weights(facts: Facts) -> Iterator[Finding]:
    """An adapter in whose weights there is a NaN or an infinity.

    The run went wrong before it was saved (fp16 and a learning rate too high, as a rule), and every answer with this adapter
    is noise. Nothing says so when it is loaded.

    Read is the first MiB of each tensor, 48 MiB in all, in float32, float16 and bfloat16; what lies behind is not judged.

    Fix: an earlier checkpoint, from before the loss became NaN or 0.

    Source: IEEE 754.
    """
    for saved in adapters(facts):
        if saved.not_finite:
            yield Finding(
                "{folder}: {count} of {all} tensors hold NaN or infinity ({first}): every answer with this adapter is noise. "
                "Take a checkpoint from before the loss became NaN or 0",
                {
                    "folder": saved.name,
                    "count": len(saved.not_finite),
                    "all": len(saved.tensors),
                    "first": saved.not_finite[0],
                },
                severity="error",
                fixes=(Advice("Take a checkpoint from before the loss became NaN"),),
            )


@check("QD635", needs=["saved"], since="0.3", requires=["QD633"])
def adapter_that_learned_nothing(facts: Facts) -> Iterator[Finding]:
    """An adapter whose every lora_B is zero: it changes nothing, and was saved untrained.

    LoRA begins with B = 0. A B that is still 0 had no gradient: the labels were all masked, the parameters were not in the
    optimizer, the weights were saved of another copy of the model, or not one step was taken.

    Silent where `init_lora_weights` is of another kind (`pissa`, `loftq`, ...), whose B does not begin at 0, and where one
    B is not zero.

    Fix: look at the share of supervised tokens (`qlora-core data`), and at the gradient norm of the run.

    Source: peft `tuners/lora/layer.py`, reset_lora_parameters.
    """
    for saved in adapters(facts):
        lora_b = [name for name in saved.tensors if ".lora_B." in name]
        if lora_b and set(lora_b) <= set(saved.zero):
            yield Finding(
                "{folder}: all {count} lora_B tensors are zero, so this adapter changes nothing: no gradient ever reached it. "
                "See whether any label was learned (qlora-core data), and whether its gradient norm was 0",
                {"folder": saved.name, "count": len(lora_b)},
                severity="warning",
                fixes=(Advice("Train it again; look at the supervised share and the gradient norm first"),),
            )


@check("QD636", needs=["saved"], since="0.3", requires=["QD633"])
def adapter_config_against_its_weights(facts: Facts) -> Iterator[Finding]:
    """An adapter_config.json that does not describe the weights beside it: another rank, or DoRA without its magnitudes.

    With another rank peft stops with `size mismatch`. With `use_dora` and no magnitudes it loads fresh ones and only warns;
    with magnitudes and no `use_dora` it leaves them out: in both cases the model is not the one that was trained.

    A rank that `rank_pattern` gives to a module is that module's rank.

    Fix: the adapter_config.json that was saved with these weights.

    Source: peft `utils/save_and_load.py`, `tuners/lora/config.py` (0.21.2).
    """
    for saved in adapters(facts):
        config = saved.adapter_config or {}
        kept = {
            "fixes": (Advice("Take the adapter_config.json that was saved with these weights"),),
            "severity": "error",
        }
        wrong = _other_ranks(saved, config)
        if wrong:
            module, is_, said = wrong[0]
            yield Finding(
                "{folder}: adapter_config.json says rank {said} and {module} has rank {rank} ({count} modules differ): peft "
                "stops with 'size mismatch'. Take the adapter_config.json that was saved with these weights",
                {"folder": saved.name, "said": said, "module": module, "rank": is_, "count": len(wrong)},
                **kept,  # type: ignore[arg-type]
            )
        magnitudes = any("lora_magnitude_vector" in name for name in saved.tensors)
        if modules(saved) and bool(config.get("use_dora")) != magnitudes:
            yield Finding(
                "{folder}: adapter_config.json says use_dora={dora}, and its weights have {magnitudes}: the model would not be "
                "the one that was trained. Take the adapter_config.json that was saved with these weights",
                {
                    "folder": saved.name,
                    "dora": bool(config.get("use_dora")),
                    "magnitudes": "DoRA magnitudes" if magnitudes else "no DoRA magnitudes",
                },
                **kept,  # type: ignore[arg-type]
            )


def _other_ranks(saved: SavedRun, config: Mapping[str, object]) -> list[tuple[str, int, int]]:
    said, pattern = config.get("r"), config.get("rank_pattern")
    if str(config.get("peft_type", "LORA")) != "LORA" or type(said) is not int or pattern:
        return []
    found = []
    for module, pair in modules(saved).items():
        if "A" in pair and len(pair["A"].shape) == 2 and pair["A"].shape[0] != said and "experts" not in module:
            found.append((module, pair["A"].shape[0], said))
    return found


@check("QD637", needs=["saved", "models"], since="0.3", requires=["QD633"])
def adapter_that_does_not_fit_its_base(facts: Facts) -> Iterator[Finding]:
    """Adapter weights for modules that the base does not have, or of other sizes.

    peft leaves weights that find no module out with a warning, and stops at other sizes (`size mismatch`): the adapter is of
    another model, or of the same model in another module layout (transformers 4.52 moved the language model of vision models).

    Judged where the base lies in a folder here and its tensors can be read. Modules are compared from their layer on
    (`layers.3.self_attn.q_proj`), so that both layouts fit. Not judged for mixtures of experts and quantised bases.

    Fix: the base that the adapter was trained on.

    Source: the headers of both safetensors files.
    """
    for saved in adapters(facts):
        base = base_of(facts, saved)
        if base is None or not base.complete or not base.tensors or any("expert" in name for name in base.tensors):
            continue
        shapes: dict[str, set[tuple[int, ...]]] = {}
        for name, tensor in base.tensors.items():
            tail = _LAYER.search(name)
            if tail:
                known = shapes.setdefault(tail[0].removesuffix(".weight"), set())
                # Of packed weights (4-bit) the shape says nothing.
                known |= {tensor.shape} if tensor.dtype in _FLOATS else set()
        missing, other = [], []
        for module, pair in modules(saved).items():
            tail = _LAYER.search(module)
            if tail is None or not {"A", "B"} <= set(pair) or not shapes:
                continue
            have, want = shapes.get(tail[0]), (pair["B"].shape[0], pair["A"].shape[-1])
            if have is None:
                missing.append(module)
            elif have and want not in have and want[::-1] not in have and len(pair["A"].shape) == 2:
                other.append(f"{module} is {want[0]} x {want[1]} in the adapter")
        bad = other or missing
        if bad and not (missing and not other and _fused(shapes)):
            yield Finding(
                "{folder} does not fit its base {base}: {count} of its modules {what} ({first}). Load it with the model that it "
                "was trained on",
                {
                    "folder": saved.name,
                    "base": base.name,
                    "count": len(bad),
                    "what": "have another size" if other else "are not in it",
                    "first": bad[0],
                },
                severity="error",
                fixes=(Advice("Load the adapter with the model that it was trained on"),),
            )


def _fused(shapes: Mapping[str, object]) -> bool:
    """Whether the checkpoint has names that transformers splits or renames while it loads."""
    return any(re.search(r"(qkv|gate_up|query_key_value|c_attn)", name) for name in shapes)


def base_of(facts: Facts, saved: SavedRun) -> ModelFacts | None:
    """The base of an adapter, where it was looked at."""
    name = (saved.adapter_config or {}).get("base_model_name_or_path")
    models: tuple[ModelFacts, ...] | Unknown = facts.state("models")
    if isinstance(models, Unknown) or not isinstance(name, str):
        return None
    return next((m for m in models if m.name in (name, f"{saved.name}/{name}")), None)


@check("QD638", needs=["saved"], since="0.3")
def adapter_whose_base_is_elsewhere(facts: Facts) -> Iterator[Finding]:
    """An adapter that names its base by a path that is not on this machine.

    Training on a local folder writes that path into adapter_config.json. On another machine `AutoPeftModel` and
    `load_quantized(ADAPTER)` then ask the Hub for that path (`... is not a valid repo id`, or a 404).

    Fix: the base's name on the Hub as `base_model_name_or_path`, or give the base when loading.

    Source: peft `config.py`; huggingface_hub `utils/_validators.py`.
    """
    for saved in adapters(facts):
        if saved.base == "missing":
            yield Finding(
                "{folder} was trained on {base}, which is not on this machine; loaded alone it fails. Give the base by hand "
                "(--adapter {folder}), or write its name on the Hub into adapter_config.json",
                {"folder": saved.name, "base": str((saved.adapter_config or {}).get("base_model_name_or_path"))},
                severity="warning",
                fixes=(Advice("Write the base's name on the Hub into adapter_config.json as base_model_name_or_path"),),
            )


@check("QD639", needs=["saved", "models"], since="0.3")
def adapter_task_against_its_base(facts: Facts) -> Iterator[Finding]:
    """A `task_type` that is not that of the base: CAUSAL_LM on an encoder-decoder, or SEQ_2_SEQ_LM on a decoder.

    The task decides which class peft wraps the model in; the wrong one passes other arguments in `generate` and in prompt
    tuning. LoRA weights themselves are the same.

    Silent without a task_type, and where the base is not in a folder here.

    Source: peft `mapping.py`, MODEL_TYPE_TO_PEFT_MODEL_MAPPING (0.21.2).
    """
    for saved in adapters(facts):
        base = base_of(facts, saved)
        task = str((saved.adapter_config or {}).get("task_type") or "")
        if base is None or not base.config or task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            continue
        kind = str(base.config.get("model_type", ""))
        family = BY_TYPE.get(kind)
        known = kind in _ENCODER_DECODERS or (family is not None and not family.layout.qformer)
        if known and (kind in _ENCODER_DECODERS) != (task == "SEQ_2_SEQ_LM"):
            yield Finding(
                "{folder}: task_type={task} on a {kind} model, which is {what}. Write {right} into adapter_config.json",
                {
                    "folder": saved.name,
                    "task": task,
                    "kind": kind,
                    "what": "an encoder-decoder" if kind in _ENCODER_DECODERS else "a decoder",
                    "right": "SEQ_2_SEQ_LM" if kind in _ENCODER_DECODERS else "CAUSAL_LM",
                },
                severity="warning",
                fixes=(Advice("Write the task of the base into adapter_config.json"),),
            )


@check("QD640", needs=["saved"], since="0.3", requires=["QD633"])
def adapter_on_the_vision_tower_alone(facts: Facts) -> Iterator[Finding]:
    """Every LoRA weight lies in the vision tower (or the projector), none in the language model.

    Short `target_modules` such as `q_proj` match the vision tower too, and a pattern with the wrong prefix matches it alone:
    the run learns, the loss falls, and the model hardly says anything new.

    Silent where `qlora-core train` was asked for that part (its run.json says so).

    Fix: the language model's modules, as `qlora_core.scope` shows them.

    Source: LLaVA's and Qwen-VL's module names.
    """
    for saved in adapters(facts):
        names = list(modules(saved))
        settings = (saved.run or {}).get("settings")
        asked = str(settings.get("train")) if isinstance(settings, Mapping) else ""
        if not names or set(asked.split("+")) & {"vision", "projector"}:
            continue
        if all(_VISION.search(name) or _PROJECTOR.search(name) for name in names):
            yield Finding(
                "{folder}: all {count} adapted modules are in the vision tower or projector ({first}), none in the language "
                "model. If that was not meant, give target_modules as a pattern of the language model",
                {"folder": saved.name, "count": len(names), "first": names[0]},
                severity="warning",
                fixes=(Advice("Give target_modules as a pattern over the language model"),),
            )


CHECKS: tuple[Check, ...] = (
    adapter_without_weights,
    adapter_with_nan_weights,
    adapter_that_learned_nothing,
    adapter_config_against_its_weights,
    adapter_that_does_not_fit_its_base,
    adapter_whose_base_is_elsewhere,
    adapter_task_against_its_base,
    adapter_on_the_vision_tower_alone,
)
