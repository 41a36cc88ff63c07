"""`qlora-core`: the commands that need torch."""

from __future__ import annotations

import json
from typing import Any

import click

from qlora_doctor import __version__
from qlora_doctor.errors import QloraDoctorError, UsageError

STACK = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "safetensors", "PIL", "numpy")
EXTRA = 'this command needs the train extra (Python 3.11 or newer): pip install "qlora-doctor[train]"'


class _Group(click.Group):
    """Turns our own errors into a message and an exit code: 2 for a wrong argument, 1 for a refusal."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in STACK:
                raise
            click.echo(f"error: {error.name} is not installed; {EXTRA}", err=True)
            ctx.exit(2)
        except QloraDoctorError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="qlora-core")
def main() -> None:
    """Loads, verifies and trains 4-bit models. What needs no torch is `qlora-doctor`."""


@main.command()
@click.argument("model_dir")
@click.option("--bits", type=click.Choice(["4", "8", "16"]), default="4", help="4, 8, or 16 (not quantised).")
@click.option("--dtype", help="bfloat16, float16 or float32; left out: what the card computes in.")
@click.option("--device", help="cuda:0, cpu, ...; left out: this process's GPU, else the CPU.")
@click.option("--adapter", help="A LoRA adapter to put on the model.")
@click.option("--quantize-vision", is_flag=True, help="Quantise the vision tower too.")
@click.option("--gate", type=click.Choice(["fix", "report", "off"]), default="fix", help="What the checks may do.")
@click.option("--deep", is_flag=True, help="Also run a forward and compare gradients with a dequantised copy.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def verify(model_dir: str, deep: bool, as_json: bool, bits: str, **options: Any) -> None:
    """Loads MODEL_DIR and says whether it is really what was asked for.

    Exit code 1: the load was refused, or the model is not what was asked for.
    """
    from qlora_core.load import load_quantized
    from qlora_core.verify import verify as look

    loaded = load_quantized(model_dir, bits=int(bits), **options)
    report = loaded.report
    if deep:
        report.verification = look(loaded.model, bits=int(bits), deep=True)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    if report.verification is not None and report.verification.problems:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("model_dir")
@click.argument("out")
@click.option("--vision-tower", help="A CLIP folder or Hub name (default: what the folder's mm_vision_tower names).")
def convert(model_dir: str, out: str, vision_tower: str | None) -> None:
    """Writes MODEL_DIR, a LLaVA checkpoint in its authors' own layout, anew to OUT in the layout of transformers."""
    from qlora_core.convert import convert as run

    folder = run(model_dir, out, vision_tower=vision_tower)
    click.echo(f'{folder} is ready: load_quantized("{folder}")')


@main.command()
@click.option("--out", default=None, help="Keep the tiny models in this folder (default: a temporary one).")
@click.option("--device", help="cuda:0, cpu, ...; left out: this process's GPU, else the CPU.")
def demo(out: str | None, device: str | None) -> None:
    """Builds tiny models of three families with the usual faults, loads each in 4-bit and lets each answer."""
    from qlora_core.demo import run

    run(out, device)
