"""One examination, from the question to the verdict: select, read the requests, gather what is needed, judge.

This is the one place that knows that order. The command line, repair and the gate all come through here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qlora_doctor.collect import collect
from qlora_doctor.errors import RegistryError, UsageError
from qlora_doctor.facts import NOT_GATHERED, PARTS, Facts, Gpu, ModelFacts, Packages, Unknown
from qlora_doctor.finding import Severity
from qlora_doctor.judge import Case, Verdict, judge
from qlora_doctor.registry import Check, Installed, choose, installed_checks
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.stage import stage

if TYPE_CHECKING:
    from qlora_doctor.families import Family
    from qlora_doctor.source import Script, Value


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `paths` are scripts, notebooks, settings or folders; `model` is a repository id or a folder.

    `python` is another interpreter, `facts_file` a saved environment; at most one of them. `ssh` is another machine,
    whose interpreter `python` is then. `live`: import and try the stack for real. `gpu` and `driver` name hardware that
    is to be judged instead of what is here. `parts` names facts that are wanted beyond what the selected checks need.
    `settings` is the file that gave some of these words, for messages. `checks` are judged beside the installed ones, and
    `cases` (the cells of a running notebook) beside those of `paths`.
    """

    paths: tuple[str, ...] = ()
    model: str = ""
    python: str = ""
    facts_file: str = ""
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    severities: Mapping[str, Severity] = field(default_factory=dict)
    offline: bool = False
    parts: tuple[str, ...] = ()
    settings: str = ""
    ssh: str = ""
    live: bool = False
    gpu: str = ""
    driver: str = ""
    checks: tuple[Check, ...] = ()
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True)
class Examination:
    """The answer: the verdict, and all that it rests on."""

    question: Question
    facts: Facts
    cases: tuple[Case, ...]
    checks: tuple[Check, ...]
    verdict: Verdict

    @property
    def scripts(self) -> tuple[Script, ...]:
        """The files that were read."""
        return tuple(c.script for c in self.cases if c.script is not None)


def examine(question: Question, progress: Callable[[str, str], None] | None = None) -> Examination:
    """Selects the checks, reads the requests, gathers the facts that these checks need, and judges.

    `progress` is told the name of each live probe, first with "" and then with its outcome.

    Raises:
        UsageError: a code, path or file that is not there or cannot be used.
        ProbeError: the interpreter `question.python` gives no facts.
        RegistryError: the installed checks cannot be used.
    """
    if question.python and question.facts_file:
        raise UsageError("--python and --facts both say which environment is meant; give one of them")
    if question.ssh and question.facts_file:
        raise UsageError("--ssh and --facts both say which machine is meant; give one of them")
    if question.live and (question.facts_file or question.ssh or question.gpu or question.driver):
        raise UsageError("--live tries things on this machine; it does not go with --facts, --ssh, --gpu or --driver")
    if question.model and not (question.facts_file or question.ssh):
        _refuse_missing_model(question.model)
    available = installed_checks()
    checks, severities = _chosen(question, available)
    checks = (*checks, *question.checks)
    cases = (*read_cases(question.paths), *question.cases)
    wanted = {part for check in checks for part in (*check.needs, *check.wants)} | set(question.parts)
    if question.model:
        wanted |= {"packages", "gpus"}
    facts = gather(question, wanted, cases, progress)
    if question.model:
        cases = (*cases, Case(Requests(loads=(model_load(question.model, facts),))))
    with stage("judging"):
        verdict = judge(checks, facts, cases, severities=severities)
    outcomes = sorted((*verdict.outcomes, *available.broken), key=lambda o: o.code)
    return Examination(question, facts, cases, checks, replace(verdict, outcomes=tuple(outcomes)))


_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?\Z", re.ASCII)


def _refuse_missing_model(model: str) -> None:
    """Raises UsageError for a model that is neither a folder here nor a name that the Hub could know."""
    folder = os.path.expanduser(model)
    if os.path.exists(folder) or (_REPOSITORY.match(model) and not model.startswith((".", "~"))):
        return
    raise UsageError(
        f"--model {model}: there is no such folder, and it is no name on the Hub. Give a folder with a config.json, or "
        "a name such as llava-hf/llava-1.5-7b-hf"
    )


def _chosen(question: Question, available: Installed) -> tuple[tuple[Check, ...], dict[str, Severity]]:
    """The selected checks, and the severities that are overridden, by code."""
    lost = "; ".join(f"{o.distribution} did not load: {o.reason}" for o in available.broken)
    if not available.checks:
        raise RegistryError(f"no check could be loaded, so nothing can be said: {lost}")
    try:
        checks = choose(available.checks, question.select, question.ignore)
        severities = {
            check.code: severity
            for word, severity in question.severities.items()
            for check in choose(available.checks, [word])
        }
    except UsageError as error:
        notes = ([f"{question.settings} names checks too"] if question.settings else []) + ([lost] if lost else [])
        raise UsageError(f"{error} ({'; '.join(notes)})" if notes else str(error)) from None
    if not checks:
        raise UsageError("no check is left: what --select or `select` asks for is all in --ignore or `ignore`")
    return checks, severities


def read_cases(paths: Sequence[str]) -> tuple[Case, ...]:
    """One case for each file that `paths` lead to. Raises UsageError for a path without anything to read."""
    if not paths:
        return ()
    from qlora_doctor.gather.targets import read_targets

    with stage(f"reading {', '.join(paths)}"):
        return tuple(Case(requests, script) for script, requests in read_targets(paths))


def gather(
    question: Question,
    wanted: set[str],
    cases: Sequence[Case],
    progress: Callable[[str, str], None] | None = None,
) -> Facts:
    """The facts named in `wanted`, from the environment that the question means, and no others."""
    facts = collect(
        wanted,
        cases,
        folder=home_of(question.paths),
        python=question.python,
        facts_file=question.facts_file,
        model=question.model,
        offline=question.offline,
        ssh=question.ssh,
        live=question.live,
        progress=progress,
    )
    if not (question.gpu or question.driver):
        return facts
    from qlora_doctor.gather.what_if import imagined

    return imagined(facts, question.gpu, question.driver)


def home_of(paths: Sequence[str]) -> str:
    """The folder that a script's own imports look in first: that of the first path, else the current one."""
    try:
        first = os.path.abspath(paths[0]) if paths else os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder no longer exists; change into one that does") from None
    return first if os.path.isdir(first) else os.path.dirname(first)


def model_load(model: str, facts: Facts) -> LoadRequest:
    """The load that `load_quantized(model)` would make: NF4, double quantisation, every dtype given.

    What it chooses follows the facts: bfloat16 unless a GPU lacks it, and the keyword of the installed transformers.
    """
    from qlora_doctor.families import BY_TYPE, family_of, known_model
    from qlora_doctor.source import Call, Dotted

    known = known_model(model)
    family = _family_in_folder(model, facts) or family_of(model) or (BY_TYPE.get(known.model_type) if known else None)
    dtype = Dotted("torch.float16" if _lacks_bf16(facts.state("gpus")) else "torch.bfloat16")
    config = Call(
        "transformers.BitsAndBytesConfig",
        arguments={
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        },
    )
    arguments: dict[str, Value] = {
        "pretrained_model_name_or_path": model,
        "quantization_config": config,
        _dtype_keyword(facts): dtype,
    }
    name = family.auto_class if family else "AutoModelForCausalLM"
    return LoadRequest(Call(f"transformers.{name}.from_pretrained", arguments=arguments), source="command line")


def _family_in_folder(name: str, facts: Facts) -> Family | None:
    """The family that the configuration of a local folder names."""
    from qlora_doctor.families import BY_TYPE

    models: tuple[ModelFacts, ...] | Unknown = facts.state("models")
    config = next((m.config for m in models if m.name == name), None) if not isinstance(models, Unknown) else None
    return BY_TYPE.get(str((config or {}).get("model_type")))


def _lacks_bf16(gpus: tuple[Gpu, ...] | Unknown) -> bool:
    if isinstance(gpus, Unknown):
        return False
    return any(g.vendor == "nvidia" and g.sm is not None and g.sm < (8, 0) for g in gpus)


def _dtype_keyword(facts: Facts) -> str:
    """`torch_dtype` before transformers 4.56, `dtype` from there on."""
    packages = facts.state("packages")
    found = packages.find("transformers") if isinstance(packages, Packages) else None
    numbers = [int(n) if n.isdigit() else 0 for n in found.version.split(".")[:2]] if found else []
    return "torch_dtype" if numbers and numbers < [4, 56] else "dtype"


def known_parts(facts: Facts) -> tuple[str, ...]:
    """The names of the parts that were asked for, known or not."""
    return tuple(p for p in PARTS if p not in ("script", "model", "extra") and facts.state(p) != NOT_GATHERED)
