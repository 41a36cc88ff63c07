"""The catalogue of messages: `python -m qlora_doctor.messages` collects them from the code and compiles the catalogue.

What is collected: every sentence in a string of the rooms below (an f-string becomes a template), the titles of the checks,
the signatures' causes, and the commands' help. It writes locale/zh_CN/LC_MESSAGES/qlora_doctor.po, where a new message
is empty until somebody translates it, and the .mo beside it, which is what runs. Needs Babel (the `dev` extra).
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from babel.messages.catalog import Catalog

HERE = Path(__file__).parent
PO = HERE / "locale" / "zh_CN" / "LC_MESSAGES" / "qlora_doctor.po"
# What never reaches a person: data shapes, the pages' generator, programs of other processes, the reading of code.
SILENT = (
    "docs", "locale", "live/programs", "gather/static", "gather/probe.py", "wire.py", "testing.py", "messages.py", "i18n.py",
    "source.py", "redaction.py", "errors.py", "finding.py", "report/picture.py", "report/sarif.py", "memory/emit.py",
    "repair/edits.py", "compare.py", "bundle",
)  # fmt: skip
# The modules of qlora_core whose sentences are said in Chinese: the commands, a run's progress and result, the load report.
CORE = (
    "cli/", "errors.py", "callbacks.py", "report.py", "verify.py", "train.py", "prepare_run.py", "run_record.py",
    "presets.py", "data/show.py", "chat.py", "merge.py", "guard.py", "gate.py", "load.py", "steps.py", "hardware.py",
)  # fmt: skip
# The words of the tables that findings show as they stand, by the key that holds them.
TABLES = {
    "api.toml": ("advice", "effect", "not_for_a_model"),
    "matrix.toml": ("effect",),
    "cuda.toml": ("note",),
    "install.toml": ("with",),
}
_WORD = re.compile(r"[A-Za-z]{2,}")
_FIELD = re.compile(r"\{[^{}]*\}")
# A command to type, or a line of a program, is the same in every language.
_CODE = re.compile(
    r"(import \S+\Z|from \S+ import \S+\Z|os\.environ\[)|(pip|nvidia-smi|amd-smi|xpu-smi|export|%load_ext|hf|ssh|sudo|git|conda|uv|docker|eval|qlora-doctor|qlora-core) [^\s{]|[\w.]+\(.*\)\Z|[<#.:]|</|default-src|(tuple|Mapping)\[|.* \| None\Z|\W*\Z",
    re.DOTALL,
)
# Calls whose strings are patterns, keys or code, never a sentence for a reader.
_CODE_CALLS = frozenset(
    [
        "compile",
        "search",
        "match",
        "sub",
        "split",
        "fullmatch",
        "finditer",
        "findall",
        "get",
        "has",
        "startswith",
        "endswith",
        "Path",
        "Specifier",
        "SpecifierSet",
        "Requirement",
        "find",
        "join",
        "encode",
        "group",
        "check",
        "Version",
        "RegistryError",
        "Argument",
        "import_module",
    ]
)
# What click itself says in help and errors.
CLICK = (
    "Usage:", "Options", "Commands", "Error: {message}", "Show this message and exit.", "Show the version and exit.",
    "Try '{command} {option}' for help.", "No such option: {name}", "Missing argument", "Missing option",
    "Invalid value: {message}", "Invalid value for {param_hint}: {message}", "[OPTIONS]", "required", "default: {default}",
    "No such option {name!r}.", "Did you mean {possibility}?", "(Did you mean one of: {possibilities}?)", "Missing command.",
    "Option {name!r} requires an argument.", "Option {name!r} requires {nargs} arguments.", "{value!r} is not {choice}.",
    "{value!r} is not one of {choices}.", "{value!r} is not a valid {number_type}.", "{value} is not in the range {range}.",
    "{name} {filename!r} does not exist.", "{name} {filename!r} is a file.", "{name} {filename!r} is a directory.",
    "{name} {filename!r} is not readable.", "Option {name!r} does not take a value.",
    "Choose from:\n\t{choices}", "Aborted!", "Positional arguments", "Got unexpected extra argument ({args})",
    "Got unexpected extra arguments ({args})",
)  # fmt: skip

# Single words that a report shows, which look like any other string in the code.
WORDS = (
    "error", "warning", "info", "safe", "unsafe", "display-only", "environment", "crashed", "unknown", "ok", "found", "skipped",
    "outcomes", "facts", "none", "next:", "Next:", "files:", "a log", "a model", "a notebook", "a checkpoint", "probably: ", "possible: ", "then, ", "expected", "fits", "tight", "yes", "no",
    "rows:", "module:", "dtype:", "peak:", "cause:", "remedy:", "kept:", "[stopped]", "Examples:", "not given", "the load",
    "evidence", "Evidence", "evidence | value", "part | takes", "{severity}: {message}", "{expected} ({low} to {high})", "Memory of {model}",
)  # fmt: skip


def messages() -> dict[str, set[str]]:
    """Every message by the modules that say it."""
    from qlora_doctor.logs.signatures import installed_signatures
    from qlora_doctor.registry import installed_checks

    found: dict[str, set[str]] = {m: {"click"} for m in CLICK} | {m: {"words"} for m in WORDS}

    def add(message: str, where: str) -> None:
        found.setdefault(message, set()).add(where)

    ours = [check for check in installed_checks().checks if check.distribution == "qlora-doctor"]
    checks = Path(ours[0].function.__code__.co_filename).parent
    for path in sorted(checks.glob("*.py")):
        for text in sentences(ast.parse(path.read_text(encoding="utf-8"))):
            add(text, f"checks/{path.name}")
    for check in ours:
        add(check.title, f"title of {check.code}")
    for path in sorted(HERE.rglob("*.py")):
        where = path.relative_to(HERE).as_posix()
        if not where.startswith(SILENT):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for text in (*sentences(tree), *(help_of(tree) if where.startswith("cli/") else ())):
                add(text, where)
    core = HERE.parent / "qlora_core"
    for path in sorted(core.rglob("*.py")):
        where = path.relative_to(core).as_posix()
        if where.startswith(CORE):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for text in (*sentences(tree), *(help_of(tree) if where.startswith("cli/") else ())):
                add(text, f"qlora_core/{where}")
    for path in sorted((*checks.glob("*.toml"), *(HERE / "tables").glob("*.toml"))):
        for text in words_of_table(tomllib.loads(path.read_text(encoding="utf-8")), TABLES.get(path.name, ())):
            add(text, path.name)
    for signature in installed_signatures().all:
        for cause in signature.causes if signature.distribution == "qlora-doctor" else ():
            add(cause.says, f"signature {signature.id}")
            add(cause.fix, f"signature {signature.id}")
    return found


def words_of_table(data: Any, keys: Sequence[str], key: str = "") -> Iterator[str]:
    """The sentences under these keys of a table; under `not_for_a_model`, those of its own keys too."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from words_of_table(value, keys, key if key == "not_for_a_model" else name)
    elif isinstance(data, list):
        for value in data:
            yield from words_of_table(value, keys, key)
    elif isinstance(data, str) and key in keys and " " in data:
        yield data


def sentences(tree: ast.AST) -> Iterator[str]:
    """The strings of a module that read like a sentence, or a part of one, f-strings as templates."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.Call) and _called(node) in _CODE_CALLS:
            skipped |= {id(a) for a in node.args if isinstance(a, (ast.Constant, ast.JoinedStr))}
        if isinstance(node, ast.JoinedStr):
            # The pieces belong to the template; a string inside a field ("{a or 'b c'}") is one of its own.
            skipped |= {id(v) for v in node.values if isinstance(v, ast.Constant)}
        if isinstance(node, ast.Dict):
            skipped |= {id(k) for k in node.keys}
        text = template_of(node)
        if text and id(node) not in skipped and _reads(text.strip()):
            yield text.strip()


def help_of(tree: ast.AST) -> Iterator[str]:
    """The paragraphs of the commands' docstrings, which click shows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.decorator_list and node.name in ("command", "cli", "main"):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                yield " ".join(paragraph.split())


def template_of(node: ast.AST) -> str:
    """A string constant as it is, an f-string with its expressions as named fields; "" for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    out: list[str] = []
    names: list[str] = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            inner = part.value
            name = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else "a1"
            stem, number = name.rstrip("0123456789"), 1
            while name in names:
                number += 1
                name = f"{stem}{number}"
            names.append(name)
            out.append(f"{{{name}}}")
        elif isinstance(part, ast.Constant):
            out.append(str(part.value).replace("{", "{{").replace("}", "}}"))
    return "".join(out)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _reads(text: str) -> bool:
    bare = _FIELD.sub("", text)
    # What spans lines is a file or a page that the code writes, not a sentence.
    if _CODE.match(text) or "\n" in text:
        return False
    return len(_WORD.findall(bare)) >= (1 if "{" in text else 2) and " " in text.strip() and len(bare.strip()) >= 3


def catalogue() -> Catalog:
    """The catalogue as it lies in the repository."""
    from babel.messages.pofile import read_po

    with PO.open("rb") as file:
        return read_po(file, locale="zh_CN", domain="qlora_doctor")


def updated(old: Catalog, wanted: dict[str, set[str]]) -> Catalog:
    """A catalogue of the wanted messages, with the translations that the old one has."""
    from babel.messages.catalog import Catalog

    new = Catalog(
        locale="zh_CN", domain="qlora_doctor", project="qlora-doctor", fuzzy=False, creation_date=old.creation_date,
        revision_date=old.revision_date,
    )  # fmt: skip
    for text, where in sorted(wanted.items(), key=lambda item: (sorted(item[1]), item[0])):
        known = old.get(text)
        new.add(text, known.string if known else "", auto_comments=[", ".join(sorted(where))])
    return new


def compiled(catalog: Catalog) -> bytes:
    """The bytes of the .mo file."""
    import io

    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo

    out = io.BytesIO()
    # What is the same in both languages needs no entry.
    spoken = Catalog(locale="zh_CN", creation_date=catalog.creation_date, revision_date=catalog.revision_date)
    for message in catalog:
        if message.id and message.string and message.string != message.id:
            spoken.add(message.id, message.string)
    write_mo(out, spoken)
    return out.getvalue()


def main() -> int:
    """Writes both files; says what is not translated, and returns 1 where there is such a message."""
    import io

    from babel.messages.pofile import write_po

    new = updated(catalogue(), messages())
    out = io.BytesIO()
    write_po(out, new, width=0, omit_header=False, sort_output=False)
    PO.write_bytes(out.getvalue())
    PO.with_suffix(".mo").write_bytes(compiled(new))
    missing = [str(m.id) for m in new if m.id and not m.string]
    for text in missing:
        print(text)
    print(f"{len(missing)} of {len(new)} messages are not translated", file=sys.stderr)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
