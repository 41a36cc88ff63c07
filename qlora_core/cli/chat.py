"""`qlora-core chat`: a conversation with a model and its adapter."""

from __future__ import annotations

from typing import Any

import click

from qlora_core.cli.generate import options, printable, sampling, silence
from qlora_doctor.i18n import said, tr

HELP = "/image FILE  /system TEXT  /new  /exit; Ctrl-C ends an answer, at the prompt the chat"


@click.command("chat")
@click.argument("base")
@click.option("--image", help="An image file for the first question.")
@options(temperature=0.7, top_p=0.9)
def command(
    base: str, image: str | None, system: str, bits: str, adapter: str | None, template: str | None,
    enable_thinking: bool | None, **words: Any,
) -> None:  # fmt: skip
    """Talks with BASE and its adapter, in the form that training used. Answers are written as they come.

    In the chat: /image FILE, /system TEXT, /new, /exit. Exit code 130: Ctrl-C at the prompt.
    """
    from qlora_core.chat import check_images, load_speaker, picture, question
    from qlora_core.data.rows import Image, Message
    from qlora_doctor.errors import UsageError

    how = sampling(words)
    waiting = [picture(image)] if image else []
    silence()
    speaker = load_speaker(
        base, adapter, template=template, enable_thinking=enable_thinking, images=len(waiting), bits=int(bits), **words
    )
    for note in (*speaker.notes, HELP):
        click.echo(said(note), err=True)
    turns: list[Message] = []
    while (line := _line()) is not None:
        word, _, rest = line.strip().partition(" ")
        try:
            if word in ("/exit", "/quit"):
                return
            if word == "/new":
                turns, waiting = [], []
            elif word == "/system":
                system, turns = rest.strip(), []
            elif word == "/image":
                check_images(speaker.family, speaker.sees, 1)
                waiting = [*waiting, picture(rest.strip())]
            elif word.startswith("/"):
                click.echo(said(HELP), err=True)
            elif line.strip():
                asked = question(line.strip(), waiting)
                opening = [Message("system", (system,))] if system else []
                done = speaker.answer([*opening, *turns, asked], how, lambda t: click.echo(printable(t), nl=False))
                click.echo(said(" [stopped]") if done.finish == "interrupted" else "")
                turns, waiting = [*turns, asked, Message("assistant", (done.text,))], list[Image]()
        except UsageError as error:
            click.echo(tr("error: {error}", error=said(str(error))), err=True)


def _line() -> str | None:
    """What the person types next; None at the end of the input.

    Raises:
        click.exceptions.Exit: Ctrl-C.
    """
    try:
        return input("> ")
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:
        click.echo()
        raise click.exceptions.Exit(130) from None
