"""`qlora-core generate`: answers to prompts, for a pipe or a look."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qlora_doctor.i18n import said

_LOAD = (
    click.option("--bits", type=click.Choice(["4", "8", "16"]), default="4", help="4, 8, or 16 (not quantised)."),
    click.option("--dtype", help="bfloat16, float16 or float32; left out: what the card computes in."),
    click.option("--device", help="cuda:0, cpu, ...; left out: this process's GPU, else the CPU."),
    click.option("--gate", type=click.Choice(["fix", "report", "off"]), default="fix", help="What the checks may do."),
    click.option("--revision", help="Branch, tag or commit of the base on the Hub."),
)
_ASK = (
    click.option("--adapter", help="An adapter folder; BASE may also be one itself."),
    click.option("--system", default="", help="What the system turn says."),
    click.option(
        "--template", help="The chat template: a built-in name or a Jinja file; left out: that of the training."
    ),
    click.option("--thinking/--no-thinking", "enable_thinking", default=None, help="Told to the chat template."),
    click.option("--max-new-tokens", type=int, default=512, show_default=True, help="The longest answer."),
    click.option(
        "--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: fewer repetitions."
    ),
    click.option("--seed", type=int, help="Draws the same answer again."),
)


def options(temperature: float, top_p: float) -> Callable[[Any], Any]:
    """The options that `chat` and `generate` share, with their own defaults for how answers are drawn."""
    drawn = (
        click.option(
            "--temperature", type=float, default=temperature, show_default=True, help="0: the likeliest token."
        ),
        click.option("--top-p", type=float, default=top_p, show_default=True, help="Draw from so much probability."),
    )

    def add(function: Any) -> Any:
        for option in reversed((*_ASK, *drawn, *_LOAD)):
            function = option(function)
        return function

    return add


def sampling(words: dict[str, Any]) -> Any:
    """Takes the options of an answer out of all options."""
    from qlora_core.chat import Sampling

    names = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")
    return Sampling(**{name: words.pop(name) for name in names})


def silence() -> None:
    """No bars of transformers between our lines."""
    from qlora_core.cli.train import _quiet

    _quiet()
    import transformers

    transformers.utils.logging.disable_progress_bar()


def printable(text: str) -> str:
    """Without control characters: what a model says must not move the cursor or rename the window."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0))


@click.command("generate")
@click.argument("base")
@click.option("--prompt", "prompts", multiple=True, help="What to ask; may be given several times.")
@click.option("--file", "file", help="Prompts: a line each, or JSON lines with prompt, image and system; - is stdin.")
@click.option("--image", help="An image file for every prompt that names none.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="text, or a JSON list.")
@options(temperature=0.0, top_p=1.0)
def command(
    base: str, prompts: tuple[str, ...], file: str | None, image: str | None, form: str, system: str, bits: str,
    adapter: str | None, template: str | None, enable_thinking: bool | None, **words: Any,
) -> None:  # fmt: skip
    """Answers each prompt with BASE and its adapter, alone, in the form that training used.

    Exit code 1: the load was refused; 2: a wrong argument, a file that cannot be read, an image for a text model.
    """
    from qlora_core.chat import load_speaker, picture, question
    from qlora_core.data.rows import Message
    from qlora_doctor.errors import UsageError

    how = sampling(words)
    asked = [{"prompt": one} for one in prompts] + (_read(file) if file else [])
    if not asked:
        raise UsageError("nothing to answer; give --prompt TEXT or --file FILE")
    for one in asked:
        one.setdefault("system", system)
        if image is not None:
            one.setdefault("image", image)
    shown = {one["image"]: picture(one["image"]) for one in asked if one.get("image")}
    silence()
    speaker = load_speaker(
        base,
        adapter,
        template=template,
        enable_thinking=enable_thinking,
        images=min(1, len(shown)),
        bits=int(bits),
        **words,
    )
    for note in speaker.notes:
        click.echo(said(note), err=True)
    told = []
    for place, one in enumerate(asked):
        images = [shown[one["image"]]] if one.get("image") else []
        turns = [Message("system", (one["system"],))] if one["system"] else []
        turns.append(question(one["prompt"], images))
        alone = form == "text"
        if alone and len(asked) > 1:
            click.echo(f"{'' if place == 0 else chr(10)}# {printable(one['prompt'])}")
        done = speaker.answer(turns, how, (lambda t: click.echo(printable(t), nl=False)) if alone else None)
        if alone:
            click.echo()
            if done.finish == "length":
                click.echo(said(f"(cut at {done.tokens} tokens; --max-new-tokens)"), err=True)
        told.append(
            {k: v for k, v in one.items() if v}
            | {"answer": done.text, "tokens": done.tokens, "finish": done.finish, "seconds": round(done.seconds, 3)}
        )
        if done.finish == "interrupted":
            break
    if form == "json":
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    if told[-1]["finish"] == "interrupted":
        raise click.exceptions.Exit(130)


def _read(name: str) -> list[dict[str, str]]:
    from qlora_doctor.errors import UsageError

    try:
        text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--file {name}: it cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--file {name}: it is not UTF-8; save it as UTF-8") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UsageError(f"--file {name}: it is empty")
    if not lines[0][1].lstrip().startswith("{"):
        return [{"prompt": line} for _, line in lines]
    found = []
    for number, line in lines:
        try:
            one = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"--file {name}, line {number}: it is no JSON object") from None
        good = (
            isinstance(one, dict) and isinstance(one.get("prompt"), str) and set(one) <= {"prompt", "image", "system"}
        )
        if not good or not all(isinstance(value, str) for value in one.values()):
            raise UsageError(
                f'--file {name}, line {number}: give {{"prompt": ...}}, with "image" and "system" if wanted'
            )
        found.append(one)
    return found
