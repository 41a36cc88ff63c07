"""The report as text: the verdict first, then each finding with its fixes, then what could not be said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qlora_doctor.examine import Examination, known_parts
from qlora_doctor.facts import Driver, Facts, Interpreter, Packages, TorchBuild, Unknown
from qlora_doctor.finding import Finding, Outcome
from qlora_doctor.fix import Fix
from qlora_doctor.i18n import finding_text, said, tr
from qlora_doctor.report import counts, target
from qlora_doctor.report.columns import pad, table, wrap
from qlora_doctor.report.shell import command_line
from qlora_doctor.source import Script, Site

Paint = Callable[[str, str], str]
STYLES = {"error": "31;1", "warning": "33;1", "info": "36", "bold": "1", "dim": "2", "ok": "32"}
INDENT = "    "
_STACK = ("transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "unsloth", "qlora_core")
# What a package's name or a script's string may hold, and a terminal would obey. Our own colours stay.
_CONTROL = re.compile(r"(\x1b\[(?:31;1|33;1|36|32|[012])m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str, style: str) -> str:
    """The text as it is."""
    return text


def ansi(text: str, style: str) -> str:
    """The text in a terminal's colour."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def sanitized(text: str) -> str:
    """A text without what a terminal would obey."""
    return _CONTROL.sub("\ufffd", text)


def render(
    examination: Examination,
    *,
    verbose: bool = False,
    paint: Paint = plain,
    columns: int | None = None,
    ignored: Mapping[str, str] | None = None,
) -> str:
    """The report. `columns` wraps the messages; `ignored` are the codes the project ignores, with the reasons."""
    verdict = examination.verdict
    lines = [_verdict_line(examination, paint)]
    lines += [line for s in examination.scripts if s.note for line in wrap(f"note: {s.path}: {s.note}", columns)]
    lines += [line for s in examination.scripts if s.problem for line in wrap(_unread(s), columns)]
    lines += [line for note in _empty(examination) for line in wrap(note, columns)]
    for finding in _by_file(verdict.findings):
        lines += ["", *_finding(finding, verbose, paint, columns)]
    rest = [*_unsaid(verdict.outcomes, "crashed", columns), *_unsaid(verdict.outcomes, "unknown", columns)]
    if verdict.findings:
        first, *more = wrap(f"checked: {_checked(examination.facts)}", columns)
        rest += [first, *(INDENT + line for line in more), *_next(examination)]
    if rest:
        lines += ["", *rest]
    if verbose:
        lines += ["", *_outcomes(verdict.outcomes, paint), *_ignored(ignored or {}), "", *_facts(examination.facts)]
    return _CONTROL.sub(lambda m: (m[1] if paint is not plain else None) or "\ufffd", "\n".join(lines))


def _verdict_line(examination: Examination, paint: Paint) -> str:
    verdict = examination.verdict
    judged = sum(o.outcome in ("ok", "found") for o in verdict.outcomes)
    unsaid = sum(o.outcome in ("unknown", "crashed") for o in verdict.outcomes)
    scope = tr("{judged} check judged" if judged == 1 else "{judged} checks judged", judged=judged)
    if unsaid:
        scope += tr(", {unsaid} could not say", unsaid=unsaid)
    found = counts(verdict.findings)
    if not found:
        shown = paint(tr("nothing found"), "ok")
    else:
        shown = paint(found, verdict.findings[0].severity)
    return tr("{found} in {target} ({scope})", found=shown, target=said(target(examination)), scope=scope)


def _unread(script: Script) -> str:
    line = f":{script.problem_line}" if script.problem_line else ""
    partly = script.kind == "notebook" and script.calls
    what = "was read in part" if partly else "could not be read, so nothing in it was judged"
    return f"note: {script.path}{line} {what}: {script.problem}"


def _empty(examination: Examination) -> Iterator[str]:
    """A note for each named file in which nothing was found to judge: often it is the wrong one."""
    for case in examination.cases:
        script = case.script
        if script is None or script.path not in examination.question.paths or script.problem or script.note:
            continue
        if script.kind == "config" and not (case.requests.loads or case.requests.trains):
            yield f"note: {script.path}: none of its keys is a load or training argument that is known here"
        elif script.kind in ("python", "notebook") and not any(
            c.function.partition(".")[0] in _STACK for c in script.calls
        ):
            yield f"note: {script.path}: nothing of {', '.join(_STACK[:4])} is called in it; is it the script that trains?"


def _by_file(findings: Sequence[Finding]) -> list[Finding]:
    """The environment first, then file by file; gravest first within each."""
    return sorted(findings, key=lambda f: "" if f.site is None else f.site.path)


def place(site: Site | None) -> str:
    """`train.py:12:9`; in a notebook `run.ipynb:cell 3:12:9`, the first cell being 1; `environment` without a place."""
    if site is None:
        return tr("environment")
    parts = [site.path]
    if site.cell is not None:
        parts.append(tr("cell {number}", number=site.cell + 1))
    if site.line:
        parts.append(str(site.line))
        if site.column:
            parts.append(str(site.column))
    return ":".join(parts)


def _finding(finding: Finding, verbose: bool, paint: Paint, columns: int | None) -> list[str]:
    head = f"{place(finding.site)}: {paint(tr(finding.severity), finding.severity)} {paint(finding.code, 'bold')}"
    room = None if columns is None else max(columns - len(INDENT), 20)
    lines = [f"{head} {finding.name}", *(INDENT + line for line in wrap(finding_text(finding), room))]
    for fix in finding.fixes:
        shown = wrap(_fix(fix), None if room is None else room - 4)
        lines += [INDENT + ("" if i == 0 else "  ") + line for i, line in enumerate(shown)]
        command = getattr(fix, "command", "")
        if command:
            lines.append(f"{INDENT}     $ {command}")
    if verbose:
        lines += [paint(f"{INDENT}{k}: {_short(v)}", "dim") for k, v in sorted(finding.evidence.items())]
    return lines


def _fix(fix: Fix) -> str:
    return tr("fix: {title} ({applicability})", title=said(fix.title), applicability=tr(fix.applicability))


def _unsaid(outcomes: Sequence[Outcome], word: str, columns: int | None) -> list[str]:
    """The reasons why checks crashed or could not say, each with the codes that it concerns."""
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.outcome == word:
            reason = outcome.reason if word == "unknown" else f"{outcome.reason} [{outcome.distribution}]"
            reasons.setdefault(reason, []).append(outcome.code)
    lines = []
    for reason, codes in reasons.items():
        shown = ", ".join(codes[:4]) + (tr(" and {more} more", more=len(codes) - 4) if len(codes) > 4 else "")
        label = tr("could not say") if word == "unknown" else tr("crashed")
        first, *more = wrap(f"{label}: {shown}: {said(reason)}", columns)
        lines += [first, *(INDENT + line for line in more)]
    return lines


def _checked(facts: Facts) -> str:
    """The environment in one line: Python, torch and its CUDA, the stack, the GPUs and their driver."""
    parts = []
    interpreter, packages, torch = facts.state("interpreter"), facts.state("packages"), facts.state("torch")
    if isinstance(interpreter, Interpreter):
        parts.append(f"Python {interpreter.version}")
    if isinstance(torch, TorchBuild):
        kind = {"cuda": f"CUDA {torch.cuda}", "rocm": f"ROCm {torch.hip}", "cpu": "CPU build, no CUDA"}
        parts.append(f"torch {torch.version} ({kind.get(torch.kind, torch.kind)})")
    if isinstance(packages, Packages):
        found = [packages.find(name) for name in ("transformers", "bitsandbytes", "peft", "accelerate", "trl")]
        parts += [f"{d.name} {d.version}" for d in found if d is not None]
    gpus, driver = facts.state("gpus"), facts.state("driver")
    if isinstance(gpus, tuple):
        names = [g.name for g in gpus]
        each = {name: names.count(name) for name in names}
        parts.append(", ".join(f"{n} x {name}" if n > 1 else name for name, n in each.items()) or "no GPU")
    if isinstance(driver, Driver):
        parts.append(f"driver {driver.version}")
    return ", ".join(map(said, parts)) or tr("nothing of the environment")


def _next(examination: Examination) -> list[str]:
    """The commands that go on from here."""
    question = examination.question
    lines = [] if question.facts_file or question.ssh or question.python else _another(examination.facts)
    fixable = any(fix.applicability != "display-only" for f in examination.verdict.findings for fix in f.fixes)
    if fixable and not (question.facts_file or question.ssh):
        words = ["qlora-doctor fix", *(_quoted(p) for p in question.paths)]
        words += ["--model " + _quoted(question.model)] if question.model else []
        words += ["--python " + _quoted(question.python)] if question.python else []
        lines.append(f"{' '.join(words)}   (shows the repairs, changes nothing)")
    lines.append(f"qlora-doctor explain {examination.verdict.findings[0].code}")
    return [pad("" if i else tr("next:"), 9) + said(line) for i, line in enumerate(lines)]


def _another(facts: Facts) -> list[str]:
    """What to do first where the doctor judged its own environment, and that one can hardly be the one for training."""
    interpreter, packages = facts.state("interpreter"), facts.state("packages")
    if not isinstance(packages, Packages) or packages.find("torch") or packages.find("transformers"):
        return []
    where = interpreter.executable if isinstance(interpreter, Interpreter) else "the doctor's own Python"
    return [
        f"--python EXE, if your training runs elsewhere (this judged {where}, which has no torch and no transformers)"
    ]


def _quoted(word: str) -> str:
    """A word for this machine's shell."""
    return word if re.fullmatch(r"[\w@%+=:,./~-]+", word) else command_line([word])


def _outcomes(outcomes: Sequence[Outcome], paint: Paint) -> list[str]:
    rows = [[o.code, o.outcome, o.name, o.reason] for o in outcomes]
    return [paint("outcomes", "bold"), *(INDENT + line for line in table(rows))]


def _ignored(ignored: Mapping[str, str]) -> list[str]:
    return [
        f"{INDENT}{word}  ignored by the project{': ' + reason if reason else ''}" for word, reason in ignored.items()
    ]


def _facts(facts: Facts) -> list[str]:
    """One line a part: what it is, or why it is not known."""
    rows = [[name, _part(facts.state(name))] for name in known_parts(facts)]
    return ["facts", *(INDENT + line for line in table(rows))]


def _part(value: Any) -> str:
    if isinstance(value, Unknown):
        return f"{'not asked' if value.skipped else 'unknown'}: {value.reason}"
    distributions = getattr(value, "distributions", None)
    if distributions is not None:
        return f"{len(distributions)} distributions"
    if value is None:
        return "none"
    if isinstance(value, (tuple, Mapping)):
        return f"{len(value)}: " + _short(value) if value else "none"
    names = ("version", "system", "machine", "kind", "endpoint", "reachable", "executable", "libraries", "libc")
    shown = [f"{n} {_short(getattr(value, n))}" for n in names if getattr(value, n, None) not in (None, "", ())]
    return ", ".join(shown) or type(value).__name__


def _short(value: Any, limit: int = 200) -> str:
    if isinstance(value, Mapping):
        text = ", ".join(f"{k}={v}" for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(str(getattr(v, "name", None) or getattr(v, "path", None) or v) for v in value)
    else:
        text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


__all__ = ["ansi", "place", "plain", "render"]
