"""The doctor in Python: `qlora_doctor.check()`, `plan()`, `diagnose()` and `read_facts()`.

Each answer prints as its text, and a notebook shows it as HTML. The words mean what the options of the command line mean,
and the project's settings count here too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_doctor.examine import Examination
    from qlora_doctor.facts import Facts
    from qlora_doctor.finding import Finding, Outcome, Severity
    from qlora_doctor.gather.cards import Card
    from qlora_doctor.judge import Case
    from qlora_doctor.logs.diagnose import Report
    from qlora_doctor.memory.fit import Proposal, Verdict
    from qlora_doctor.memory.formula import Breakdown
    from qlora_doctor.memory.settings import Settings
    from qlora_doctor.memory.shapes import Shape
    from qlora_doctor.report.paper import Paper

Path = str | os.PathLike[str]
Words = str | Iterable[str]


class Shown:
    """An answer that a person looks at: its text anywhere, HTML in a notebook."""

    __slots__ = ()

    def __str__(self) -> str:
        raise NotImplementedError

    def _paper(self) -> Paper:
        raise NotImplementedError

    def __post_init__(self) -> None:
        from qlora_doctor.i18n import chosen, speaking, use

        if not speaking():
            use(chosen())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from qlora_doctor.report.fragment import fragment

        return fragment(self._paper())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from qlora_doctor.redaction import secrets

        bundle = {"text/plain": secrets(str(self)), "text/html": self._repr_html_()}
        return {k: v for k, v in bundle.items() if (not include or k in include) and k not in (exclude or ())}


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Shown):
    """What `check` found. `notes` are about this process, such as a kernel that holds older packages than the disk.

    `examination` is all that it rests on: the question, the facts, the requests, every outcome.
    """

    examination: Examination
    exit_code: int
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found at or above `fail_on`."""
        return self.exit_code == 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, the gravest first. Each has `code`, `severity`, `text`, `evidence`, `site` and `fixes`."""
        return self.examination.verdict.findings

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """How each check ended: ok, found, unknown, skipped or crashed."""
        return self.examination.verdict.outcomes

    @property
    def facts(self) -> Facts:
        return self.examination.facts

    def to_dict(self, verbose: bool = False) -> dict[str, Any]:
        """The report as JSON data, as `check --format json` prints it (docs/schema/report.schema.json)."""
        from qlora_doctor.report.json import report_data

        return report_data(self.examination, self.exit_code, verbose)

    def text(self, verbose: bool = False, columns: int | None = 100) -> str:
        """The report as text. `columns` wraps the messages; None does not."""
        from qlora_doctor.report import text

        lines = [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, text.render(self.examination, verbose=verbose, columns=columns)])

    def __str__(self) -> str:
        return self.text()

    def _paper(self) -> Paper:
        from qlora_doctor.report.paper_check import of_check

        return of_check(self.examination, self.exit_code, notes=self.notes)


def check(
    *paths: Path,
    model: Path = "",
    python: Path = "",
    facts: Path = "",
    select: Words = (),
    ignore: Words = (),
    gpu: str = "",
    driver: str = "",
    offline: bool = False,
    live: bool = False,
    fail_on: Severity | None = None,
    strict: bool = False,
    cases: tuple[Case, ...] = (),
) -> CheckReport:
    """Judges this environment, and the scripts, notebooks, settings, data or folders in `paths`.

    Nothing is imported, downloaded or changed; `live` imports and tries the stack in processes of its own. `model` is an id
    or a folder, `python` another interpreter, `facts` a file that `facts --save` wrote. `select` and `ignore` take codes,
    prefixes and names. `cases` are requests that were read already, judged beside those of `paths`.

    Raises:
        UsageError: a path, code, card or file that is not there or cannot be used.
        ProbeError: the interpreter gives no facts.
    """
    from dataclasses import replace

    from qlora_doctor.cli.options import question_of
    from qlora_doctor.examine import examine
    from qlora_doctor.report import exit_code

    question, config = question_of(
        paths=[os.fspath(p) for p in paths],
        model=os.fspath(model),
        python=os.fspath(python),
        facts_file=os.fspath(facts),
        select=_words(select),
        ignore=_words(ignore),
        offline=offline,
        live=live,
        gpu=gpu,
        driver=driver,
    )
    examination = examine(replace(question, cases=cases))
    code = exit_code(examination, fail_on or config.fail_on or "warning", strict)
    return CheckReport(examination, code, () if python or facts else _kernel_notes())


def _words(words: Words) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def _kernel_notes() -> tuple[str, ...]:
    from qlora_doctor.gather.loaded import restart_note, stale_packages

    note = restart_note(stale_packages())
    return (note,) if note else ()


def read_facts(*paths: Path, python: Path = "", offline: bool = False) -> Facts:
    """Everything the doctor knows of this environment, or of `python`; secrets are left out.

    `paths` name scripts whose calls and models are looked up as well. `to_wire()` of it is JSON data. (It is not called
    `facts`, which is the module that the parts of the answer come from.)
    """
    from qlora_doctor.collect import PROBED
    from qlora_doctor.examine import Question, gather, read_cases

    question = Question(paths=tuple(os.fspath(p) for p in paths), python=os.fspath(python), offline=offline)
    return gather(question, {*PROBED, "installed", "hub"}, read_cases(question.paths))


@dataclass(frozen=True, slots=True, repr=False)
class MemoryPlan(Shown):
    """What a run takes, in bytes. `verdict` is None where there is no card; `proposal` None unless one was searched for."""

    model: str
    settings: Settings
    breakdown: Breakdown
    shape: Shape
    card: Card | None
    room: int
    verdict: Verdict | None
    proposal: Proposal | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the run fits, as it is or with the proposal."""
        return self.verdict == "fits" or self.proposal is not None

    def __str__(self) -> str:
        from qlora_doctor.memory.fit import levers
        from qlora_doctor.report.memory import plan_lines, proposal_lines

        card, found = self.card.name if self.card else "", levers(self.shape, self.settings)
        args = (self.model, card, self.room, self.settings, self.breakdown, self.verdict, found, list(self.notes))
        lines = plan_lines(*args)
        if self.proposal is not None:
            lines += ["", *proposal_lines(self.proposal, self.room, self.card is None or self.card.bfloat16)]
        return "\n".join(lines)

    def _paper(self) -> Paper:
        from qlora_doctor.memory.fit import levers
        from qlora_doctor.report.paper_memory import of_plan

        return of_plan(
            self.model,
            self.settings,
            self.breakdown,
            self.card.name if self.card else "",
            self.room,
            self.verdict,
            levers(self.shape, self.settings),
            self.proposal,
            self.notes,
            self.card is None or self.card.bfloat16,
            int(self.verdict is not None and not self.ok),
        )


def plan(model: Path, gpu: str = "", *, used: float | None = None, fit: bool = False, **settings: Any) -> MemoryPlan:
    """What fine-tuning `model` takes on a card, before anything is downloaded.

    `gpu` is a card's name or size ("RTX 4060", "8gb"); the GPU of this machine where it is "". `used`: GiB that something
    else holds there. `fit` searches for the best settings that fit. `settings` are those of `memory.settings.Settings`:
    batch, length, rank, images, bits, optimizer, loss, ...

    Raises:
        UsageError: the model or the card is not known, or a setting cannot be; the message names what is near.
    """
    from qlora_doctor.errors import UsageError
    from qlora_doctor.gather.cards import find_card, local_card
    from qlora_doctor.memory import fit as fitting
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.memory.known import find_shape

    chosen = _settings(settings)
    name, shape = find_shape(os.fspath(model), os.environ)
    card = find_card(gpu) if gpu else local_card()
    if fit and card is None:
        raise UsageError("fit=True needs a card: gpu='RTX 4060', or gpu='8gb' (no GPU was found in this machine)")
    taken = 0 if card is None else card.taken if used is None else int(used * 2**30)
    room = max(0, card.memory - taken) if card else 0
    breakdown = estimate(shape, chosen)
    proposal = fitting.fit(shape, chosen, room) if fit else None
    notes = (*shape.assumed, *((fitting.image_note(shape),) if shape.images else ()), *((card.note,) if card else ()))
    verdict = fitting.verdict(breakdown, room) if card else None
    return MemoryPlan(name, chosen, breakdown, shape, card, room, verdict, proposal, tuple(n for n in notes if n))


def _settings(given: Mapping[str, Any]) -> Settings:
    import difflib
    from dataclasses import fields

    from qlora_doctor.errors import UsageError
    from qlora_doctor.memory.settings import Settings

    known = [f.name for f in fields(Settings)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no setting {name!r}; {hint}")
    return Settings(**given)


@dataclass(frozen=True, slots=True, repr=False)
class LogReport(Shown):
    """What a log says. `report.diagnoses` are its failures in the order of cause and effect."""

    report: Report
    log: str = "-"

    @property
    def ok(self) -> bool:
        """Whether no failure was found, explained or not."""
        return not (self.report.diagnoses or self.report.unknown)

    @property
    def causes(self) -> tuple[str, ...]:
        """The ids of the causes, the likeliest first."""
        return self.report.causes

    def __str__(self) -> str:
        from qlora_doctor.report.diagnosis import render

        return render(self.report, 100)

    def _paper(self) -> Paper:
        from qlora_doctor.report.paper_log import of_log

        return of_log(self.report, self.log, int(not self.ok))


def diagnose(log: Path | BaseException, *, facts: Facts | None = None) -> LogReport:
    """Says what went wrong from a log file, from pasted text (anything with a line break), or from an exception.

    `facts` are of the environment in which it was written (`read_facts()` where it was this one); they decide between the
    causes that one message can have.

    Raises:
        UsageError: the file cannot be read.
    """
    import traceback

    from qlora_doctor.errors import UsageError
    from qlora_doctor.logs import diagnose as logs

    if isinstance(log, BaseException):
        return LogReport(logs.diagnose("".join(traceback.format_exception(log)), facts))
    if isinstance(log, str) and "\n" in log:
        return LogReport(logs.diagnose(log, facts))
    try:
        with open(log, "rb") as stream:
            return LogReport(logs.diagnose(stream, facts), os.fspath(log))
    except OSError as error:
        hint = "" if os.path.dirname(os.fspath(log)) else " (for a message, add a line break)"
        raise UsageError(f"{os.fspath(log)}: {error.strerror or error}{hint}") from None
