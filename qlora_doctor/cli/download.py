"""qlora-doctor download"""

from __future__ import annotations

from typing import Any

import click


@click.command("download")
@click.argument("model")
@click.option("--to", default="", metavar="DIR", help="A folder of your own, to carry to a machine without a network.")
@click.option("--revision", default=None, metavar="REV", help="A branch, tag or commit (default: main).")
@click.option("--endpoint", default=None, metavar="URL", help="The Hub to ask (default: HF_ENDPOINT, else its own).")
@click.option("--include", multiple=True, metavar="PATTERN", help="These files instead of those that a load needs.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these files.")
@click.option(
    "--stall", default=30.0, metavar="SECONDS", help="Start a transfer again that brings nothing for so long."
)
@click.option("--attempts", default=5, metavar="N", help="Attempts in a row that bring nothing before it gives up.")
@click.option("--quiet", "-q", is_flag=True, help="Do not show how far it is.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print the result.")
def command(model: str, stall: float, attempts: int, quiet: bool, style: str, **options: Any) -> int:
    """Download MODEL: an id of the Hub, or `modelscope:ID`.

    Only what a load reads: safetensors (pickles where there is nothing else), configuration, tokenizer, processor. It
    goes on where an earlier download stopped, and the hash of each file is checked where the Hub gives one. Without --to
    the files go to the cache of huggingface_hub. A second mirror is asked only where `mirrors` in your settings name one.
    The token that is kept on this machine goes to the Hub's own address alone. Exit code: 0 the model is there, 2 it
    cannot be had.
    """
    import json
    from dataclasses import asdict

    from qlora_doctor.download import Patience, get
    from qlora_doctor.download.bar import Bar
    from qlora_doctor.download.fetch import show_size

    if stall <= 0 or attempts < 1:
        raise click.UsageError("--stall and --attempts are greater than 0")
    bar = Bar(model)
    try:
        done = get(
            model,
            patience=Patience(stall=stall, connect=min(stall, 15.0), attempts=attempts),
            progress=None if quiet else bar,
            **options,
        )
    finally:
        bar.end()
    if style == "json":
        click.echo(json.dumps(asdict(done), indent=2, ensure_ascii=False))
        return 0
    for trouble in done.troubles:
        click.echo(f"not from {trouble}", err=True)
    if not done.fetched:
        click.echo(f"{model} is here already, whole")
    else:
        rate = f", {show_size(int(done.bytes / done.seconds))}/s" if done.seconds > 1 else ""
        count = len(done.fetched)
        click.echo(f"{count} file{'' if count == 1 else 's'}, {show_size(done.bytes)} from {done.endpoint}{rate}")
    if done.unverified:
        click.echo(f"no hash was given for {len(done.unverified)} of them; their sizes are right")
    click.echo(done.folder)
    return 0
