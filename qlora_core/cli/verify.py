"""`qlora-core verify`: is a loaded model really what was asked for?"""

from __future__ import annotations

import json
from typing import Any

import click

from qlora_doctor.i18n import said_lines


@click.command("verify")
@click.argument("model_dir")
@click.option("--bits", type=click.Choice(["4", "8", "16"]), default="4", help="4, 8, or 16 (not quantised).")
@click.option("--dtype", help="bfloat16, float16 or float32; left out: what the card computes in.")
@click.option("--device", help="cuda:0, cpu, ...; left out: this process's GPU, else the CPU.")
@click.option("--adapter", help="A LoRA adapter to put on the model.")
@click.option("--quantize-vision", is_flag=True, help="Quantise the vision tower too.")
@click.option("--gate", type=click.Choice(["fix", "report", "off"]), default="fix", help="What the checks may do.")
@click.option("--deep", is_flag=True, help="Also run a forward and compare gradients with a dequantised copy.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def command(model_dir: str, deep: bool, as_json: bool, bits: str, **options: Any) -> None:
    """Loads MODEL_DIR and says whether it is really what was asked for.

    Exit code 1: the load was refused, or the model is not what was asked for.
    """
    from qlora_core.load import load_quantized
    from qlora_core.verify import verify as look

    loaded = load_quantized(model_dir, bits=int(bits), **options)
    report = loaded.report
    if deep:
        report.verification = look(loaded.model, bits=int(bits), deep=True)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else said_lines(str(report)))
    if report.verification is not None and report.verification.problems:
        raise click.exceptions.Exit(1)
