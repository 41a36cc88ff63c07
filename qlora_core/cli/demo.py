"""`qlora-core demo`: tiny models with the usual faults, loaded."""

from __future__ import annotations

import click


@click.command("demo")
@click.option("--out", default=None, help="Keep the tiny models in this folder (default: a temporary one).")
@click.option("--device", help="cuda:0, cpu, ...; left out: this process's GPU, else the CPU.")
def command(out: str | None, device: str | None) -> None:
    """Builds tiny models of three families with the usual faults, loads each in 4-bit and lets each answer."""
    from qlora_core.demo import run

    run(out, device)
