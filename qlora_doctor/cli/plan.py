"""qlora-doctor plan"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qlora_doctor.cli.options import OUTPUT, STYLES, format_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from qlora_doctor.gather.cards import Card
    from qlora_doctor.memory.settings import Settings
    from qlora_doctor.memory.shapes import Shape
    from qlora_doctor.report.paper import Paper


@click.command("plan")
@click.option("--model", default="", metavar="ID_OR_DIR", help="A model's name, its folder, or a config.json.")
@click.option("--gpu", default="", metavar="NAME|8gb|all", help="The card it should run on; `all` lists every card.")
@click.option("--used", type=float, default=None, metavar="GB", help="What is already taken on the card (a desktop).")
@click.option("--batch", default=1, show_default=True, help="Examples a step on one GPU.")
@click.option("--length", default=512, show_default=True, help="Text tokens of the longest row; images come on top.")
@click.option("--rank", default=16, show_default=True, help="LoRA rank.")
@click.option("--images", type=int, default=None, help="Images an example; one for a model that takes images.")
@click.option("--image-size", default="", metavar="WxH", help="Pixels of an image (Qwen-VL); 1024x768 where not said.")
@click.option("--max-pixels", default=0, help="The processor's max_pixels (Qwen-VL).")
@click.option("--bits", type=click.Choice(["4", "8", "16"]), default="4", show_default=True)
@click.option(
    "--optimizer", default="adamw", show_default=True, help="adamw, adamw-8bit, paged-adamw-8bit, paged-adamw, sgd"
)
@click.option("--loss", type=click.Choice(["plain", "plain16", "chunked"]), default="plain", show_default=True)
@click.option("--attention", type=click.Choice(["sdpa", "flash", "eager"]), default="sdpa", show_default=True)
@click.option(
    "--targets",
    default="language model",
    show_default=True,
    help="language model, attention, q,v, all-linear, Q-Former",
)
@click.option("--no-checkpointing", is_flag=True, help="Without gradient checkpointing.")
@click.option(
    "--prepared", is_flag=True, help="prepare_model_for_kbit_training is called (float32 embeddings and head)."
)
@click.option("--quantize-vision", is_flag=True, help="The vision tower in 4 bit too.")
@click.option("--world", default=1, help="GPUs.")
@click.option("--sharded", is_flag=True, help="The weights are spread over the GPUs (FSDP, ZeRO-3).")
@click.option("--fit", "search", is_flag=True, help="Search for the best settings that fit.")
@click.option(
    "--from-run", default="", metavar="RUN", help="Compare the prediction with what a finished run took (its run.json)."
)
@click.option("--compare", is_flag=True, help="Full fine-tuning, LoRA and QLoRA side by side.")
@click.option("--emit", default="", metavar="FILE", help="Write a training script with these settings.")
@format_option((*STYLES, "svg"))
@OUTPUT
def command(
    model: str,
    gpu: str,
    search: bool,
    compare: bool,
    emit: str,
    style: str,
    output: tuple[str, ...],
    used: float | None,
    from_run: str,
    **options: Any,
) -> int:
    """Tell what a run takes in memory, before the download, and the best settings that fit a card."""
    from functools import partial

    from qlora_doctor.cli.outputs import outputs_of, show
    from qlora_doctor.gather.cards import cards, find_card, local_card

    tell = partial(show, style, outputs_of(output, (*STYLES, "svg"), (model,)))
    if from_run:
        return _from_run(from_run, tell)
    settings = _settings(**options)
    if not model:
        return _rank(find_card(gpu), settings, used, tell) if gpu and gpu != "all" else _no_model()
    import os

    from qlora_doctor.memory.known import find_shape

    name, shape = find_shape(model, os.environ)
    if gpu == "all":
        return _all_cards(name, shape, cards(), settings, used, tell)
    if compare:
        return _compare(name, shape, settings, tell)
    card = find_card(gpu) if gpu else local_card()
    return _one(name, shape, card, settings, used, search, emit, tell)


def _settings(image_size: str, bits: str, no_checkpointing: bool, quantize_vision: bool, **options: Any) -> Settings:
    import re

    from qlora_doctor.errors import UsageError
    from qlora_doctor.memory.settings import Settings

    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", image_size) if image_size else None
    if image_size and not size:
        raise UsageError(f"--image-size {image_size}: expected WIDTHxHEIGHT, such as 1024x768")
    return Settings(
        bits=int(bits),
        method="qlora" if bits != "16" else "lora",
        checkpointing=not no_checkpointing,
        kept=("projector", "Q-Former") if quantize_vision else None,
        width=int(size.group(1)) if size else 0,
        height=int(size.group(2)) if size else 0,
        **options,
    )


def _from_run(place: str, tell: Callable[..., None]) -> int:
    """The prediction of a run of `qlora-core train` beside what it took."""
    import json
    from pathlib import Path

    from qlora_doctor.errors import UsageError
    from qlora_doctor.report.memory import run_lines

    path = Path(place).expanduser()
    path = path / "run.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        memory, name = record["memory"], str(record["model"]["name"])
        before, measured = memory["predicted"], memory.get("measured")
    except OSError as error:
        raise UsageError(f"--from-run {place}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--from-run {place}: not a run.json of qlora-core train") from error
    if not isinstance(measured, dict):
        raise UsageError(
            f"--from-run {place}: this run did not come to its end ({record.get('status')}); nothing was measured"
        )
    if not isinstance(before, dict):
        raise UsageError(
            f"--from-run {place}: nothing was predicted for {name}: the memory of its architecture is not known"
        )
    sizes = {k: v for k, v in measured.items() if isinstance(v, int) and not isinstance(v, bool)}
    words = ("low", "expected", "high", "allocated")
    figures = {k: v for k in words if isinstance(v := before.get(k), int)}
    if len(figures) < len(words):
        raise UsageError(f"--from-run {place}: not a run.json of qlora-core train")
    lines = run_lines(name, figures, sizes)

    def paper(style: str) -> Paper:
        from qlora_doctor.report.paper_memory import of_lines

        return of_lines(f"the run in {place}", f"predicted and measured: {name}", lines)

    data = {"model": name, "predicted": figures, "measured": sizes}
    tell({"text": lambda: "\n".join(lines), "json": lambda: _json(data)}, paper)
    return 0


def _no_model() -> int:
    from qlora_doctor.errors import UsageError

    raise UsageError("name a model (--model Qwen/Qwen3-8B), or a card (--gpu 8gb) to see which models it can train")


def _room(card: Card, used: float | None) -> int:
    """The bytes that a run can have."""
    return card.room if used is None else max(0, card.memory - int(used * 2**30))


def _one(
    name: str,
    shape: Shape,
    card: Card | None,
    s: Settings,
    used: float | None,
    search: bool,
    emit: str,
    tell: Callable[..., None],
) -> int:
    from qlora_doctor.errors import UsageError
    from qlora_doctor.memory.fit import fit, image_note, levers, verdict
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.report.memory import plan_lines, proposal_lines, train_command

    if search and card is None:
        raise UsageError("--fit needs a card: --gpu RTX 4060, or --gpu 8gb (no GPU was found in this machine)")
    b = estimate(shape, s)
    room = _room(card, used) if card else 0
    word = verdict(b, room) if card else None
    proposal = fit(shape, s, room) if search and card else None
    notes = [
        *shape.assumed,
        *([image_note(shape)] if shape.images else []),
        *([card.note] if card and card.note else []),
    ]
    if emit:
        from pathlib import Path

        from qlora_doctor.memory.emit import script

        final, steps = (proposal.settings, proposal.accumulation) if proposal else (s, 1)
        target = Path(emit)
        if target.exists():
            raise UsageError(f"--emit {emit}: the file exists; name another")
        target.write_text(
            script(name, shape, final, steps, card is None or card.bfloat16),
            encoding="utf-8",
        )
        notes.append(f"{emit} written")
    code = 0 if word in (None, "fits") or proposal is not None else 1
    bfloat16 = card is None or card.bfloat16
    ways = levers(shape, s)
    title = card.name if card else ""

    def text() -> str:
        lines = plan_lines(name, title, room, s, b, word, ways, notes)
        lines += ["", *proposal_lines(proposal, room, bfloat16)] if search else []
        lines += ["", f"  {train_command(name, proposal)}"] if proposal else []
        lines += _speed(shape, s if proposal is None else proposal.settings, card) if card else []
        return "\n".join(lines)

    def svg() -> str:
        from qlora_doctor.report.picture import picture

        return picture(name, b, room, title, word)

    def paper(style: str) -> Paper:
        from qlora_doctor.report.paper_memory import of_plan

        return of_plan(name, s, b, title, room, word, ways, proposal, notes, bfloat16, code)

    makers = {
        "text": text,
        "svg": svg,
        "json": lambda: _json(_data(name, s, b, card, room, word, proposal, ways, notes)),
    }
    tell(makers, paper)
    return code


def _speed(shape: Shape, s: Settings, card: Card) -> list[str]:
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.memory.speed import EFFICIENCY, step_seconds

    if not card.tflops or not card.bandwidth:
        return []
    b = estimate(shape, s)
    fast, slow = step_seconds(shape, s, b, card.tflops, card.bandwidth)
    tokens = s.batch * b.tokens
    line = (
        f"roughly {fast * 1000 / 60:.0f} to {slow * 1000 / 60:.0f} minutes for 1,000 steps "
        f"({tokens / slow:.0f} to {tokens / fast:.0f} tokens/s), at {EFFICIENCY[0]:.0%} to {EFFICIENCY[1]:.0%} "
        f"of {card.tflops:g} TFLOPS"
    )
    return ["", line]


def _tell_table(
    tell: Callable[..., None], about: str, line: str, rows: list[list[str]], data: Any, head: tuple[str, ...] = ()
) -> None:
    """A comparison in whatever was asked for. `rows` are the text's; `head` names their columns where they do not."""
    from qlora_doctor.report.columns import table

    def paper(style: str) -> Paper:
        from qlora_doctor.report.paper_memory import of_table

        return of_table(about, line, [list(head), *rows] if head else rows)

    tell({"text": lambda: "\n".join([line, *table(rows)]), "json": lambda: _json(data)}, paper)


def _rank(card: Card, s: Settings, used: float | None, tell: Callable[..., None]) -> int:
    """Which of the known models train on a card, the largest first."""
    from qlora_doctor.memory.fit import fit, verdict
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.memory.known import all_shapes
    from qlora_doctor.report.memory import gib, settings_line

    room, data = _room(card, used), []
    rows = [["", "", "expected", "at most", ""]]
    for name, shape in reversed(list(all_shapes())):
        b = estimate(shape, s)
        word = verdict(b, room)
        found = None if word == "fits" else fit(shape, s, room)
        way = settings_line(found.settings, found.breakdown) if found else ""
        # What is shown beside the settings is what these settings take, so that nothing "fits" with more than there is.
        shown = found.breakdown if found else b
        rows.append([name, "fits with" if found else word, gib(shown.expected), gib(shown.high), way])
        data.append({
            "model": name, "verdict": word, "expected": b.expected, "high": b.high, "fits_with": way,
            "proposal": found and {"expected": found.breakdown.expected, "high": found.breakdown.high},
        })  # fmt: skip
    line = f"{card.name}: {gib(room)} to give"
    _tell_table(tell, f"models for {card.name}", line, rows, {"gpu": card.name, "room": room, "models": data})
    return 0


def _all_cards(
    name: str, shape: Shape, every: tuple[Card, ...], s: Settings, used: float | None, tell: Callable[..., None]
) -> int:
    from qlora_doctor.memory.fit import fit, verdict
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.report.memory import gib

    b = estimate(shape, s)
    searched: dict[int, bool] = {}
    rows, data = [], []
    for card in sorted(every, key=lambda c: (c.memory, c.released, c.name)):
        room = _room(card, used)
        word: str = verdict(b, room)
        if word != "fits":
            if room not in searched:
                searched[room] = fit(shape, s, room) is not None
            word = "fits with --fit" if searched[room] else word
        rows.append([card.name, gib(card.memory), word])
        data.append({"gpu": card.name, "memory": card.memory, "verdict": word})
    line = f"{name}: {gib(b.expected)} expected, at most {gib(b.high)}"
    whole = {"model": name, "expected": b.expected, "high": b.high, "gpus": data}
    _tell_table(tell, f"cards for {name}", line, rows, whole, ("card", "memory", "verdict"))
    return 0


def _compare(name: str, shape: Shape, s: Settings, tell: Callable[..., None]) -> int:
    """Full fine-tuning, LoRA on 16-bit weights and QLoRA, all else equal."""
    from dataclasses import replace

    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.report.memory import gib

    ways = {
        "full fine-tuning": replace(s, method="full", bits=16),
        "LoRA": replace(s, method="lora", bits=16),
        "QLoRA": replace(s, method="qlora", bits=4),
    }
    found = {title: estimate(shape, way) for title, way in ways.items()}
    rows = [["", "weights", "learns", "optimizer", "peak", "low to high"]]
    for title, b in found.items():
        weights = sum(i.bytes for i in b.items if i.name.startswith(("quantised", "16-bit", "weights")))
        rows.append(
            [
                title,
                gib(weights),
                f"{b.trainable:,}",
                gib(b.part("optimizer")),
                gib(b.expected),
                f"{gib(b.low)} to {gib(b.high)}",
            ]
        )
    data = {
        "model": name,
        "methods": {t: {"expected": b.expected, "low": b.low, "high": b.high} for t, b in found.items()},
    }
    _tell_table(tell, f"methods for {name}", f"{name}: batch {s.batch}, length {s.length}", rows, data)
    return 0


def _data(
    name: str,
    s: Settings,
    b: Any,
    card: Card | None,
    room: int,
    word: str | None,
    proposal: Any,
    found: Any,
    notes: list[str],
) -> dict[str, Any]:
    from dataclasses import asdict

    from qlora_doctor.report.memory import train_command

    return {
        "model": name,
        "settings": asdict(s),
        "gpu": card and {"name": card.name, "memory": card.memory, "room": room},
        "verdict": word,
        "low": b.low,
        "expected": b.expected,
        "high": b.high,
        "breakdown": asdict(b),
        "levers": [{"name": x.name, "saves": x.saves, "cost": x.cost} for x in found],
        "proposal": proposal
        and {
            "settings": asdict(proposal.settings),
            "expected": proposal.breakdown.expected,
            "high": proposal.breakdown.high,
            "accumulation": proposal.accumulation,
            "command": train_command(name, proposal),
        },
        "notes": notes,
    }


def _json(data: Any) -> str:
    import json

    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
