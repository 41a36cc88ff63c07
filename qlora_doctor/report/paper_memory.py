"""The memory of a run as a bar: of `plan`, and of what `check` was shown, where the model's shape is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qlora_doctor.examine import Examination
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.memory.fit import Lever, Proposal, Verdict, verdict
from qlora_doctor.memory.formula import Breakdown, estimate
from qlora_doctor.memory.known import shipped_shape
from qlora_doctor.memory.settings import Settings
from qlora_doctor.report.memory import arguments, gib, settings_line
from qlora_doctor.report.paper import Bar, Paper, Section, Tone
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call

_TONES: dict[str, Tone] = {"fits": "ok", "too close": "warning", "does not fit": "error"}


def bar_of(name: str, s: Settings, b: Breakdown, card: str, room: int, word: str) -> Bar:
    """One estimate as a bar; the parts under one percent are added up."""
    items = sorted(b.items, key=lambda i: -i.bytes)
    parts = [(i.name, i.bytes) for i in items if i.bytes * 100 >= b.expected][:7]
    rest = b.allocated - sum(size for _, size in parts)
    parts += [("others", rest)] if rest > 0 else []
    parts.append(("driver and allocator", b.overhead[1]))
    return Bar(name, tuple(parts), b.low, b.expected, b.high, card, room, word, settings_line(s, b))


def of_plan(
    name: str,
    s: Settings,
    b: Breakdown,
    card: str,
    room: int,
    word: Verdict | None,
    levers: Sequence[Lever] = (),
    proposal: Proposal | None = None,
    notes: Sequence[str] = (),
    bfloat16: bool = True,
    code: int = 0,
) -> Paper:
    """The report of `plan` for one model and, where one was named, one card."""
    figure = f"{gib(b.expected)} expected ({gib(b.low)} to {gib(b.high)})"
    line = figure if word is None else f"{word}: {figure}, {card} has {gib(room)} to give"
    sections = [
        Section(
            "Beside the peak",
            rows=(
                ("what", "takes"),
                ("while loading, on the GPU", gib(b.load)),
                ("while loading, on the host", gib(b.host)),
                ("download", gib(b.disk)),
                ("a checkpoint", gib(b.saved)),
                ("answering", gib(b.generation)),
                ("merging, on the host", gib(b.merge)),
            ),
            kind="table",
        )
    ]
    if levers:
        rows = [("change", "saves", "costs"), *((x.name, gib(x.saves), x.cost) for x in levers)]
        sections.insert(0, Section("What would save memory", rows=tuple(rows), kind="table"))
    if proposal is not None:
        lines = arguments(proposal.settings, proposal.accumulation, bfloat16)
        title = (
            f"Settings that fit: {gib(proposal.breakdown.expected)} expected, at most {gib(proposal.breakdown.high)}"
        )
        sections.insert(0, Section(title, ("\n".join(lines),), kind="commands"))
    if notes:
        sections.append(Section("Notes", tuple(notes)))
    tone = _TONES.get(word or "", "info")
    bar = bar_of(name, s, b, card, room, word or "")
    return Paper("plan", f"{name}: {settings_line(s, b)}", line, tone, code, sections=tuple(sections), bar=bar)


def of_table(about: str, verdict_line: str, rows: Sequence[Sequence[str]], code: int = 0) -> Paper:
    """The report of a `plan` that compares: models, cards or methods, one a row."""
    section = Section("Comparison", rows=tuple(tuple(row) for row in rows), kind="table")
    return Paper("plan", about, verdict_line, "info", code, sections=(section,))


def memory_of(examination: Examination) -> Bar | None:
    """What the first run with a known model takes, read leniently: a setting that cannot be known has its default."""
    for case in examination.cases:
        for train in case.requests.trains:
            bar = _bar(train.load, train, examination.facts)
            if bar is not None:
                return bar
    loads = [load for case in examination.cases for load in case.requests.loads]
    return next((bar for load in loads if (bar := _bar(load, None, examination.facts)) is not None), None)


def _bar(load: LoadRequest | None, train: TrainRequest | None, facts: Facts) -> Bar | None:
    name = load.call.seen("pretrained_model_name_or_path") if load is not None else None
    shape = shipped_shape(name) if isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~" else None
    if shape is None or not isinstance(name, str):
        return None
    settings = train.settings if train else None
    lora = train.lora if train else None
    optimizer = str(settings.seen("optim") or "") if settings is not None else ""
    paged, eight = "paged" in optimizer, "8bit" in optimizer
    s = Settings(
        batch=_whole(settings, ("per_device_train_batch_size",), 8 if settings is not None else 1),
        length=_whole(settings, ("max_length", "max_seq_length"), 512),
        rank=_whole(lora, ("r",), 8 if lora is not None else 16),
        checkpointing=settings is None or settings.seen("gradient_checkpointing") is not False,
        optimizer="paged-adamw-8bit"
        if paged and eight
        else "adamw-8bit"
        if eight
        else "paged-adamw"
        if paged
        else "adamw",
        prepared=train is not None and train.prepared is True,
    )
    b = estimate(shape, s)
    length = settings is not None and any(settings.seen(name) for name in ("max_length", "max_seq_length"))
    gpus = facts.state("gpus")
    gpu = None if isinstance(gpus, Unknown) or not gpus else gpus[0]
    room = (gpu.memory_total or 0) if gpu is not None else 0
    bar = bar_of(name, s, b, gpu.name if gpu is not None and room else "", room, verdict(b, room) if room else "")
    return bar if length else replace(bar, settings=f"{bar.settings} (the length is assumed; none is set)")


def _whole(call: Call | None, names: Sequence[str], default: int) -> int:
    values = [call.seen(name) for name in names] if call is not None else []
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 100_000), default)


def of_lines(about: str, verdict_line: str, lines: Sequence[str]) -> Paper:
    """The report of a `plan` that is a few lines of text."""
    section = Section("Figures", tuple(lines))
    return Paper("plan", about, verdict_line, "info", sections=(section,))
