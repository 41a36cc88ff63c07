"""`qlora-core data`: the audit alone."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from qlora_doctor.finding import Finding
from qlora_doctor.i18n import finding_text, tr


@click.command("data")
@click.argument("data", nargs=-1, required=True)
@click.option("--model", help="A model folder or Hub name: its tokenizer encodes the rows (no weights are read).")
@click.option("--max-length", type=int, default=2048, show_default=True, help="The longest row in tokens; 0: no limit.")
@click.option("--too-long", type=click.Choice(["drop", "refuse"]), default="drop", help="What becomes of longer rows.")
@click.option("--eval", "eval_data", help="Evaluation data, for rows that are in both.")
@click.option("--images", help="The folder that image paths start from (default: that of each file).")
@click.option("--split", default="train", show_default=True, help="Of a Hub dataset, or of a folder of split files.")
@click.option(
    "--data-format", help="The format of the data, where it should not be recognised (alpaca, messages, ...)."
)
@click.option("--template", help="A chat template: a built-in name, or a Jinja file.")
@click.option("--thinking/--no-thinking", "enable_thinking", default=None, help="enable_thinking for the template.")
@click.option("--limit", type=int, help="Read so many rows and no more.")
@click.option("--rows", type=int, default=1, show_default=True, help="So many rows are shown.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print the audit.")
def command(
    data: tuple[str, ...],
    model: str | None,
    max_length: int,
    eval_data: str | None,
    rows: int,
    style: str,
    template: str | None,
    enable_thinking: bool | None,
    **options: Any,
) -> None:
    """Reads DATA (files, a folder, or a dataset of the Hub) and says what is wrong with it, by file and row.

    With --model every row is encoded as in training. Nothing is changed, no weights are read. Exit code: 1 where the data
    has an error.
    """
    from qlora_core.data.audit import findings_of
    from qlora_core.data.read import look

    reading = {key: options[key] for key in ("images", "split", "limit")} | {"format": options["data_format"]}
    read = look(list(data) if len(data) > 1 else data[0], **reading)
    evaluation = look(eval_data, **{**reading, "limit": None}) if eval_data else None
    colour = sys.stdout.isatty()
    if model is None:
        from qlora_core.data.show import show_data, show_read
        from qlora_doctor.gather.data.survey import survey

        facts = survey(read, evaluation)
        lines = [*show_data(facts), *show_read(read, rows)]
    else:
        from qlora_core.data.audit import audit
        from qlora_core.data.encode import make_encoder
        from qlora_core.data.show import show_audit
        from qlora_core.data.tokens import processor_of

        encode = make_encoder(*processor_of(model), template=template, enable_thinking=enable_thinking)
        progress = _progress if sys.stderr.isatty() else None
        result = audit(
            read,
            encode,
            max_length=max_length or None,
            too_long=options["too_long"],
            eval_rows=evaluation,
            progress=progress,
        )
        facts, lines = result.facts, [show_audit(result, rows=rows, colour=colour)]
    found = findings_of(facts)
    if style == "json":
        click.echo(json.dumps(_as_json(facts, found), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join([*lines, *map(_told, found)]), color=colour)
    if any(f.severity == "error" for f in found):
        raise click.exceptions.Exit(1)


def _told(finding: Finding) -> str:
    return tr("{severity}: {message}", severity=tr(finding.severity), message=f"{finding.code} {finding_text(finding)}")


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    click.echo("\r" + tr("{done:,} of {total:,} rows", done=done, total=total), err=True, nl=False)
    click.echo(end, err=True, nl=False)


def _as_json(facts: Any, found: tuple[Finding, ...]) -> dict[str, Any]:
    from qlora_doctor.wire import to_data

    told = [{"code": f.code, "severity": f.severity, "message": f.text} for f in found]
    return {"schema": 1, "data": to_data(facts), "findings": told}
