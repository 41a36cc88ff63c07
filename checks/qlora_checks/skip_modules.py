"""QD1: `llm_int8_skip_modules`, whose meaning changed in transformers 5."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import tables
from qlora_checks.common import at_least, bnb_quantization, installed_version
from qlora_checks.quantization import config_of
from qlora_doctor.facts import Facts
from qlora_doctor.families import BY_CLASS, Family, family_of
from qlora_doctor.finding import Finding
from qlora_doctor.fix import LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest

_TIED = re.compile(r"qwen/qwen(2-0\.5b|2-1\.5b|2\.5-(0\.5|1\.5|3)b|3-(0\.6|1\.7|4)b|2-vl-2b|2\.5-vl-3b|3-vl-(2|4)b)")


def linear_names(family: Family) -> tuple[str, ...]:
    """The full names of a family's linear layers in transformers 5, numbers as 0."""
    data = tables.load("linears.toml")
    return tuple(data["families"].get(data["same"].get(family.model_type, family.model_type), ()))


def skips(entry: str, name: str, *, boundary: bool = True) -> bool:
    """Whether transformers 5 leaves the linear `name` unquantised because of `entry`.

    An entry is a regular expression that is matched from the start of the full name, or a plain suffix of it
    (`should_convert_module`, read in 5.0, 5.6 and 5.23). `boundary`: the match must end at a dot, as in 5.23.
    """
    if name.endswith(entry):
        return True
    end = r"(?:(?<=\.)|(?=\.|$))" if boundary else ""
    try:
        return re.match(f"(?:{entry}){end}", name) is not None
    except re.error:
        return False


def _left_out(entry: str, entries: tuple[str, ...], names: tuple[str, ...], boundary: bool) -> list[str]:
    """The linears that `entry` skipped by the old rule (anywhere in the path) and that no entry skips by the new one."""
    meant = [n for n in names if f"{entry}." in n]
    return [n for n in meant if not any(skips(e, n, boundary=boundary) for e in entries)]


@check("QD116", needs=["packages"], since="0.1")
def skip_modules_that_skip_nothing(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A `llm_int8_skip_modules` whose entries match nothing in transformers 5, or that lets go of `lm_head`.

    Up to transformers 4.57 an entry matched anywhere in a module's path. From 5.0 it matches from the start of the
    full path or as a suffix, and transformers moved the parts of the vision-language models under `model.` in 4.52. So
    `["vision_tower"]` for LLaVA and `["visual"]` for Qwen-VL skip nothing any more: the vision tower is quantised, and
    nothing says so (run on 5.23: 35 of 35 linears in 4 bit). `".*vision_tower"` and `"model.vision_tower"` work.

    In every version a list of one's own replaces the default list, so `lm_head` is quantised too unless it is named.
    That costs quality; where the output layer is tied to the embeddings the first forward fails with an empty
    AssertionError (run on 5.23 with small tied Qwen2, Qwen2-VL, Qwen2.5-VL and Qwen3-VL). The Qwen models up to 4B are
    tied, and known by their names.

    Only the families whose layer names the doctor knows are judged, by class or by the model's name. A name that never
    matched anything (left over from another model) is not reported, nor a plain name beside its `.*` twin, which is how
    one list serves both transformers 4 and 5.
    """
    quantization = bnb_quantization(request)
    config = config_of(request) if quantization is not None else None
    if config is None:
        return
    given = config.get("llm_int8_skip_modules")
    name = request.call.seen("pretrained_model_name_or_path")
    family = BY_CLASS.get(request.class_name) or (family_of(name) if isinstance(name, str) else None)
    if family is None or not isinstance(given, tuple) or not given:
        return
    entries = tuple(e for e in given if isinstance(e, str))
    version = installed_version(facts, "transformers")
    if len(entries) != len(given) or not at_least(version, "5.0"):
        return
    names = linear_names(family)
    boundary = at_least(version, "5.23")
    dead = [e for e in entries if _left_out(e, entries, names, boundary)]
    heads = [n for n in names if n.endswith("lm_head")]
    head = bool(heads) and not any(skips(e, n, boundary=boundary) for e in entries for n in heads)
    if not dead and not head:
        return
    replaced = tuple(f".*{e}" if e in dead else e for e in entries)
    right = (*replaced, *(("lm_head",) if head else ()))
    tied = isinstance(name, str) and bool(_TIED.match(name.lower()))
    fix = LoadKwarg("llm_int8_skip_modules", right, target="quantization", applicability="unsafe", site=request.site)
    evidence = {
        "entries": list(entries),
        "dead": dead,
        "right": list(right),
        "family": family.title,
        "transformers": str(version),
        "tied": tied,
    }
    if dead:
        yield Finding(
            "llm_int8_skip_modules: in transformers {transformers} {dead} matches no layer of {family}, so that part "
            "is quantised as well (entries match from the start of the full path now); pass {right}",
            evidence=evidence,
            severity="warning",
            site=config.site or request.site,
            fixes=(fix,),
        )
    if head:
        yield Finding(
            _HEAD_TIED if tied else _HEAD,
            evidence=evidence,
            severity="error" if tied else "warning",
            site=config.site or request.site,
            fixes=(fix,),
        )


_HEAD = (
    "llm_int8_skip_modules: {entries} replaces the default list, so lm_head of {family} is quantised too, which costs "
    "quality; pass {right}"
)
_HEAD_TIED = (
    "llm_int8_skip_modules: {entries} replaces the default list, so lm_head is quantised, but here it is tied to the "
    "embeddings and the first forward fails with an empty AssertionError; pass {right}"
)


CHECKS: tuple[Check, ...] = (skip_modules_that_skip_nothing,)
