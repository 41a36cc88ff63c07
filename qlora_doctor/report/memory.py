"""A memory plan as text: the verdict, a bar, the breakdown, the levers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_doctor.i18n import said
from qlora_doctor.memory.fit import Lever, Proposal, Verdict
from qlora_doctor.memory.formula import Breakdown
from qlora_doctor.memory.settings import Settings
from qlora_doctor.report.columns import table

GIB = 2**30
BAR = 40


def gib(size: float) -> str:
    """Bytes as `5.42 GiB`, small ones in MiB."""
    return f"{size / GIB:.2f} GiB" if abs(size) >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"


def bar(b: Breakdown, room: int) -> str:
    """The expected peak as a share of the card: `#` weights, `=` the rest, `?` up to the high figure, `.` free."""
    weights = sum(i.bytes for i in b.items if i.name.startswith(("quantised", "16-bit", "weights")))
    scale = BAR / max(room, b.high, 1)
    marks = [round(x * scale) for x in (weights, b.expected, b.high)]
    line = "#" * marks[0] + "=" * (marks[1] - marks[0]) + "?" * (marks[2] - marks[1])
    line = line.ljust(BAR, ".")
    edge = round(room * scale)
    return f"[{line[:edge]}{'|' if edge < BAR else ''}{line[edge:]}]"


def breakdown_lines(b: Breakdown) -> list[str]:
    """The parts, largest first, and what the driver and the allocator add."""
    rows = [
        [f"  {i.name}", gib(i.bytes), f"{100 * i.bytes / b.expected:.0f} %"]
        for i in sorted(b.items, key=lambda i: -i.bytes)
    ]
    rows = [r for r in rows if r[2] != "0 %"]
    rows.append(["  driver and allocator", gib(b.overhead[1]), f"{100 * b.overhead[1] / b.expected:.0f} %"])
    return table(rows)


def settings_line(s: Settings, b: Breakdown) -> str:
    """The settings that decide, on one line."""
    tokens = f"length {s.length}" + (f" + {b.image_tokens} image tokens" if b.image_tokens else "")
    words = [f"batch {s.batch}", tokens, *([f"rank {s.rank}"] if s.method != "full" else [])]
    words += ["gradient checkpointing" if s.checkpointing else "no gradient checkpointing", s.optimizer]
    if s.method == "qlora":
        words.append(
            f"{s.bits}-bit" + (", vision tower too" if s.kept is not None and "vision tower" not in s.kept else "")
        )
    words += ["chunked loss"] if s.loss == "chunked" else []
    words += ["float32 embeddings and head"] if s.prepared else []
    words += [f"max_pixels {s.max_pixels}"] if s.max_pixels else []
    return ", ".join(map(said, words))


def plan_lines(
    name: str,
    card: str,
    room: int,
    s: Settings,
    b: Breakdown,
    word: Verdict | None,
    found: Sequence[Lever],
    notes: Sequence[str] = (),
) -> list[str]:
    """One plan as lines. `word` is None where no card was named."""
    lines = [f"{name}: {settings_line(s, b)}"]
    figure = f"{gib(b.expected)} expected ({gib(b.low)} to {gib(b.high)})"
    if word is None:
        lines.append(figure)
    else:
        lines += [f"{word}: {figure}, {card} has {gib(room)} to give", bar(b, room)]
    lines += ["", f"at its peak ({b.phase}):", *breakdown_lines(b)]
    loading = said(f"while loading {gib(b.load)} on the GPU, {gib(b.host)} of host memory; download {gib(b.disk)};")
    after = said(f"a checkpoint {gib(b.saved)}; answering {gib(b.generation)}; merging {gib(b.merge)} on the host")
    lines += ["", f"{loading} {after}"]
    if found:
        lines += [
            "",
            "what would save memory:",
            *table([[f"  {x.name}", gib(x.saves), f"costs: {x.cost}"] for x in found]),
        ]
    return [said(line) for line in (*lines, *(f"note: {n}" for n in notes))]


def proposal_lines(p: Proposal | None, room: int, bfloat16: bool = True) -> list[str]:
    """The settings that the search found, as they are written for the Trainer."""
    if p is None:
        return [said("nothing fits: take a smaller model or a larger card")]
    b = p.breakdown
    lines = [f"fits so: {settings_line(p.settings, b)}"]
    lines.append(f"  {gib(b.expected)} expected, at most {gib(b.high)}: {gib(room - b.high)} to spare")
    lines += [f"  {name}: {before} -> {after}" for name, before, after in p.changed]
    return [*map(said, lines), "", *(f"  {line}" for line in arguments(p.settings, p.accumulation, bfloat16))]


def train_command(name: str, p: Proposal) -> str:
    """The `qlora-core train` line that means a proposal, with every setting that decides its memory."""
    import shlex

    from qlora_doctor.memory.emit import train_words

    words = train_words(p.settings, p.breakdown, p.accumulation, p.breakdown.image_tokens > 0)
    return " ".join(
        ["qlora-core train", shlex.quote(name), "DATA --output OUT", *(f"--set {n}={value}" for n, value in words)]
    )


def arguments(s: Settings, accumulation: int, bfloat16: bool = True) -> list[str]:
    """The TrainingArguments and LoraConfig that mean these settings."""
    from qlora_doctor.memory.emit import OPTIMIZERS

    optim = OPTIMIZERS[s.optimizer]
    lines = [
        "TrainingArguments(",
        f"    per_device_train_batch_size={s.batch}, gradient_accumulation_steps={accumulation},",
        f'    gradient_checkpointing={s.checkpointing}, optim="{optim}", {"bf16" if bfloat16 else "fp16"}={s.autocast},'
        + (" use_liger_kernel=True," if s.loss == "chunked" else ""),
        ")",
        f"LoraConfig(r={s.rank}, lora_alpha={2 * s.rank})  # rows of at most {s.length} text tokens",
    ]
    return lines


def run_lines(name: str, before: Mapping[str, int], measured: Mapping[str, int]) -> list[str]:
    """What was predicted for a run and what it took, as they stand in its run.json."""
    kinds = {"allocated": "allocated", "reserved": "expected"}
    rows = [["", "predicted", "measured", ""]]
    for kind, figure in kinds.items():
        if kind in measured and figure in before:
            off = before[figure] / measured[kind] - 1
            # The prediction holds the driver's context, which torch does not count.
            note = "with the driver's context" if figure == "expected" else ""
            rows.append([kind, gib(before[figure]), gib(measured[kind]), f"{off:+.1%} {note}".strip()])
    if len(rows) == 1:
        resident = measured.get("resident")
        return [
            f"{name}: this run was on a CPU, where only the memory of the whole process is known"
            + (f": {gib(resident)} at its peak" if resident else "")
            + f"; {gib(before['allocated'])} of tensors were predicted"
        ]
    lines = [name, *table(rows), f"the range was {gib(before['low'])} to {gib(before['high'])}"]
    return lines
