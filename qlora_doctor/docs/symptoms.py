"""The pages of the symptoms, made from the signatures: one a message, and the data of the box that a message is pasted in."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from qlora_doctor.logs.signatures import Cause, Signature

if sys.version_info >= (3, 11):
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:  # the same two modules by their old names
    import sre_constants as sre
    import sre_parse as parser

GAP = "…"
MOST = 24
SHOWN = 12
CATEGORIES = {
    "versions": "Versions",
    "install": "Installing",
    "python_os": "Python and the system",
    "hub_network": "The Hub and the network",
    "hub_auth": "Access to the Hub",
    "disk": "Disk",
    "remote_code": "Code of the model's repository",
    "checkpoint_format": "Model files",
    "processor_tokenizer": "Processor and tokenizer",
    "chat_template_data": "Data and chat templates",
    "dtype": "Dtypes",
    "quantised_ops": "4-bit and 8-bit arithmetic",
    "cuda_driver": "Driver and CUDA",
    "gpu_arch": "GPU architecture",
    "oom_gpu": "GPU memory",
    "oom_ram": "Host memory",
    "peft_targets": "Adapters",
    "training_numerics": "Loss and gradients",
    "distributed": "Several GPUs",
    "merge_export": "Merging and export",
    "other": "Other",
}
# Names that keep their small letter at the beginning of a sentence.
_NAMES: tuple[str, ...] = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "huggingface",
    "numpy",
    "peft",
    "pip",
    "pyarrow",
)
_NAMES += ("sentencepiece", "tokenizers", "torch", "torchvision", "transformers", "triton", "trl", "xformers")
_BOX = """\
<div id="symptom-finder">
<textarea id="symptom-text" rows="5" aria-label="An error message" placeholder="RuntimeError: ..."></textarea>
<div id="symptom-found" aria-live="polite"></div>
</div>"""
_KINDS = {
    "error": "",
    "weak": "Other programs print this too; it counts where nothing stronger is in the log.",
    "effect": "This is what a failure leaves behind, said by whoever saw it end.",
    "benign": "This looks worse than it is: nothing needs to be done.",
}


def readings(pattern: str) -> tuple[str, ...]:
    """What the messages that a pattern matches look like, at most MOST of them; GAP stands for what varies."""
    found = (re.sub(rf"\s*{GAP}(?:\s*{GAP})*", f" {GAP}", text).strip() for text in _spelled(parser.parse(pattern)))
    return tuple(dict.fromkeys(text for text in found if text.strip(GAP + " ")))


def _spelled(items: Iterable[Any]) -> list[str]:
    texts = [""]
    for operator, argument in items:
        texts = [a + b for a, b in product(texts, _part(operator, argument))][:MOST]
    return texts


def _part(operator: Any, argument: Any) -> Sequence[str]:
    if operator is sre.LITERAL:
        return [chr(argument)]
    if operator is sre.SUBPATTERN:
        return _spelled(argument[-1])
    if operator is sre.BRANCH:
        return [text for branch in argument[1] for text in _spelled(branch)][:MOST]
    if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, what = argument
        inside = _spelled(what)
        if most == 1 and least == 0 and not any(c.isalnum() for text in inside for c in text):
            return [""]
        if most == 1 or least > 0:
            return [text * max(1, least) for text in inside]
        return [GAP if any(GAP in text or text.isalnum() for text in inside) else inside[0]]
    if operator is sre.IN:
        return [_one_of(argument)]
    return [""] if operator in (sre.AT, sre.ASSERT, sre.ASSERT_NOT) else [GAP]


def _one_of(choices: Sequence[Any]) -> str:
    """One character of a set: the first that is written out, else what varies."""
    letters = [chr(value) for operator, value in choices if operator is sre.LITERAL]
    if any(operator is sre.NEGATE for operator, _ in choices) or not letters:
        spaces = any(operator is sre.CATEGORY and value is sre.CATEGORY_SPACE for operator, value in choices)
        return " " if spaces and len(choices) == 1 else GAP
    return letters[0]


def messages(signature: Signature) -> tuple[str, ...]:
    """The messages of a signature as a person meets them, the shortest spellings of each pattern first."""
    return tuple(dict.fromkeys(text for pattern in signature.patterns for text in readings(pattern)))


def symptom_pages(signatures: Sequence[Signature]) -> Mapping[str, str]:
    """Every generated page and file by its path under docs/."""
    return {
        "symptoms.md": index(signatures),
        "symptoms/patterns.js": data(signatures),
        **{f"symptoms/{s.id}.md": page(s) for s in signatures},
    }


def title(signature: Signature) -> str:
    """The signature's id as words."""
    first, _, rest = signature.id.partition("-")
    return _capital(f"{'bitsandbytes' if first == 'bnb' else first} {rest}".replace("-", " ").strip())


def page(signature: Signature) -> str:
    """The page of one symptom, in Markdown."""
    shown = messages(signature)
    rest = len(shown) - SHOWN
    lines = [f"# {title(signature)}", ""]
    if kind := _KINDS[signature.kind]:
        lines += [kind, ""]
    lines += ["```text", *shown[:SHOWN], *([f"({rest} more spellings)"] if rest > 0 else []), "```", ""]
    one = len(signature.causes) == 1
    place = CATEGORIES.get(signature.category, signature.category)
    versions = f"Versions: {_text(signature.versions)}. " if signature.versions else ""
    lines += ["## The cause" if one else "## The causes, the likeliest first", ""]
    for number, cause in enumerate(signature.causes, 1):
        lines += _cause(cause, "" if one else f"{number}. ")
    lines += [
        "## Which it is on your machine",
        "",
        "`qlora-doctor diagnose LOG` reads the whole log and the installed packages, and rules out what they exclude.",
        "",
        f"*`{signature.id}`, in {place}. {versions}Source: {_text(signature.source)}.*",
    ]
    return "\n".join(lines) + "\n"


def _cause(cause: Cause, number: str) -> list[str]:
    pad = "    " if number else ""
    lines = [f"{number}**{_text(_sentence(cause.says))}**", "", f"{pad}{_text(cause.fix)}", ""]
    conditions = [f"when `{cause.when}`"] if cause.when else []
    conditions += [f"not when `{cause.unless}`"] if cause.unless else []
    ends = f" ({'; '.join(conditions)})" if conditions else ""
    return [*lines, f"{pad}`{cause.id}`{ends}", ""]


def _sentence(text: str) -> str:
    return _capital(text) + ("" if text.endswith((".", "!", "?")) else ".")


def _capital(text: str) -> str:
    """A text that begins with a capital, unless it begins with a name that has none."""
    first = text.split()[0]
    return text if first in _NAMES or not first.isalpha() else text[0].upper() + text[1:]


def _text(text: str) -> str:
    """Plain text as Markdown that shows it as it is; what stands in backticks stays code."""
    parts = text.split("`")
    return "`".join(p if i % 2 else re.sub(r"([\\*_<>\[\]#~|])", r"\\\1", p) for i, p in enumerate(parts))


def index(signatures: Sequence[Signature]) -> str:
    """The list of all symptoms by category, under the box that a message is pasted in."""
    lines = [
        "# Symptoms",
        "",
        "Made from the signatures by `make docs`. Do not edit.",
        "",
        "Paste a message, or the last lines of a log. Nothing leaves this page.",
        "",
        _BOX,
        "",
        f"The doctor knows {len(signatures)} messages with {sum(len(s.causes) for s in signatures)} causes.",
        'On the command line: `qlora-doctor diagnose LOG`, or `qlora-doctor explain "MESSAGE"`.',
    ]
    order = dict.fromkeys([*CATEGORIES, *(s.category for s in signatures)])
    for category in order:
        rows = sorted((s for s in signatures if s.category == category), key=lambda s: s.id)
        if rows:
            lines += [
                "",
                f"## {CATEGORIES.get(category, category)}",
                "",
                "| symptom | the likeliest cause |",
                "|---|---|",
            ]
            lines += [f"| [{title(s)}](symptoms/{s.id}.md) | {_text(_sentence(s.causes[0].says))} |" for s in rows]
    return "\n".join(lines) + "\n"


def data(signatures: Sequence[Signature]) -> str:
    """The patterns as JavaScript, for the box on the page of symptoms."""
    rows = [
        {
            "id": s.id,
            "title": title(s),
            "says": _sentence(s.causes[0].says),
            "weak": s.kind in ("weak", "effect"),
            "patterns": [_javascript(p) for p in s.patterns],
        }
        for s in signatures
    ]
    body = ",\n".join(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    return f"// Made from the signatures by `make docs`. Do not edit.\nwindow.QLORA_SYMPTOMS = [\n{body}\n];\n"


def _javascript(pattern: str) -> list[str]:
    """A pattern and its flags as JavaScript writes them."""
    flags = "i" if pattern.startswith("(?i)") else ""
    return [pattern.removeprefix("(?i)").replace(r"\Z", "$").replace(r"\A", "^").replace("(?P<", "(?<"), flags]
