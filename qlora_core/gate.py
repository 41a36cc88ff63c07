"""The gate: the doctor's checks on the load that is about to happen, and the fixes that can be made in memory.

Argument fixes are folded in rounds until the checks are quiet; here all of them, also those that `fix` would only make
when told to, for nothing on disk changes and each is listed. What is left decides: an error blocks the load.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qlora_core.errors import LoadBlocked, show_size
from qlora_core.report import Change
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts, Hub, Unknown
from qlora_doctor.finding import Finding, Outcome
from qlora_doctor.fix import Advice, EnvVar, LoadKwarg
from qlora_doctor.judge import Case, Verdict, judge
from qlora_doctor.registry import Check, installed_checks, matches
from qlora_doctor.repair.simulate import facts_after, request_after
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import EnvironWrite, Script, show

ROUNDS = 10
# Read when their package is imported; set later they do nothing, so later we pass an argument or refuse.
READ_AT_IMPORT = {
    "huggingface_hub": ("HF_", "HUGGINGFACE_", "HUGGING_FACE_"),
    "torch": ("CUDA_", "PYTORCH_", "TORCH_"),
    "transformers": ("TRANSFORMERS_",),
    "bitsandbytes": ("BNB_",),
}


@dataclass(frozen=True, slots=True)
class Passed:
    """What the gate let through: the request after its changes, and what it has to say.

    `left` are findings that a later step of the loader settles: the step's name, and what to say where it did not.
    """

    request: LoadRequest
    facts: Facts
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    environ: Mapping[str, str | None] = field(default_factory=dict)
    left: tuple[tuple[str, str], ...] = ()

    @property
    def endpoint(self) -> str | None:
        """The Hub endpoint that a change asks for, to be passed as an argument; None where none does."""
        if "HF_ENDPOINT" not in self.environ:
            return None
        return self.environ["HF_ENDPOINT"] or Hub().endpoint


def checks_for_loads(switched_off: Sequence[str]) -> tuple[tuple[Check, ...], tuple[Outcome, ...]]:
    """The installed checks that concern a load, without those switched off, and the plug-ins that are broken.

    Raises:
        UsageError: a switched-off word that is a code of no check.
    """
    available = installed_checks()
    for word in switched_off:
        available.find(word)
    chosen = tuple(
        c
        for c in available.checks
        if c.judges != "train" and not c.per_script and not any(matches(c, word) for word in switched_off)
    )
    return chosen, available.broken


def gather_facts(request: LoadRequest, checks: Sequence[Check], *, offline: bool, endpoint: str | None = None) -> Facts:
    """The facts that `checks` need, of this process and this request; the Hub is asked at `endpoint` where one is given."""
    from qlora_doctor import examine

    wanted = {need for check in checks for need in check.needs} | {"packages", "gpus", "torch", "host"}
    case = _case(request)
    if endpoint:
        # As a script says it that sets the variable before its imports.
        write = EnvironWrite("HF_ENDPOINT", endpoint.rstrip("/"))
        case = replace(case, script=Script("", environ=(write,)))
    return examine.gather(examine.Question(offline=offline), wanted, [case])


def gate(
    request: LoadRequest,
    facts: Facts,
    checks: Sequence[Check],
    broken: Sequence[Outcome] = (),
    *,
    fix: bool = True,
    strict: bool = False,
    alternatives: Mapping[int, LoadRequest] | None = None,
    sizes: Mapping[int, int | None] | None = None,
    settles: Mapping[str, str] | None = None,
) -> Passed:
    """Judges the request and folds the fixes in.

    With `fix=False` nothing is changed and nothing blocked: every finding becomes a warning. `alternatives` are the
    same load with other bits, which a refusal offers where they would pass; `sizes` their weights in bytes. `settles`
    maps the code of a check to the step of the loader that settles what it finds: that neither blocks nor warns here.

    Raises:
        LoadBlocked: an error is left, or (`strict`) a check is unknown or crashed.
    """
    changes: list[Change] = []
    environ: dict[str, str | None] = {}
    tried: set[tuple[str, str]] = set()
    verdict = _judge(checks, facts, request)
    for _ in range(ROUNDS if fix else 0):
        chosen = _choose(verdict, tried)
        if not chosen:
            break
        for finding, one in chosen:
            changes.append(_change(finding, one, request, facts))
            request = request_after(request, (one,))
            facts = facts_after(facts, (one,))
            if isinstance(one, EnvVar):
                environ[one.name] = one.value
        verdict = _judge(checks, facts, request)
    steps = settles or {}
    left = tuple((steps[f.code], f"{f.code}: {f.text}") for f in verdict.findings if f.code in steps)
    open_ones = [f for f in verdict.findings if f.code not in steps]
    errors = [f for f in open_ones if f.severity == "error"]
    doubts = [o for o in (*verdict.outcomes, *broken) if o.outcome in ("unknown", "crashed")]
    doubts_text = _doubts(doubts)
    if fix and (errors or (strict and doubts)):
        instead = _instead(checks, facts, alternatives or {}, sizes or {}) if errors else ""
        raise LoadBlocked(errors, _way_out(errors, request), reasons=doubts_text if strict else (), instead=instead)
    said = [f"{f.code}: {f.text}" for f in open_ones if f.severity == "warning" or (not fix and f in errors)]
    return Passed(request, facts, tuple(changes), (*said, *doubts_text), environ, left)


def _way_out(errors: Sequence[Finding], request: LoadRequest) -> str:
    """The command that helps: `fix`, unless every error has only advice, as a model that is too large for the card has."""
    advice = [[f.command for f in e.fixes if isinstance(f, Advice) and f.command] for e in errors]
    only = all(words and len(words) == len(e.fixes) for words, e in zip(advice, errors, strict=True))
    return advice[0][0] if errors and only else fix_command(request)


def _doubts(doubts: Sequence[Outcome]) -> list[str]:
    """One line for each crash, and one for all checks that could not tell for the same reason."""
    lines: list[str] = []
    reasons: dict[str, list[Outcome]] = {}
    for one in doubts:
        if one.outcome == "crashed":
            lines.append(f"{one.code} ({one.name}) is crashed: {one.reason}")
        else:
            reasons.setdefault(one.reason, []).append(one)
    for reason, same in reasons.items():
        if len(same) == 1:
            lines.append(f"{same[0].code} ({same[0].name}) is unknown: {reason}")
        else:
            codes = ", ".join(o.code for o in same)
            lines.append(f"{len(same)} checks could not be made, because of {reason} ({codes})")
    return lines


def fix_command(request: LoadRequest) -> str:
    """The doctor's command for this interpreter and this model."""
    from qlora_doctor.report.shell import command_line

    return command_line(["qlora-doctor", "fix", "--python", sys.executable or "python", "--model", request.model_or])


def set_environment(environ: Mapping[str, str | None]) -> None:
    """Carries out the environment changes that the gate made; each was possible when it was chosen."""
    for name, value in environ.items():
        if name == "HF_ENDPOINT":
            continue
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _case(request: LoadRequest) -> Case:
    return Case(Requests(loads=(request,), imports=("bitsandbytes", "peft", "torch", "transformers")))


def _judge(checks: Sequence[Check], facts: Facts, request: LoadRequest) -> Verdict:
    return judge(checks, facts, [_case(request)])


def _choose(verdict: Verdict, tried: set[tuple[str, str]]) -> list[tuple[Finding, LoadKwarg | EnvVar]]:
    """The fixes of this round: at most one for each argument, and none that was made before."""
    chosen: list[tuple[Finding, LoadKwarg | EnvVar]] = []
    taken: set[str] = set()
    for finding in verdict.findings:
        for fix in finding.fixes:
            if not isinstance(fix, (LoadKwarg, EnvVar)) or not _possible(fix, finding):
                continue
            key = (fix.name, "dropped" if isinstance(fix, LoadKwarg) and fix.drop else show(fix.value))
            if fix.name in taken or key in tried:
                continue
            taken.add(fix.name)
            tried.add(key)
            chosen.append((finding, fix))
            break
    return chosen


def _possible(fix: LoadKwarg | EnvVar, finding: Finding) -> bool:
    """Whether the gate makes this fix: an argument always; a variable that is safe or needed, and not too late."""
    if fix.applicability == "display-only" or (finding.severity == "info" and fix.applicability != "safe"):
        return False
    if isinstance(fix, LoadKwarg):
        return True
    if finding.severity == "info" or (fix.applicability == "unsafe" and finding.severity != "error"):
        return False
    return fix.name == "HF_ENDPOINT" or not _too_late(fix.name)


def _too_late(name: str) -> bool:
    return any(package in sys.modules and name.startswith(prefixes) for package, prefixes in READ_AT_IMPORT.items())


def _change(finding: Finding, fix: LoadKwarg | EnvVar, request: LoadRequest, facts: Facts) -> Change:
    if isinstance(fix, EnvVar):
        environ = facts.state("environ")
        old = None if isinstance(environ, Unknown) else environ.get(fix.name)
        return Change(finding.code, fix.name, old or "not set", fix.value or "not set", finding.text)
    arguments = request.call.arguments
    if fix.target == "quantization":
        arguments = getattr(arguments.get("quantization_config"), "arguments", {})
    name = fix.replaces or fix.name
    before = show(arguments[name]) if name in arguments else "not given"
    after = "not given" if fix.drop else f"{fix.name}={show(fix.value)}" if fix.replaces else show(fix.value)
    return Change(finding.code, name, before, after, finding.text)


def _instead(
    checks: Sequence[Check], facts: Facts, alternatives: Mapping[int, LoadRequest], sizes: Mapping[int, int | None]
) -> str:
    """Which other bits would pass the gate as the environment is, with the size of their weights."""
    offers = []
    for bits, request in alternatives.items():
        if any(f.severity == "error" for f in _judge(checks, facts, request).findings):
            continue
        size = sizes.get(bits)
        offers.append(f"bits={bits}" + ("" if size is None else f" (weights take about {show_size(size)})"))
    return f"As the environment is, these would load instead: {', '.join(offers)}" if offers else ""


def switched_off(fixes: Mapping[str, bool] | None, steps: Sequence[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The loader's own steps and the checks' codes that `fixes` switches off.

    Raises:
        UsageError: a value that is not True or False.
    """
    off = []
    for word, wanted in (fixes or {}).items():
        if not isinstance(wanted, bool):
            raise UsageError(f"fixes[{word!r}] is {wanted!r}; give False to switch it off, True to leave it on")
        if not wanted:
            off.append(word)
    return frozenset(w for w in off if w in steps), tuple(w for w in off if w not in steps)
