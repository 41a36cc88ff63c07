"""QD336: where LoRA is to be put, held against the tensors that the checkpoint really holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from qlora_checks.model_parts import config_of, family, model_of, names_are_known, weight_names
from qlora_doctor.facts import Facts, ModelFacts
from qlora_doctor.families import Family, Layout
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import TrainRequest
from qlora_doctor.source import Value

# Text models beyond our families whose modules are named as their tensors are, in every transformers.
_PLAIN = frozenset(
    [
        "mistral",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neox",
        "opt",
        "bloom",
        "falcon",
        "stablelm",
        "starcoder2",
        "olmo",
        "olmo2",
        "cohere",
        "granite",
    ]
)
_WRAPPERS = ("", "model.", "transformer.", "model.decoder.", "gpt_neox.", "backbone.")
_ENDS = (".weight", ".qweight")
_NOT_LINEAR = re.compile(r"(^|[._])(embed\w*|wte|wpe|norm|ln_\w+|layernorm\w*|\w*_norm|position_\w+|shared)(\.|$)")
MOST_NAMES = 12


@check("QD336", needs=["model"], since="0.2", requires=["QD310", "QD314", "QD321", "QD322", "QD323", "QD605"])
def lora_targets_absent_from_the_checkpoint(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`target_modules` that match none of the modules whose tensors the checkpoint holds.

    peft compares each name of a list with the end of a module's path, and takes a string for a regular expression over the
    *whole* path. Where nothing matches it stops with `Target modules ... not found in the base model`, after the model was
    downloaded and loaded. The names are known before: they stand in the headers of the safetensors files, or in their index.

    Silent for `all-linear`, where `target_parameters` is given, and where at least one module matches (peft says nothing of the
    others, nor does this check). A regular expression is tried with the prefixes of both layouts of the family (transformers
    4.52 moved the language model of vision models), so a pattern of either is right. Not judged for models that transformers
    renames while it loads them (mixtures of experts), nor where the names cannot be read without opening a pickle.

    Fix: names that exist.

    Source: peft `tuners/tuners_utils.py`, check_target_module_exists (0.21.2); the checkpoint itself.
    """
    lora, load = request.lora, request.load
    if lora is None or load is None or not lora.function.endswith("LoraConfig"):
        return
    if lora.seen("target_parameters") or lora.has("target_parameters"):
        return
    targets = lora.get("target_modules")
    if targets is None or targets == "all-linear" or not isinstance(targets, (str, tuple)):
        return
    model = model_of(facts, load)
    if not names_are_known(model) or not (family(model) or _plain(model)):
        return
    modules = modules_of(model)
    paths = layouts(modules, family(model))
    if not modules or matches(targets, paths):
        return
    found = linear_ends(model, modules)
    yield Finding(
        "target_modules={targets} matches no module of {model}; peft stops with 'Target modules ... not found in the base model'. "
        "Its linears end in {names}",
        {
            "model": model.name,
            "targets": repr(targets) if isinstance(targets, str) else str(list(targets)),
            "names": ", ".join(found[:MOST_NAMES]),
        },
        severity="error",
        site=lora.site,
        fixes=_fixes(family(model), found, request),
    )


def _fixes(kind: Family | None, found: list[str], request: TrainRequest) -> tuple[Fix, ...]:
    right: Value = kind.lora_targets if kind else tuple(n for n in found if n != "lm_head")
    if not right or request.lora is None:
        return (Advice("name modules that exist"),)
    return (TrainSetting("target_modules", right, target="lora", applicability="unsafe", site=request.lora.site),)


def _plain(model: ModelFacts) -> bool:
    return config_of(model).get("model_type") in _PLAIN and "auto_map" not in config_of(model)


def modules_of(model: ModelFacts) -> tuple[str, ...]:
    """The paths of the modules that have a weight, by the names of the tensors."""
    names = {n[: -len(e)] for n in weight_names(model) for e in _ENDS if n.endswith(e)}
    return tuple(sorted(names))


def layouts(modules: tuple[str, ...], kind: Family | None) -> frozenset[str]:
    """The paths that these modules may have once they are loaded: as they are stored, and in each layout of the family."""
    found = {*modules, "lm_head", "language_model.lm_head"}  # a tied head has no tensor of its own
    for name in modules:
        bare = next((name.removeprefix(w) for w in _WRAPPERS[1:] if name.startswith(w)), name)
        found |= {w + bare for w in (_WRAPPERS[:2] if kind else _WRAPPERS)}
        if name.endswith("shared"):  # T5 stores it once and uses it in both halves
            found |= {name.removesuffix("shared") + half for half in ("encoder.embed_tokens", "decoder.embed_tokens")}
        for layout in (kind.layout, kind.old_layout) if kind else ():
            found |= {p for p in _moved(name, layout)} if layout else set()
    return frozenset(found)


def _moved(name: str, layout: Layout) -> Iterator[str]:
    """A stored name with its part put where `layout` has it; the language model's own head stays outside."""
    for part in (layout.language_model, layout.vision_tower, layout.projector, layout.qformer):
        last = part.rpartition(".")[2]
        for start in (f"model.{last}.", f"{last}.model.", f"{last}."):
            if part and name.startswith(start):
                rest = name[len(start) :]
                yield from (f"{part}.{rest}", f"{part}.model.{rest}")
    if layout.language_model and re.match(r"(model\.)?(layers|embed_tokens)(\.|$)", name):
        rest = name.removeprefix("model.")
        yield from (f"{layout.language_model}.{rest}", f"{layout.language_model}.model.{rest}")


def matches(targets: str | tuple[Value, ...], paths: frozenset[str]) -> bool:
    """Whether peft would find a module. A pattern that is none, or a list with more than names in it, counts as found."""
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error:
            return True
        return any(pattern.fullmatch(path) for path in paths)
    names = [t for t in targets if isinstance(t, str)]
    if len(names) != len(targets) or not names:
        return True
    return any(path == name or path.endswith(f".{name}") for path in paths for name in names)


def linear_ends(model: ModelFacts, modules: tuple[str, ...]) -> list[str]:
    """The last words of the linears' paths, the most frequent first."""
    flat: Mapping[str, bool] = {n: len(t.shape) == 2 for n, t in model.tensors.items()}
    linears = [m for m in modules if flat.get(f"{m}.weight", True) and not _NOT_LINEAR.search(m)]
    ends = [name for name, _ in Counter(m.rpartition(".")[2] for m in linears).most_common()]
    return sorted(ends, key=lambda name: name == "lm_head")


CHECKS: tuple[Check, ...] = (lora_targets_absent_from_the_checkpoint,)
