"""The reader's language. English is what the code says; another language is a gettext catalogue under `locale/`.

Checks, fixes and reasons stay English everywhere: in JSON, in journals, in plans. Only what prints asks here, as its last
step. So a finding's message is the msgid of its catalogue entry, and a sentence that was filled in elsewhere (a fix's
title, why something is unknown) is recognised by the template that it was made of (`said`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_doctor.finding import Finding

LANGUAGES = ("en", "zh_CN")
DOMAIN = "qlora_doctor"
_TRADITIONAL = ("tw", "hk", "mo", "hant")
# Windows' numbers for Chinese as it is written in Taiwan, Hong Kong and Macau.
_TRADITIONAL_IDS = (0x0404, 0x0C04, 0x1404)
_FIELD = re.compile(r"\{(\w+)(?:![rsa])?(?::[^{}]*)?\}")
_REMARK = re.compile(r"(.*\S) (\([^()]+\))")
_LABELLED = re.compile(r"(\s*)([A-Z]{2,3}\d{3}:? |[a-z]+: +)(.*)")
_ASIDE = r"((?: \(|[,;:.] ).*|)"
# Marks that bring their own space, so that none stands before them.
_FULLWIDTH = ("（", "，", "；", "：", "。")
_DEPTH = 4
_SAMPLE = "量化"
# A template that begins with a field and has fewer letters than this fits too many sentences that it never made.
_LETTERS = 7

_catalogue: Mapping[str, str] = {}
_index: dict[str, list[Any]] | None = None


def language_of(word: str) -> str:
    """The language that a locale's name means: `zh_CN` for `zh`, `zh-CN`, `zh_CN.UTF-8`, `zh-Hans`; else `en`."""
    parts = re.split(r"[_.@-]", word.strip().lower())
    return "zh_CN" if parts[0] == "zh" and not any(p in _TRADITIONAL for p in parts[1:]) else "en"


def chosen(
    asked: str = "",
    environment: Mapping[str, str] = os.environ,
    can_show: Callable[[str], bool] = lambda text: True,
) -> str:
    """The language for this run: what was asked, else QLORA_DOCTOR_LANG, else that of the locale where it can be shown."""
    wish = asked or environment.get("QLORA_DOCTOR_LANG", "")
    if wish:
        return language_of(wish)
    language = _of_locale(environment)
    return language if language == "en" or can_show(_SAMPLE) else "en"


def _of_locale(environment: Mapping[str, str]) -> str:
    set_ = next((environment[n] for n in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(n)), "")
    if set_ and language_of(set_) == "en":
        return "en"
    # GNU's list of wishes counts only where the locale is not the plain C one.
    return language_of(environment.get("LANGUAGE", "").partition(":")[0] or set_ or _of_windows())


def _of_windows() -> str:
    if os.name != "nt":
        return ""
    import ctypes

    number: int = ctypes.windll.kernel32.GetUserDefaultUILanguage()  # type: ignore[attr-defined]
    return "zh" if number & 0x3FF == 0x04 and number not in _TRADITIONAL_IDS else ""


def use(language: str) -> None:
    """Speak this language (one of LANGUAGES) from now on, in this process."""
    global _catalogue, _index
    _index = None
    _catalogue = _read(language) if language != "en" else {}


def speaking() -> bool:
    """Whether another language than English is spoken."""
    return bool(_catalogue)


def _read(language: str) -> Mapping[str, str]:
    """The compiled catalogue (GNU's .mo, little-endian). gettext's own reader takes three times as long."""
    import struct

    path = os.path.join(os.path.dirname(__file__), "locale", language, "LC_MESSAGES", f"{DOMAIN}.mo")
    with open(path, "rb") as file:
        data = file.read()
    _, _, count, ours, theirs = struct.unpack_from("<5I", data)
    sources = struct.unpack_from(f"<{2 * count}I", data, ours)
    targets = struct.unpack_from(f"<{2 * count}I", data, theirs)

    def texts(table: tuple[int, ...]) -> Iterator[str]:
        for length, start in zip(table[::2], table[1::2], strict=True):
            yield data[start : start + length].decode("utf-8")

    found = dict(zip(texts(sources), texts(targets), strict=True))
    found.pop("", None)
    return found


def tr(template: str, **fields: Any) -> str:
    """A constant template in the reader's language, its `{fields}` filled in."""
    text = _catalogue.get(template, template) if _catalogue else template
    return text.format(**fields) if fields else text


def finding_text(finding: Finding) -> str:
    """The message of a finding in the reader's language."""
    if not _catalogue or finding.message not in _catalogue:
        return finding.text
    from qlora_doctor.finding import fill

    return fill(_catalogue[finding.message], {k: _value(v) for k, v in finding.evidence.items()})


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return said(value)
    return [_value(v) for v in value] if isinstance(value, (list, tuple)) else value


def said(text: str) -> str:
    """An English sentence that our code made, in the reader's language; any other text as it is."""
    return _said(text, _DEPTH) if _catalogue else text


def said_lines(text: str) -> str:
    """A text of several lines that our code made, each line of it in the reader's language."""
    return "\n".join(_said_line(line) for line in text.split("\n")) if _catalogue else text


def _said_line(line: str) -> str:
    found = said(line)
    match = _LABELLED.fullmatch(line) if found == line else None
    if match is None:
        return found
    # A check's code, or a label in a column of labels, stands before the sentence.
    label = _catalogue.get(match[2].strip(), match[2])
    return match[1] + label + said(match[3])


def can_show(text: str) -> bool:
    """Whether stdout has these characters. A stream without an encoding of its own (a test's) takes all."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _said(text: str, depth: int) -> str:
    core = text.strip()
    # What spans lines is a diff or a quotation.
    if depth == 0 or not core or "\n" in core or (" " not in core and core not in _catalogue):
        return text
    # A fragment may have been made the start of a sentence.
    for form in (core, core[0].swapcase() + core[1:]):
        found = _catalogue.get(form) or _recognised(form, depth)
        if found is not None:
            break
    else:
        found = _with_remark(core, depth)
    if found is None:
        return text
    start = text.index(core)
    lead = "" if found[:1] in _FULLWIDTH else text[:start]
    return lead + found + text[start + len(core) :]


def _with_remark(text: str, depth: int) -> str | None:
    """A name with a remark of ours behind it: `scipy (not installed)`."""
    match = _REMARK.fullmatch(text)
    remark = _catalogue.get(match[2]) if match else None
    return f"{_said(match[1], depth - 1)}{remark}" if match and remark else None


class _Template:
    """An English template, and what it takes to recognise a sentence made of it."""

    __slots__ = ("_pattern", "names", "pieces", "target", "weight")

    pieces: list[str]
    names: list[str]
    target: str
    weight: int

    def __init__(self, source: str, target: str) -> None:
        parts = _FIELD.split(source)
        self.pieces = [p.replace("{{", "{").replace("}}", "}") for p in parts[::2]]
        self.names = parts[1::2]
        # The fields are text already: a conversion or a format was applied when the sentence was made.
        self.target = _FIELD.sub(r"{\1}", target)
        self.weight = sum(c.isalpha() for p in self.pieces for c in p)
        self._pattern: re.Pattern[str] | None = None

    def fields(self, text: str) -> dict[str, str] | None:
        """The fields that make the template this text."""
        if not (text.startswith(self.pieces[0]) and text.endswith(self.pieces[-1])):
            return None
        if not all(p in text for p in self.pieces):
            return None
        if self._pattern is None:
            last = len(self.names) - 1
            gaps = ["(.*)" if i == last else "(.*?)" for i in range(last + 1)]
            # Of two fields side by side the second is a remark, or nothing.
            gaps = [_ASIDE if i and not self.pieces[i] else gap for i, gap in enumerate(gaps)]
            joined = "".join(re.escape(p) + g for p, g in zip(self.pieces, [*gaps, ""], strict=True))
            self._pattern = re.compile(joined, re.DOTALL)
        match = self._pattern.fullmatch(text)
        return None if match is None else dict(zip(self.names, match.groups(), strict=True))


def _recognised(text: str, depth: int) -> str | None:
    global _index
    if _index is None:
        _index = _indexed(_catalogue)
    first = _first(text)
    for word in (first, "") if first else ("",):
        for template in _templates(_index, word):
            fields = template.fields(text)
            if fields is not None:
                shown: str = template.target.format(**{k: _said(v, depth - 1) for k, v in fields.items()})
                return shown
    return None


def _indexed(catalogue: Mapping[str, str]) -> dict[str, list[Any]]:
    """The messages with fields by the first word of what they begin with; "" for those that begin with a field."""
    index: dict[str, list[Any]] = {"": []}
    for source, target in catalogue.items():
        begins, brace, _ = source.partition("{")
        if brace:
            # A first word that runs into a field is not known as a whole.
            whole = " " in begins.strip() or begins.endswith(" ")
            index.setdefault(_first(begins) if whole else "", []).append((source, target))
    return index


def _templates(index: dict[str, list[Any]], word: str) -> list[_Template]:
    """The templates under a first word, those with the most letters first; made when they are first wanted."""
    found = index.get(word, [])
    if found and isinstance(found[0], tuple):
        made = [_Template(source, target) for source, target in found]
        kept = [t for t in made if t.weight >= (_LETTERS if t.pieces[0] == "" else 3)]
        index[word] = found = sorted(kept, key=lambda t: -t.weight)
    return found


def _first(text: str) -> str:
    return text.split(maxsplit=1)[0] if text.strip() else ""


def translate_command(command: Any) -> None:
    """Put the help of a click command, and click's own words, into the reader's language."""
    if not _catalogue:
        return
    command.help = _paragraphs(command.help or "")
    command.short_help = said(command.short_help) if command.short_help else command.short_help
    for param in command.params:
        if getattr(param, "help", None):
            param.help = said(param.help)
    for name in ("core", "decorators", "exceptions", "formatting", "parser", "types"):
        module = sys.modules.get(f"click.{name}")
        # click asks gettext's global domain, which only the locale can choose, and `--lang` must too.
        if module is not None and hasattr(module, "_"):
            module._ = tr  # type: ignore[attr-defined]
        if module is not None and hasattr(module, "ngettext"):
            module.ngettext = _counted  # type: ignore[attr-defined]


def _counted(one: str, many: str, number: int) -> str:
    return tr(one if number == 1 else many)


def _paragraphs(text: str) -> str:
    return "\n\n".join(said(" ".join(p.split())) for p in text.split("\n\n"))


def asked_for(arguments: Sequence[str], until: Sequence[str] = ("--", "run")) -> tuple[str, list[str]]:
    """`--lang WORD` out of the arguments, wherever it stands, and the rest. What follows a word of `until` is not ours."""
    rest: list[str] = []
    word = ""
    items = list(arguments)
    while items:
        item = items.pop(0)
        if item in until:
            return word, [*rest, item, *items]
        if item == "--lang" and items:
            word = items.pop(0)
        elif item.startswith("--lang="):
            word = item.partition("=")[2]
        else:
            rest.append(item)
    return word, rest
