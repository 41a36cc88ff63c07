"""`qlora-core convert`: the original LLaVA layout, written anew for transformers."""

from __future__ import annotations

import click

from qlora_doctor.i18n import said


@click.command("convert")
@click.argument("model_dir")
@click.argument("out")
@click.option("--vision-tower", help="A CLIP folder or Hub name (default: what the folder's mm_vision_tower names).")
def command(model_dir: str, out: str, vision_tower: str | None) -> None:
    """Writes MODEL_DIR, a LLaVA checkpoint in its authors' own layout, anew to OUT in the layout of transformers."""
    from qlora_core.convert import convert as run

    folder = run(model_dir, out, vision_tower=vision_tower)
    click.echo(said(f'{folder} is ready: load_quantized("{folder}")'))
