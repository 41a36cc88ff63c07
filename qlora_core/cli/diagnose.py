"""`qlora-core diagnose`: what an adapter's answers show."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from qlora_doctor.i18n import tr


@click.command("diagnose")
@click.argument("adapter")
@click.option("--base", default="", help="The base model, where it is not the one that the adapter names.")
@click.option("--prompt", "prompts", multiple=True, help="A question to ask (may be given several times).")
@click.option("--tokens", default=96, show_default=True, help="At most so many tokens an answer.")
@click.option("--bits", type=click.Choice(["4", "8", "16"]), default="4", help="4, 8, or 16 (not quantised).")
@click.option(
    "--save", default="", metavar="FILE", help="Keep the answers, for `qlora-doctor diagnose --adapter --samples`."
)
def command(adapter: str, base: str, prompts: tuple[str, ...], tokens: int, bits: str, save: str) -> None:
    """Asks ADAPTER a few questions, with the adapter on and off, and says what is wrong with the answers.

    Names repetition, answers that never end, a wrong chat template, an adapter that is untrained, broken or not active.
    Exit code 1: something was found, or the load was refused.
    """
    from qlora_core.sample import PROMPTS, sample
    from qlora_doctor.errors import UsageError
    from qlora_doctor.logs.adapter import adapter_findings
    from qlora_doctor.report.diagnosis import finding_lines

    def told(prompt: str) -> None:
        click.echo(tr("asking: {prompt}", prompt=prompt), err=True)

    found = adapter_findings(adapter, base)
    if not any(f.severity == "error" for f in found):
        samples = sample(adapter, base, prompts or PROMPTS, tokens, told, bits=int(bits))
        for one in samples:
            click.echo(f"> {one.prompt}\n{one.output[:400]}\n")
        if save:
            text = json.dumps({"schema": 1, "samples": [asdict(s) for s in samples]}, indent=1, ensure_ascii=False)
            try:
                Path(save).write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"--save {save}: {error.strerror or error}") from None
        found = adapter_findings(adapter, base, samples)
    click.echo("\n".join(finding_lines(found)))
    if found:
        raise click.exceptions.Exit(1)
