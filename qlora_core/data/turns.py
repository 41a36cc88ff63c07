"""Where the answers stand in a rendered conversation: character spans, each with its end-of-turn token.

A span begins where the generation prompt ends, so it is what the model itself has to say: with a thinking template
whose prompt leaves the thinking to the model, its `<think>` block as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlora_core.data.template import Span, Template

# In no text and in no template, and not white space, which a template may strip.
MARK = "\ufdd2"
Chat = Sequence[Mapping[str, Any]]


class Dropped(Exception):
    """The template leaves an answer out; `turn` counts the messages from 1."""

    def __init__(self, turn: int) -> None:
        super().__init__(turn)
        self.turn = turn


@dataclass(frozen=True)
class Turns:
    """A template with the variables of a run. `stops` are the tokens that can end a turn, `eos` the one to add."""

    template: Template
    variables: Mapping[str, Any]
    stops: frozenset[str]
    eos: str
    in_parts: bool

    def render(self, chat: Chat, prompt: bool = False) -> str:
        """The text; with `prompt`, up to where the model goes on."""
        return self.template.render(chat, add_generation_prompt=prompt, **self.variables)[0]

    def answers(self, chat: Chat, learn: Sequence[bool]) -> tuple[str, tuple[Span, ...]]:
        """The whole text and the span of each answer in it that is to be learned; `learn` has a word for every turn.

        Raises:
            Dropped: the template leaves an answer out.
            jinja2.TemplateError: it refuses the conversation.
        """
        text, marked = self.template.render(chat, **self.variables)
        wanted = [yes for yes, message in zip(learn, chat, strict=True) if message["role"] == "assistant"]
        spans: list[Span] | None = None
        if self.template.marks_answers:
            spans = [self._trimmed(text, span) for span in marked]
            # Which mark is whose answer is known only where there is one for each.
            spans = spans if all(wanted) or len(spans) == len(wanted) else self._by_prefix(text, chat)
        if spans is None:
            spans = self._by_pattern(text, chat) or self._by_prefix(text, chat)
        text, spans = self._closed(text, spans)
        if not all(wanted):
            spans = [span for span, yes in zip(spans, wanted, strict=True) if yes]
        return text, tuple(spans)

    def learned(self) -> Turns:
        """Itself, once the template has shown what it puts around an answer."""
        _ = self._pattern
        return self

    @property
    def adds_eos(self) -> bool:
        """Whether the template ends its answers with no special token, so that one has to be added."""
        return not self._pattern.closed and bool(self.eos)

    @property
    def thinking_is_over(self) -> bool:
        """Whether the generation prompt itself closes a thought (Qwen3 with enable_thinking=False)."""
        return "</think>" in self._pattern.header

    @cached_property
    def _pattern(self) -> _Pattern:
        """What stands around an answer, learned from a made-up conversation."""
        ask, answer = self.message("user", "Aq1"), self.message("assistant", "Bq2")
        text, marked = self.template.render([ask, answer], **self.variables)
        place = text.index("Bq2")
        after = text[place + 3 :]
        closing = after.rstrip()
        bare, prompt = self.render([ask]), self.render([ask], prompt=True)
        header = prompt[len(bare) :] if prompt.startswith(bare) else ""
        scaffold = text[len(prompt) : place] if text.startswith(prompt) else ""
        lead = over = ""
        if marked:
            closing = text[place + 3 : self._end(text, marked[0])]
            if text.startswith(prompt):
                lead, over = text[len(prompt) : marked[0][0]], text[marked[0][0] : len(prompt)]
        return _Pattern(header, scaffold, closing, any(stop in closing for stop in self.stops), lead, over)

    def message(self, role: str, text: str) -> dict[str, Any]:
        """A message of text alone, in the form that this template takes."""
        return {"role": role, "content": [{"type": "text", "text": text}] if self.in_parts else text}

    def _by_pattern(self, text: str, chat: Chat) -> list[Span] | None:
        """The spans where the text has the shape learned, and nothing in it can be mistaken; None otherwise."""
        pattern = self._pattern
        answers = [said(m) for m in chat if m["role"] == "assistant"]
        if not pattern.header.strip() or text.count(pattern.header) != len(answers):
            return None
        spans, place = [], 0
        for answer in answers:
            start = text.index(pattern.header, place) + len(pattern.header)
            for shape in (answer, pattern.scaffold + answer, answer.strip(), pattern.scaffold + answer.strip()):
                if text.startswith(shape + pattern.closing, start):
                    break
            else:
                return None
            place = start + len(shape) + len(pattern.closing)
            spans.append((start, place))
        last = chat[-1]["role"] == "assistant"
        return spans if not last or not text[place:].strip() else None

    def _by_prefix(self, text: str, chat: Chat) -> list[Span]:
        """The spans by rendering the conversation up to each answer, and with each answer changed."""
        spans = []
        for turn, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            end = _difference(text, self.render(_with(chat, turn, said(message) + MARK)))
            if end is None:
                raise Dropped(turn + 1)
            done = self.render(chat[: turn + 1])
            stop = _difference(done, self.render(_with(chat[: turn + 1], turn, said(message) + MARK)))
            tail = done[stop:].rstrip() if stop is not None else ""
            spans.append((self._start(text, chat, turn, end), end + _shared(text[end:], tail)))
        return spans

    def _start(self, text: str, chat: Chat, turn: int, end: int) -> int:
        if turn:
            prompt = self.render(chat[:turn], prompt=True)
            if len(prompt) <= end and text.startswith(prompt):
                return len(prompt)
        # The template writes an earlier turn otherwise than it asked for it (Qwen3 leaves the thinking out).
        start = _difference(text, self.render(_with(chat, turn, MARK)))
        return end if start is None else min(start, end)

    def _trimmed(self, text: str, span: Span) -> Span:
        """A span that the template marks, moved to begin where the prompt ends and to end with the end-of-turn token."""
        start, pattern = span[0], self._pattern
        if pattern.lead and text.endswith(pattern.lead, 0, start):
            start -= len(pattern.lead)
        elif pattern.over and text.startswith(pattern.over, start):
            start += len(pattern.over)
        return start, self._end(text, span)

    def _end(self, text: str, span: Span) -> int:
        start, end = span
        end = start + len(text[start:end].rstrip())
        if not text.endswith(tuple(self.stops), start, end):
            end += len(next((stop for stop in self.stops if text.startswith(stop, end)), ""))
        return end

    def _closed(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """The eos token put after each answer that ends with no special token: without it nobody learns to stop."""
        if not self.adds_eos:
            return text, spans
        out: list[str] = []
        closed: list[Span] = []
        last = shift = 0
        for start, end in spans:
            out += [text[last:end], self.eos]
            closed.append((start + shift, end + shift + len(self.eos)))
            shift += len(self.eos)
            last = end
        return "".join([*out, text[last:]]), closed


@dataclass(frozen=True, slots=True)
class _Pattern:
    """`header` opens an answer, `scaffold` is what the template puts before it, `closing` what ends it.

    Where the template marks answers: `lead` is what stands between the prompt and the mark (LLaVA's space), `over` what
    the prompt says already of what is marked (Qwen3's empty thought).
    """

    header: str
    scaffold: str
    closing: str
    closed: bool
    lead: str
    over: str


def said(message: Mapping[str, Any]) -> str:
    """The text of a message in the template's form."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def stop_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens of a tokenizer, as text: any of them can end a turn."""
    added: Iterable[Any] = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return frozenset({str(token) for token in added if token.special} | set(tokenizer.all_special_tokens))


def _with(chat: Chat, turn: int, text: str) -> list[Mapping[str, Any]]:
    """The conversation with other words in one turn."""
    message = chat[turn]
    content = text if isinstance(message["content"], str) else [{"type": "text", "text": text}]
    return [*chat[:turn], {**message, "content": content}, *chat[turn + 1 :]]


def _difference(one: str, other: str) -> int | None:
    """Where two texts first differ; None where they are equal."""
    return None if one == other else _shared(one, other)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
