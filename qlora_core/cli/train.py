"""`qlora-core train`: from a data file to an adapter."""

from __future__ import annotations

from typing import Any

import click

from qlora_doctor.i18n import said_lines, tr


@click.command("train")
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--output", required=True, help="A new or empty folder for the run.")
@click.option(
    "--preset", default="auto", show_default=True, help="8gb, 12gb, 16gb, 24gb, a card's name, or auto: this GPU."
)
@click.option(
    "--eval", "eval_data", multiple=True, metavar="DATA", help="Rows to evaluate on; may be given several times."
)
@click.option("--config", "config", metavar="FILE", help="Settings in a TOML, JSON or YAML file.")
@click.option(
    "--set", "words", multiple=True, metavar="NAME=VALUE", help="One setting; over the file's. See docs/settings.md."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    default=None,
    metavar="[CHECKPOINT]",
    help="Go on from a checkpoint.",
)
@click.option("--dry-run", is_flag=True, help="Load no model: print the plan, the audit and the memory estimate.")
@click.option("--quick", is_flag=True, help="Five steps on the longest rows and the 4-bit proof; keeps nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def command(
    model: str,
    data: tuple[str, ...],
    output: str,
    preset: str,
    eval_data: tuple[str, ...],
    config: str | None,
    words: tuple[str, ...],
    resume: str | None,
    dry_run: bool,
    quick: bool,
    as_json: bool,
) -> None:
    """Trains a LoRA adapter for MODEL on DATA: files, a folder, or a dataset on the Hub.

    Exit code 1: the run was refused or stopped; 2: a wrong argument; 143 or 130: a signal ended it, after a checkpoint.
    """
    from qlora_core.distributed import main_process
    from qlora_core.errors import TrainingStopped
    from qlora_core.settings_file import parse_word, read_settings_file
    from qlora_core.train import train
    from qlora_doctor.errors import UsageError

    if dry_run and quick:
        raise UsageError("--dry-run loads nothing and --quick trains five steps; give one of them")
    settings: dict[str, Any] = read_settings_file(config) if config else {}
    settings |= dict(parse_word(word) for word in words)
    _quiet()
    try:
        result = train(
            model,
            list(data) if len(data) > 1 else data[0],
            output,
            preset=preset,
            eval_data=(list(eval_data) if len(eval_data) > 1 else eval_data[0]) if eval_data else None,
            resume=False if resume is None else True if resume == "newest" else resume,
            dry_run=dry_run,
            quick=quick,
            **settings,
        )
    except TrainingStopped as stop:
        click.echo(tr("error: {error}", error=said_lines(str(stop))), err=True)
        raise click.exceptions.Exit(stop.exit_code) from stop
    if not main_process():
        pass
    elif as_json:
        import json

        from qlora_core.run_record import begin

        record = dict(result.run) or {**begin(result.prepared), "status": "dry run"}
        click.echo(json.dumps(record, indent=2, default=str, ensure_ascii=False))
    else:
        click.echo(said_lines(str(result)))
    if result.prepared.gate.refused:
        raise click.exceptions.Exit(1)


def _quiet() -> None:
    """No progress bars and notices of the libraries between our lines; their warnings of substance stay."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
