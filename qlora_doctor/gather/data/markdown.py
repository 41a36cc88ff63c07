"""Questions and answers in Markdown: `Q1: ...` and `A1: ...`, with full-width colons too."""

from __future__ import annotations

import re

_MARK = re.compile(
    r"^[ \t>#*+-]*(?P<kind>Q|A|q|a|问题|问|答案|答)[ \t]*(?P<number>\d*)[ \t]*\**[ \t]*[:：][ \t]*\**[ \t]*"
)
_ANSWERS = ("A", "答", "答案")


def questions_and_answers(text: str) -> tuple[list[tuple[int, dict[str, str]]], list[tuple[int, str]]]:
    """`(line of the question, {question, answer})` for each pair, and `(line, what is wrong)`.

    An answer goes on over as many lines as it likes, up to the next question. A pair belongs together by its number.
    """
    pairs: list[tuple[int, dict[str, str]]] = []
    faults: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    question: tuple[int, str, str] | None = None
    for line, kind, number, body in _blocks(text):
        if kind == "Q":
            if question is not None:
                faults.append(
                    (question[0], f"question {question[1]} has no answer; write `A{question[1]}: ...` below it")
                )
            if number and number in seen:
                faults.append((line, f"question {number} was there before, in line {seen[number]}; number it anew"))
            seen.setdefault(number, line)
            question = (line, number, body)
        elif question is None:
            faults.append((line, f"answer {number} has no question before it; write `Q{number}: ...` above it"))
        elif number != question[1]:
            faults.append((line, f"answer {number} follows question {question[1]}; give the two one number"))
            question = None
        else:
            pairs.append((question[0], {"question": question[2], "answer": body}))
            question = None
    if question is not None:
        faults.append((question[0], f"question {question[1]} has no answer; write `A{question[1]}: ...` below it"))
    return pairs, faults


def _blocks(text: str) -> list[tuple[int, str, str, str]]:
    """`(line, Q or A, number, text)`; what stands before the first mark (a title) is left out."""
    blocks: list[tuple[int, str, str, list[str]]] = []
    for line, raw in enumerate(text.split("\n"), 1):
        raw = raw.rstrip("\r")
        mark = _MARK.match(raw)
        if mark:
            kind = "A" if mark["kind"].upper() in _ANSWERS else "Q"
            blocks.append((line, kind, mark["number"], [raw[mark.end() :]]))
        elif blocks:
            blocks[-1][3].append(raw)
    return [(line, kind, number, _body(lines, kind)) for line, kind, number, lines in blocks]


def _body(lines: list[str], kind: str) -> str:
    """The text of a block, without a heading or rule at its end that belongs to what follows."""
    kept = list(lines)
    while kept and kind == "A" and len(kept) > 1 and (not kept[-1].strip() or re.match(r"(#{1,6} |---+$)", kept[-1])):
        kept.pop()
    text = "\n".join(kept).strip()
    return text.removesuffix("**").rstrip() if text.count("**") % 2 else text  # its pair stood around the mark


def is_questions_and_answers(text: str) -> bool:
    """Whether a Markdown text holds at least one question and one answer."""
    kinds = {kind for _, kind, _, _ in _blocks(text)}
    return kinds == {"Q", "A"}
