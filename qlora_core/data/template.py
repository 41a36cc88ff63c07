"""Chat templates: the model's own, one of ours, or a file; rendered as transformers renders them.

Jinja runs in the same sandbox and with the same filters as in transformers, and `{% generation %}` blocks are given back
as character spans, so that a row is rendered once and not once for each question about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlora_doctor.errors import UsageError

# Noncharacters of Unicode: no text may hold them, and no tokenizer sees them.
START, END = "\ufdd0", "\ufdd1"
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template. `name` says where it is from; `own` whether the model brought it."""

    source: str
    name: str
    own: bool = False

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself, by `{% generation %}`, what the model is to learn."""
        return _marks(self.source)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[str, tuple[Span, ...]]:
        """The text of a conversation and the character spans of its `{% generation %}` blocks.

        Raises:
            jinja2.TemplateError: the template refuses the conversation.
        """
        text: str = _compiled(self.source).render(messages=messages, **{"add_generation_prompt": False, **variables})
        return _take_marks(text) if START in text else (text, ())


def choose_template(template: str | Path | None, processor: Any, tokenizer: Any, placeholder: str = "") -> Template:
    """The template of a run: what the user names, else the model's own, else a stated one of ours.

    `template` is a name of BUILT_IN, a path, or Jinja text.

    Raises:
        UsageError: no such name or file, or not Jinja.
    """
    if template is not None:
        return _checked(_named(template))
    for holder in (processor, tokenizer):
        own = getattr(holder, "chat_template", None)
        if isinstance(own, Mapping):
            own = own.get("default")
        if own:
            return Template(str(own), "the model's own chat template", own=True)
    if "<|im_start|>" in tokenizer.get_vocab():
        return built_in("chatml")
    return built_in("vicuna" if placeholder else "plain")


def built_in(name: str) -> Template:
    """One of the templates that come with this package."""
    return Template(BUILT_IN[name], f"the built-in template `{name}`")


def _named(template: str | Path) -> Template:
    text = str(template)
    if text in BUILT_IN:
        return built_in(text)
    if "{{" in text or "{%" in text:
        return Template(text, "the template given")
    path = Path(text).expanduser()
    if path.is_file():
        return Template(path.read_text(encoding="utf-8"), f"the template {path.name}")
    raise UsageError(
        f"template={text!r} is neither a file nor one of {', '.join(BUILT_IN)}, and no Jinja text; give one of these"
    )


def _checked(template: Template) -> Template:
    import jinja2

    try:
        _compiled(template.source)
    except jinja2.TemplateError as error:
        raise UsageError(f"{template.name} is not Jinja: {error}") from error
    return template


@lru_cache(maxsize=64)
def _marks(source: str) -> bool:
    import re

    return bool(re.search(r"\{%-?\+?\s*generation\s*[-+]?%\}", source))


def _take_marks(text: str) -> tuple[str, tuple[Span, ...]]:
    """The text without the marks, and where they stood; a block within a block belongs to the outer one."""
    kept: list[str] = []
    spans: list[Span] = []
    length = depth = start = last = 0
    for place, letter in enumerate(text):
        if letter not in (START, END):
            continue
        kept.append(text[last:place])
        length += place - last
        last = place + 1
        if letter == START:
            start = length if depth == 0 else start
            depth += 1
        else:
            depth -= 1
            if depth == 0 and length > start:
                spans.append((start, length))
    kept.append(text[last:])
    return "".join(kept), tuple(spans)


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    import jinja2
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    # A template is code from a model's repository, and older sandboxes have known ways out.
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit()) < (3, 1, 6):
        raise UsageError(f"jinja2 {jinja2.__version__} runs chat templates unsafely; pip install -U 'jinja2>=3.1.6'")

    class Plain(Namespace):  # type: ignore[misc]
        """`namespace()` without the way to Python's own attributes."""

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a chat template may not set {name!r}")
            super().__setitem__(name, value)

    def namespace(*given: Any, **more: Any) -> Plain:
        made = Plain()
        for name, value in dict(*given, **more).items():
            made[name] = value
        return made

    class Generation(Extension):  # type: ignore[misc]
        """`{% generation %}...{% endgeneration %}`: the block between two marks."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            before, after = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (START, END))
            # A scope of its own, as in transformers: what is set inside is not seen outside.
            return nodes.Scope([before, *body, after], lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": namespace,
        "dict": lambda *given, **more: dict(*given, **more),
    }
    return environment.from_string(source)


_TEXT = (
    "{% macro said(m) %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)

# `instruction` is the form of the Chinese guides (instruction, input, answer); `alpaca` the Stanford one.
BUILT_IN: dict[str, str] = {
    "plain": _TEXT.replace("IMAGE", "{{ image_token }}\n")
    + "{% for m in messages %}{% if m.role == 'assistant' %}Assistant: {{ said(m) }}{{ eos_token }}\n"
    "{% elif m.role == 'system' %}{{ said(m) }}\n{% else %}User: {{ said(m) }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    "vicuna": _TEXT.replace("IMAGE", "{{ image_token }}\n")
    + "{% for m in messages %}{% if m.role == 'assistant' %} ASSISTANT: {{ said(m) }}{{ eos_token }}"
    "{% elif m.role == 'system' %}{{ said(m) }} {% else %}USER: {{ said(m) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}",
    "chatml": _TEXT.replace("IMAGE", "{{ image_token }}")
    + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ said(m) }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "instruction": _TEXT.replace("IMAGE", "{{ image_token }}\n")
    + "{% for m in messages %}{% if m.role == 'assistant' %}### 回答:\n{{ said(m) }}{{ eos_token }}\n"
    "{% elif m.role == 'user' and m.input %}### 指令:\n{{ m.instruction }}\n### 输入:\n{{ m.input }}\n"
    "{% elif m.role == 'user' %}### 指令:\n{{ said(m) }}\n{% else %}{{ said(m) }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### 回答:\n{% endif %}",
    "alpaca": _TEXT.replace("IMAGE", "{{ image_token }}\n")
    + "{% for m in messages %}{% if m.role == 'assistant' %}### Response:\n{{ said(m) }}{{ eos_token }}\n\n"
    "{% elif m.role == 'user' and m.input %}### Instruction:\n{{ m.instruction }}\n\n### Input:\n{{ m.input }}\n\n"
    "{% elif m.role == 'user' %}### Instruction:\n{{ said(m) }}\n\n{% else %}{{ said(m) }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}",
}
