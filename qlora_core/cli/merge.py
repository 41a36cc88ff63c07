"""`qlora-core merge`: an adapter and its base as one model in 16 bit."""

from __future__ import annotations

from typing import Any

import click

from qlora_doctor.i18n import said_lines


@click.command("merge")
@click.option("--adapter", required=True, help="The adapter folder.")
@click.option("--output", required=True, help="A new or empty folder for the merged model.")
@click.option("--base", help="The base model; left out: the one that the adapter names.")
@click.option("--dtype", help="bfloat16 or float16; left out: the base's own, bfloat16 for a float32 base.")
@click.option("--device", default="cpu", show_default=True, help="Where to merge; a GPU must hold all of it in 16 bit.")
@click.option("--other-base", is_flag=True, help="Allow a base of another name than the adapter's.")
@click.option("--revision", help="Branch, tag or commit of the base on the Hub.")
@click.option("--gate", type=click.Choice(["fix", "report", "off"]), default="fix", help="What the checks may do.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def command(adapter: str, output: str, as_json: bool, **options: Any) -> None:
    """Merges a LoRA adapter into its base, loaded anew in 16 bit, saves it, and compares the logits.

    Exit code 1: the merged model does not answer as base and adapter did; 2: a wrong argument, too little room.
    """
    from qlora_core.cli.generate import silence
    from qlora_core.cli.train import _quiet
    from qlora_core.merge import merge

    _quiet()
    silence()
    done = merge(adapter, output, say=lambda text: click.echo(said_lines(text), err=True), **options)
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps(dataclasses.asdict(done), indent=2, default=str, ensure_ascii=False))
    else:
        click.echo(said_lines(str(done)))
