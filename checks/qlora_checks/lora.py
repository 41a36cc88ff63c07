"""QD6: where LoRA is put."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qlora_checks.common import at_least, installed_version
from qlora_checks.runs import family_of_load, takes_images
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.families import Family
from qlora_doctor.finding import Finding
from qlora_doctor.fix import TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call, Value

# peft's own defaults for the families we know, read in 0.11.1 to 0.21.2; used where the installed source is unknown.
_DEFAULTS: Mapping[str, str] = {"qwen2": "0.12", "qwen3": "0.17", "blip-2": "0.6"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LLAMA = _words("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj")
_HEADS = frozenset({"lm_head", "embed_tokens"})
_CLIP = _words("out_proj fc1 fc2 linear_1 linear_2")
_T5 = _words("q k v o wi wi_0 wi_1 wo shared")
_QFORMER = _words("query key value dense")
_BLIP_VISION = _words("qkv projection fc1 fc2 language_projection")
_QWEN_VISION = _words("qkv proj fc1 fc2 linear_fc1 linear_fc2 0 2")
# Every name that a linear (or embedding) of the family ends in. Names elsewhere in the family do no harm.
_LINEARS: Mapping[str, frozenset[str]] = {
    "qwen2": _LLAMA | _HEADS,
    "qwen3": _LLAMA | _HEADS,
    "llava": _LLAMA | _HEADS | _CLIP,
    "llava_next": _LLAMA | _HEADS | _CLIP,
    "qwen2_vl": _LLAMA | _HEADS | _QWEN_VISION,
    "qwen2_5_vl": _LLAMA | _HEADS | _QWEN_VISION,
    "qwen3_vl": _LLAMA | _HEADS | _QWEN_VISION,
    "instructblip": _LLAMA | _HEADS | _T5 | _QFORMER | _BLIP_VISION,
    "blip-2": _words("q_proj k_proj v_proj out_proj fc1 fc2") | _HEADS | _T5 | _QFORMER | _BLIP_VISION,
}
# Names that well-known architectures use. Only these are ever called wrong: any other may be a module we do not know.
_FOREIGN = _words(
    "query_key_value dense_h_to_4h dense_4h_to_h c_attn c_proj c_fc Wqkv in_proj qkv_proj gate_up_proj w1 w2 w3 wqkv wo "
    "W_pack query key value dense q k v o wi wi_0 wi_1 q_proj k_proj v_proj o_proj out_proj fc1 fc2 gate_proj up_proj "
    "down_proj"
)
# Text models beyond our families whose linears are named as Llama's are.
_LLAMA_CLASSES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM"})
_LLAMA_NAMES = ("meta-llama/", "mistralai/mistral-", "tinyllama/", "huggyllama/", "lmsys/vicuna-", "01-ai/yi-")
_TOP_LEVEL = frozenset({"lm_head", "score", "classifier", "language_projection", "embed_out"})


@check("QD604", needs=["packages"], since="0.1")
def lora_without_target_modules(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A LoraConfig without `target_modules` on an architecture for which peft has no default.

    peft then raises `ValueError: Please specify target_modules or target_parameters in peft_config` as soon as the
    adapters are made. peft 0.21 has defaults for qwen2, qwen3, llama, mistral, gemma and some more, and for blip-2;
    none for LLaVA, Qwen-VL and InstructBLIP. Where the installed peft can be read, its own list decides.

    Silent where peft has a default (then `q_proj` and `v_proj` get adapters), where `target_parameters` is given, and
    for models that we do not know.

    Fix: `target_modules` with a pattern that hits the language model's linears alone.

    Source: peft `utils/constants.py`; run on peft 0.21.2 (LLaVA raises, qwen2 does not).
    """
    lora, family = request.lora, family_of_load(request.load)
    if lora is None or not lora.function.endswith("LoraConfig") or family is None:
        return
    if lora.has("target_modules", "target_parameters") and lora.get("target_modules", "given") is not None:
        return
    if _has_default(facts, family):
        return
    yield Finding(
        "LoraConfig names no target_modules, and peft {peft} has no default for {family} ({model_type}): it stops with "
        "'Please specify target_modules'. Pass target_modules={pattern!r}, which hits the language model's linears",
        {
            "peft": str(installed_version(facts, "peft")),
            "family": family.title,
            "model_type": family.model_type,
            "pattern": family.lora_targets,
        },
        severity="error",
        site=lora.site,
        fixes=(TrainSetting("target_modules", family.lora_targets, target="lora", site=lora.site),),
    )


def _has_default(facts: Facts, family: Family) -> bool:
    installed = facts.state("installed")
    if not isinstance(installed, Unknown) and installed.lora_defaults:
        return family.model_type in installed.lora_defaults
    since = _DEFAULTS.get(family.model_type)
    return since is not None and at_least(installed_version(facts, "peft"), since)


@check("QD605", since="0.1")
def lora_targets_that_match_nothing(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`target_modules` that cannot match one module of the model.

    peft raises at once: `NoMatchingPeftModuleError: Target modules ... not found in the base model` (`ValueError` in
    older releases). Three ways to get there:

    - a plain string. peft takes a string for a regular expression over the *whole* path of a module, so `"q_proj"`
      matches nothing; a list is compared with the end of each path, so `["q_proj"]` is what was meant.
    - `["all-linear"]`: the word is special only as a string.
    - names of another architecture, all of them: `["query_key_value"]` on Qwen, `["q_proj", "v_proj"]` on an
      InstructBLIP with a T5. Judged for the families that we know, and only for names that we know from elsewhere.

    peft says nothing of names that match nothing as long as one of the list matches; neither does this check.

    Source: peft `tuners/tuners_utils.py`, check_target_module_exists; run on peft 0.21.2.
    """
    lora = request.lora
    if lora is None or not lora.function.endswith("LoraConfig"):
        return
    targets = lora.get("target_modules")
    if isinstance(targets, str):
        yield from _plain_string(lora, targets)
    elif isinstance(targets, tuple) and targets and all(isinstance(t, str) for t in targets):
        yield from _list(lora, tuple(str(t) for t in targets), request.load)


def _plain_string(lora: Call, targets: str) -> Iterator[Finding]:
    if targets == "all-linear" or not re.fullmatch(r"\w+(,\s*\w+)*", targets) or targets in _TOP_LEVEL:
        return
    names = tuple(part.strip() for part in targets.split(","))
    if names[0] not in _FOREIGN:
        return
    yield Finding(
        "target_modules={targets!r} is a string, which peft takes for a regular expression over the whole module path; "
        "it matches no module, and peft stops with 'Target modules ... not found'. Pass a list: {names}",
        {"targets": targets, "names": str(list(names))},
        severity="error",
        site=lora.site,
        fixes=(TrainSetting("target_modules", names, target="lora", site=lora.site),),
    )


def _list(lora: Call, targets: tuple[str, ...], load: LoadRequest | None) -> Iterator[Finding]:
    if "all-linear" in targets:
        if len(targets) == 1:
            yield Finding(
                "target_modules=['all-linear'] looks for a module of that name and finds none; the word is special only "
                "as a string. Write target_modules='all-linear'",
                {},
                severity="error",
                site=lora.site,
                fixes=(TrainSetting("target_modules", "all-linear", target="lora", site=lora.site),),
            )
        return
    ends = {target.rpartition(".")[2] for target in targets}
    title, names, right = _linears(load)
    if not names or ends & names or not ends <= _FOREIGN:
        return
    yield Finding(
        "None of target_modules={targets} exists in {family}; peft stops with 'Target modules ... not found in the base "
        "model'. Its linears are found by target_modules={right!r}",
        {"targets": str(list(targets)), "family": title, "right": list(right) if isinstance(right, tuple) else right},
        severity="error",
        site=lora.site,
        fixes=(TrainSetting("target_modules", right, target="lora", applicability="unsafe", site=lora.site),),
    )


def _linears(load: LoadRequest | None) -> tuple[str, frozenset[str], str | tuple[str, ...]]:
    """What the model is called, the names that its linears end in (empty: not known), and targets that are right."""
    family = family_of_load(load)
    model = "" if load is None else str(load.call.seen("pretrained_model_name_or_path") or "").lower()
    if family is None:
        like = load is not None and (load.class_name in _LLAMA_CLASSES or model.startswith(_LLAMA_NAMES))
        return "this model", _LLAMA | _HEADS if like else frozenset(), tuple(sorted(_LLAMA))
    names = _LINEARS.get(family.model_type, frozenset())
    if "blip" in family.model_type and "t5" in model:
        names = _T5 | _QFORMER | _BLIP_VISION | {"lm_head"}
    return family.title, names, family.lora_targets


@check("QD606", since="0.1")
def lora_on_the_vision_tower(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`target_modules="all-linear"` on a vision-language model.

    It means all: on tiny models LoRA went to 16 linears of the vision tower, 40 of the Q-Former, 2 of the projection
    and 28 of the language model of an InstructBLIP. It works, costs memory, and often is not what was meant; LLaVA's
    own recipe keeps LoRA off the vision tower. Information.

    (`["query", "key", "value", "dense"]` on InstructBLIP hits the Q-Former alone, whatever is said of it.)

    Fix: a pattern for the language model alone.

    Source: run on peft 0.21.2 and 0.12.0; peft `tuners/tuners_utils.py`.
    """
    lora, load = request.lora, request.load
    if lora is None or load is None or lora.seen("target_modules") != "all-linear" or not takes_images(load):
        return
    if lora.has("exclude_modules"):
        return
    family = family_of_load(load)
    fixes = () if family is None else (_language_model_only(lora, family),)
    yield Finding(
        "target_modules='all-linear' on {model} also puts LoRA on the vision tower and what connects it to the language "
        "model. It works and costs memory; if the language model alone is meant, give a pattern for its linears",
        {"model": load.model_or},
        severity="info",
        site=lora.site,
        fixes=fixes,
    )


def _language_model_only(lora: Call, family: Family) -> TrainSetting:
    value: Value = family.lora_targets
    return TrainSetting("target_modules", value, target="lora", applicability="unsafe", site=lora.site)


@check("QD607", needs=["packages"], since="0.1")
def task_type_with_blip(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A LoraConfig with `task_type` on InstructBLIP or BLIP-2 with transformers below 4.54.

    For CAUSAL_LM, SEQ_2_SEQ_LM, QUESTION_ANS and FEATURE_EXTRACTION peft picks a wrapper that always hands
    `inputs_embeds` on. The forward of these models takes it only from 4.54 on. Before, the first step stops with
    `TypeError: ... forward() got an unexpected keyword argument 'inputs_embeds'`; in 4.52 and 4.53, which take any
    keyword, with `TypeError: ... got multiple values for keyword argument 'inputs_embeds'`. FEATURE_EXTRACTION is no
    cure: every task type fails. Without `task_type` the plain wrapper passes on what it is given, and training works.

    Fix: leave `task_type` out (or transformers 4.54 and newer). A forward of one's own is not needed.

    Source: run on 4.44.2 with peft 0.12.0, 4.53.3 with peft 0.17.1 and 5.23.0 with peft 0.21.2; transformers
    `models/instructblip` and `models/blip_2` 4.44.2, 4.49.0, 4.53.3, 4.57.6.
    """
    lora, family = request.lora, family_of_load(request.load)
    if lora is None or family is None or family.model_type not in ("instructblip", "blip-2"):
        return
    try:
        task = lora.get("task_type")
    except UnknownArgument:
        if "task_type" not in lora.arguments:
            raise
        task = "a task type"
    version = installed_version(facts, "transformers")
    if task is None or at_least(version, "4.54"):
        return
    yield Finding(
        "LoraConfig has a task_type, and with transformers {transformers} {family} then stops at the first step: "
        "TypeError, '{keyword}'. Leave task_type out, or upgrade to transformers 4.54 or newer",
        {
            "transformers": str(version),
            "family": family.title,
            "keyword": "multiple values for keyword argument inputs_embeds"
            if at_least(version, "4.52")
            else "unexpected keyword argument inputs_embeds",
        },
        severity="error",
        site=lora.site,
        fixes=(TrainSetting("task_type", drop=True, target="lora", site=lora.site),),
    )


CHECKS: tuple[Check, ...] = (
    lora_without_target_modules,
    lora_targets_that_match_nothing,
    lora_on_the_vision_tower,
    task_type_with_blip,
)
