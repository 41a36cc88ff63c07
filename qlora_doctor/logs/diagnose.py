"""From the lines of a log to diagnoses: which messages are there, what caused them here, in the order of cause and effect."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Distribution, Facts, Packages
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.logs.expressions import World, evaluate, fact_terms
from qlora_doctor.logs.reader import Line, Log, read
from qlora_doctor.logs.signatures import Cause, Signature, Signatures, installed_signatures
from qlora_doctor.logs.words import tokens
from qlora_doctor.source import Script
from qlora_doctor.stage import stage

Confidence = Literal["sure", "likely", "possible"]
FEW = 5  # lines of a fragment that was pasted without its surroundings
LEVELS: tuple[Confidence, ...] = ("sure", "likely", "possible")
RANK = {"error": 0, "weak": 1, "effect": 2, "benign": 3}

# Words that say which world a log comes from.
STACK = frozenset(
    b"torch transformers huggingface huggingface_hub hf peft bitsandbytes accelerate trl safetensors cuda nvidia "
    b"tokenizer tokenizers deepspeed trainer lora qlora finetune checkpoint epoch loss gpu gpus datasets llava qwen "
    b"llama nccl pytorch from_pretrained model dataloader bnb xet sentencepiece python3 pip shards".split()
)
OTHERS = frozenset(
    b"nginx apache uvicorn gunicorn django flask werkzeug starlette fastapi redis postgres postgresql psycopg2 mysql "
    b"kafka rabbitmq celery tomcat spring java javax npm webpack node systemd sshd cron kubelet docker mongodb pymongo "
    b"sqlalchemy scrapy selenium elasticsearch grafana prometheus haproxy php ruby rails golang goroutine ansible "
    b"terraform jenkins gradle maven cargo aiohttp boto3 botocore pymysql tornado discord telegram".split()
)
_EXCEPTION = re.compile(
    r"^(?:[\w.]*\.)?(?:[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)|KeyError|StopIteration)(?::|$)"
)
_VERSION = re.compile(
    r"\b(torch|transformers|peft|bitsandbytes|accelerate|trl|datasets|tokenizers|huggingface[-_]hub|safetensors|"
    r"deepspeed|flash[-_]attn|triton|numpy)(?:==| version:? | v?)(\d+\.\d+(?:\.\d+)?[\w.+]*)"
)
_PACKAGES = frozenset(
    b"torch transformers peft bitsandbytes accelerate trl datasets tokenizers huggingface_hub hub safetensors deepspeed "
    b"flash_attn triton numpy".split()
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One cause, how sure it is, and why."""

    cause: Cause
    confidence: Confidence
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A cause that the facts or the log exclude, and what excluded it."""

    cause: Cause
    because: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One message of the log with its causes, the likeliest first. `line` is its decisive line."""

    signature: Signature
    line: Line
    candidates: tuple[Candidate, ...]
    ruled_out: tuple[RuledOut, ...] = ()

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


@dataclass(frozen=True, slots=True)
class Report:
    """What a log says. `unknown` are the decisive lines that no signature knows; `benign` what only looks bad."""

    diagnoses: tuple[Diagnosis, ...]
    benign: tuple[Diagnosis, ...]
    unknown: tuple[Line, ...]
    tail: tuple[str, ...]
    lines: int
    bytes: int

    @property
    def causes(self) -> tuple[str, ...]:
        """The ids of all causes in their order, each once: first every message's likeliest, then the others."""
        ranks = max((len(d.candidates) for d in self.diagnoses), default=0)
        ordered = [d.candidates[i].cause.id for i in range(ranks) for d in self.diagnoses if i < len(d.candidates)]
        return tuple(dict.fromkeys([*ordered, *(d.best.cause.id for d in self.benign)]))


def diagnose(
    source: BinaryIO | bytes | str,
    facts: Facts | None = None,
    *,
    script: Script | None = None,
    codes: Iterable[str] | None = None,
    exit_code: int | None = None,
    signatures: Signatures | None = None,
) -> Report:
    """Diagnoses a log (a binary stream, bytes, or text).

    `facts` are of the environment in which it was written; versions that the log itself names go before them. `codes`
    are those of the checks that found something there.
    """
    known = signatures or installed_signatures()
    if isinstance(source, str):
        source = source.encode("utf-8", "surrogateescape")
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    with stage("reading the log"):
        log = read(stream, known.words | _PACKAGES, STACK | OTHERS)
    lines = _with_pseudo_lines(log, exit_code)
    world = World(
        _with_versions(facts or Facts(), lines), tuple(lines), script, None if codes is None else frozenset(codes)
    )
    found = _search(lines, known)
    _search_wrapped(lines, known, found)
    foreign = not log.words.isdisjoint(OTHERS) and log.words.isdisjoint(STACK)
    unknown = _unknown(log, found)
    known_end = not unknown or unknown[-1].number < max((line.number for _, line in found.values()), default=0)
    everything = [d for s, line in found.values() if (d := _judge(s, line, world, foreign=foreign, ends=known_end))]
    everything.sort(key=lambda d: (RANK[d.signature.kind], d.line.number, LEVELS.index(d.best.confidence)))
    errors = [d for d in everything if d.signature.kind in ("error", "weak")]
    effects = [d for d in everything if d.signature.kind == "effect"]
    diagnoses = errors if errors else effects
    return Report(
        tuple(diagnoses),
        tuple(d for d in everything if d.signature.kind == "benign"),
        unknown,
        tuple(log.tail)[-40:],
        log.total,
        log.size,
    )


def _with_pseudo_lines(log: Log, exit_code: int | None) -> list[Line]:
    lines = list(log.lines)
    lines += [Line(log.total + 1, word) for word in log.trends]
    failing = [a for a in log.alarms if not re.search(r"[Ww]arning", a.text)]
    if not failing and log.last:
        lines.append(Line(log.total, f"@last {log.last.strip()[:1000]}"))
    if exit_code:
        lines.append(Line(log.total + 1, f"@exit {exit_code}"))
    return lines


def _with_versions(facts: Facts, lines: Sequence[Line]) -> Facts:
    """The facts, with the versions that the log names in place of theirs."""
    named: dict[str, str] = {}
    for line in lines:
        for name, version in _VERSION.findall(line.text[:2000]):
            named.setdefault(name.lower().replace("_", "-"), version.rstrip("."))
    # A requirement in an error message (`>=0.26.0`) is not matched; one pinned in a pip conflict may be, and is what runs.
    state = facts.state("packages")
    if not named or (isinstance(state, Packages) and len(state.distributions) > 15):
        return facts
    rest = [d for d in state.distributions if d.name.lower() not in named] if isinstance(state, Packages) else []
    new = [Distribution(name, version) for name, version in named.items()]
    return facts.but(packages=Packages(distributions=(*rest, *new)))


def _search(lines: Sequence[Line], known: Signatures) -> dict[str, tuple[Signature, Line]]:
    """The first line of each signature that matches."""
    found: dict[str, tuple[Signature, Line]] = {}
    table = known.by_word
    for line in lines:
        for word in tokens(line.text.encode("utf-8", "replace")) & table.keys():
            for signature in table[word]:
                if signature.id not in found and signature.matches(line.text):
                    found[signature.id] = (signature, line)
    return found


def _search_wrapped(lines: Sequence[Line], known: Signatures, found: dict[str, tuple[Signature, Line]]) -> None:
    """The same on pairs of lines, for a message that a terminal or a mail broke in two."""
    if len(lines) > 1000:
        return
    pairs = [
        Line(a.number, joined)
        for a, b in pairwise(lines)
        for joined in (f"{a.text.rstrip()} {b.text.strip()}", f"{a.text}{b.text.lstrip()}")
        if b.number == a.number + 1
        and len(a.text) >= 50
        and not b.text.startswith(("Traceback", "  File", "@"))
        and not _EXCEPTION.match(b.text)
    ]
    for name, match in _search(pairs, known).items():
        found.setdefault(name, match)


def _unknown(log: Log, found: dict[str, tuple[Signature, Line]]) -> tuple[Line, ...]:
    """The exceptions (or, without one, the alarming lines) that no signature knows; the last ones are the decisive."""
    matched = {line.number for _, line in found.values()}
    exceptions = [a for a in log.alarms if _EXCEPTION.match(a.text) and "Warning" not in a.text]
    left = [a for a in exceptions if a.number not in matched and not _known_line(a, found)]
    if exceptions or found:
        return tuple(left[-3:])
    return tuple(a for a in log.alarms if not re.search(r"[Ww]arning", a.text))[-3:]


def _known_line(line: Line, found: dict[str, tuple[Signature, Line]]) -> bool:
    return any(signature.matches(line.text) for signature, _ in found.values())


def _judge(signature: Signature, line: Line, world: World, *, foreign: bool, ends: bool) -> Diagnosis | None:
    """Which causes are left for one message, and how sure the first is."""
    left: list[tuple[int, Cause, tuple[str, ...]]] = []
    out: list[RuledOut] = []
    for cause in signature.causes:
        against = evaluate(cause.unless, world) if cause.unless else False
        when = evaluate(cause.when, world) if cause.when else None
        if against:
            out.append(RuledOut(cause, cause.unless))
        elif cause.when and when is False:
            out.append(RuledOut(cause, f"not ({cause.when})"))
        elif when:
            left.append(
                (0, cause, (*fact_terms(cause.when), *(["the log's other lines"] if "log(" in cause.when else [])))
            )
        else:
            left.append((2 if cause.when else 1, cause, ()))
    if not left and all(o.because == o.cause.unless for o in out):
        return None
    if not left:
        # Every cause has a condition and none holds: the message is known, its cause here is not.
        left = [(2, signature.causes[-1], ())]
        out = [o for o in out if o.cause is not signature.causes[-1]]
    left.sort(key=lambda item: item[0])
    unique: dict[str, tuple[int, Cause, tuple[str, ...]]] = {}
    for item in left:
        unique.setdefault(item[1].id, item)
    ranked = list(unique.values())
    counted = [rank for rank, cause, _ in ranked if not (cause.rare and rank == 2)] or [2]
    confidence = _confidence(signature, counted, world, foreign, ends)
    if confidence == "sure" and counted == [1] and len(world.lines) < FEW:
        # A pasted line or two hold no evidence for the other causes, so its absence excludes little.
        absent = {o.cause.id for o in out if o.because != o.cause.unless} - set(unique)
        confidence = "sure" if not absent else "likely" if len(absent) == 1 else "possible"
    if confidence is None:
        return None
    candidates = tuple(
        Candidate(cause, confidence if i == 0 else "possible", why) for i, (_, cause, why) in enumerate(ranked)
    )
    names = {c.cause.id for c in candidates}
    facts_only = tuple(o for o in out if o.cause.id not in names and fact_terms(o.because))
    return Diagnosis(signature, line, candidates, facts_only)


def _confidence(
    signature: Signature, ranks: Sequence[int], world: World, foreign: bool, ends: bool
) -> Confidence | None:
    """`sure`, `likely`, `possible`; None where the message means nothing here (another program's log)."""
    if signature.kind == "weak":
        if foreign:
            return None
        return "likely" if ends and _in_context(world) and ranks[0] == 0 and ranks.count(0) == 1 else "possible"
    if signature.kind in ("effect", "benign"):
        return "possible"
    if foreign:
        return "possible"
    if ranks[0] == 0:
        return "sure" if ranks.count(0) == 1 else "likely"
    return "sure" if list(ranks) == [1] else "possible"


def _in_context(world: World) -> bool:
    return any(not tokens(line.text.encode("utf-8", "replace")).isdisjoint(STACK) for line in world.lines[:5000])


def findings(report: Report) -> tuple[Finding, ...]:
    """The diagnoses as findings, so that they are shown and repaired like those of checks."""
    made = []
    for diagnosis in report.diagnoses:
        best = diagnosis.best
        advice = Advice(best.cause.fix)
        fixes = (
            tuple(replace(f, applicability="display-only") for f in best.cause.fixes)
            if best.confidence == "possible"
            else best.cause.fixes
        )
        made.append(
            Finding(
                "line {line}: {says}. {fix}",
                {
                    "line": diagnosis.line.number,
                    "says": best.cause.says,
                    "fix": best.cause.fix,
                    "text": diagnosis.line.text[:400],
                    "cause": best.cause.id,
                    "confidence": best.confidence,
                },
                "warning" if best.confidence == "possible" else "error",
                fixes=(*fixes, advice),
                name=diagnosis.signature.id,
            )
        )
    return tuple(made)


def findings_of_log(path: str, facts: Facts | None = None) -> tuple[Finding, ...]:
    """The findings of a log file, for `fix --from-log`. Raises UsageError where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return findings(diagnose(stream, facts))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
