"""qlora-doctor plan"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qlora_doctor.gather.cards import Card
    from qlora_doctor.memory.settings import Settings
    from qlora_doctor.memory.shapes import Shape


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
@click.option("--compare", is_flag=True, help="Full fine-tuning, LoRA and QLoRA side by side.")
@click.option("--emit", default="", metavar="FILE", help="Write a training script with these settings.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json", "svg"]), default="text", help="How to print the plan."
)
def command(
    model: str, gpu: str, search: bool, compare: bool, emit: str, style: str, used: float | None, **options: Any
) -> int:
    """Tell what a run takes in memory, before the download, and the best settings that fit a card."""
    from qlora_doctor.gather.cards import cards, find_card

    settings = _settings(**options)
    if not model:
        return _rank(find_card(gpu), settings, used, style) if gpu and gpu != "all" else _no_model()
    import os

    from qlora_doctor.memory.known import find_shape

    name, shape = find_shape(model, os.environ)
    if gpu == "all":
        return _all_cards(name, shape, cards(), settings, used, style)
    if compare:
        return _compare(name, shape, settings, style)
    card = find_card(gpu) if gpu else _local()
    return _one(name, shape, card, settings, used, search, emit, style)


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


def _no_model() -> int:
    from qlora_doctor.errors import UsageError

    raise UsageError("name a model (--model Qwen/Qwen3-8B), or a card (--gpu 8gb) to see which models it can train")


def _local() -> Card | None:
    """The first NVIDIA GPU of this machine, or None where there is none."""
    from qlora_doctor.facts import Unknown
    from qlora_doctor.gather.cards import Card
    from qlora_doctor.gather.interpreters import here

    gpus = here(["gpus"]).state("gpus")
    for gpu in () if isinstance(gpus, Unknown) else gpus:
        if gpu.memory_total:
            free = gpu.memory_total if gpu.memory_free is None else gpu.memory_free
            held = gpu.memory_total - free
            note = f"in this machine, {held / 2**30:.1f} GiB of it taken"
            return Card(gpu.name, gpu.memory_total, gpu.capability or "", note=note, taken=held)
    return None


def _room(card: Card, used: float | None) -> int:
    """The bytes that a run can have."""
    return max(0, card.memory - (card.taken if used is None else int(used * 2**30)))


def _one(
    name: str, shape: Shape, card: Card | None, s: Settings, used: float | None, search: bool, emit: str, style: str
) -> int:
    from qlora_doctor.errors import UsageError
    from qlora_doctor.memory.fit import fit, image_note, levers, verdict
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.report.memory import plan_lines, proposal_lines

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
    if style == "svg":
        from qlora_doctor.report.picture import picture

        click.echo(picture(name, b, room, card.name if card else "", word))
    elif style == "json":
        _print_json(_data(name, s, b, card, room, word, proposal, levers(shape, s), notes))
    else:
        lines = plan_lines(name, card.name if card else "", room, s, b, word, levers(shape, s), notes)
        click.echo(
            "\n".join(
                [*lines, *(["", *proposal_lines(proposal, room, card is None or card.bfloat16)] if search else [])]
            )
        )
        if card:
            _echo_speed(shape, s if proposal is None else proposal.settings, card)
    return 0 if word in (None, "fits") or proposal is not None else 1


def _echo_speed(shape: Shape, s: Settings, card: Card) -> None:
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.memory.speed import EFFICIENCY, step_seconds

    if not card.tflops or not card.bandwidth:
        return
    b = estimate(shape, s)
    fast, slow = step_seconds(shape, s, b, card.tflops, card.bandwidth)
    tokens = s.batch * b.tokens
    click.echo(
        f"\nroughly {fast * 1000 / 60:.0f} to {slow * 1000 / 60:.0f} minutes for 1,000 steps "
        f"({tokens / slow:.0f} to {tokens / fast:.0f} tokens/s), at {EFFICIENCY[0]:.0%} to {EFFICIENCY[1]:.0%} "
        f"of {card.tflops:g} TFLOPS"
    )


def _rank(card: Card, s: Settings, used: float | None, style: str) -> int:
    """Which of the known models train on a card, the largest first."""
    from qlora_doctor.memory.fit import fit, verdict
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.memory.known import all_shapes
    from qlora_doctor.report.columns import table
    from qlora_doctor.report.memory import gib, settings_line

    room, rows, data = _room(card, used), [], []
    for name, shape in reversed(list(all_shapes())):
        b = estimate(shape, s)
        word = verdict(b, room)
        found = None if word == "fits" else fit(shape, s, room)
        way = settings_line(found.settings, found.breakdown) if found else ""
        rows.append([name, word if word == "fits" or not found else "fits with", gib(b.expected), way])
        data.append({"model": name, "verdict": word, "expected": b.expected, "high": b.high, "fits_with": way})
    if style == "json":
        _print_json({"gpu": card.name, "room": room, "models": data})
    else:
        click.echo(f"{card.name}: {gib(room)} to give")
        click.echo("\n".join(table(rows)))
    return 0


def _all_cards(name: str, shape: Shape, every: tuple[Card, ...], s: Settings, used: float | None, style: str) -> int:
    from qlora_doctor.memory.fit import fit, verdict
    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.report.columns import table
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
    if style == "json":
        _print_json({"model": name, "expected": b.expected, "high": b.high, "gpus": data})
    else:
        click.echo(f"{name}: {gib(b.expected)} expected, at most {gib(b.high)}")
        click.echo("\n".join(table(rows)))
    return 0


def _compare(name: str, shape: Shape, s: Settings, style: str) -> int:
    """Full fine-tuning, LoRA on 16-bit weights and QLoRA, all else equal."""
    from dataclasses import replace

    from qlora_doctor.memory.formula import estimate
    from qlora_doctor.report.columns import table
    from qlora_doctor.report.memory import gib

    ways = {
        "full fine-tuning": replace(s, method="full", bits=16),
        "LoRA": replace(s, method="lora", bits=16),
        "QLoRA": replace(s, method="qlora", bits=4),
    }
    found = {title: estimate(shape, way) for title, way in ways.items()}
    if style == "json":
        _print_json(
            {
                "model": name,
                "methods": {t: {"expected": b.expected, "low": b.low, "high": b.high} for t, b in found.items()},
            }
        )
        return 0
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
    click.echo(f"{name}: batch {s.batch}, length {s.length}")
    click.echo("\n".join(table(rows)))
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
        },
        "notes": notes,
    }


def _print_json(data: Any) -> None:
    import json

    click.echo(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False))
