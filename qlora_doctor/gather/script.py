"""Scripts and notebooks as facts and requests, read with `ast`: nothing of them is imported or run."""

from __future__ import annotations

import ast
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_doctor.gather import requests
from qlora_doctor.gather.source_text import Text, Unreadable, decode, read_bytes
from qlora_doctor.gather.static import names, scan, walk
from qlora_doctor.gather.static.guards import guards, names_of_versions, says_version
from qlora_doctor.gather.static.machine import Machine, Written
from qlora_doctor.gather.static.resolve import Resolver, signature
from qlora_doctor.gather.static.sites import Part, Places
from qlora_doctor.gather.static.tokens import handler_with, last_parameter, read_tokens
from qlora_doctor.gather.static.values import Choice, ClassValue, FunctionValue, Made, Unknown, V, each
from qlora_doctor.gather.static.wholes import wholes
from qlora_doctor.request import Requests
from qlora_doctor.source import (
    Assignment,
    Call,
    ClassDefinition,
    Dotted,
    EnvironWrite,
    Fallback,
    Import,
    Method,
    Script,
    Site,
    Unresolved,
    Value,
)

_IGNORE = re.compile(r"#\s*qlora-doctor:\s*ignore(?:\s*\[([^\]]*)\])?")
_LOCAL_FILES = 20


def read_script(path: str | Path, data: bytes | None = None) -> tuple[Script, Requests]:
    """What a .py file or a notebook says and asks for. `data` stands for the bytes on disk, where they are given.

    A file that cannot be read as Python gives a Script with `problem` (and `problem_line`) and no requests. In a
    notebook one cell that cannot be read sets `problem` too, but the other cells are still read.
    """
    path = Path(path)
    if path.suffix == ".ipynb":
        from qlora_doctor.gather.notebook import read_notebook

        return read_notebook(path, data)
    try:
        data = read_bytes(path) if data is None else data
        text = decode(data)
    except Unreadable as error:
        return Script(str(path), problem=str(error)), Requests()
    sha256 = _sha256(data)
    failed = Script(str(path), sha256=sha256, encoding=text.encoding)
    tree, problem, line = parse(text.text)
    if tree is None and _COMMAND.search(text.text):
        from qlora_doctor.gather.notebook import parse_export

        tree = parse_export(text.text)
    if tree is None:
        return _with_problem(failed, problem, line), Requests()
    places = Places(str(path), sha256, [Part(1, text)])
    ignores = {str(line): codes for line, codes in ignores_in(text.text).items()}
    try:
        script, found = read_tree(tree, places, text.text, path.parent, ignores=ignores)
    except RecursionError:
        return _with_problem(failed, "it is nested too deeply to be read", 0), Requests()
    except Exception as error:
        if os.environ.get("QLORA_DOCTOR_DEBUG"):
            raise
        return _with_problem(failed, own_fault(error), 0), Requests()
    return _replace(script, encoding=text.encoding, insertion=_insertion(tree, text)), found


def own_fault(error: Exception) -> str:
    """What to say where the reader itself fails on a script: one script must not end the run for the others."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"qlora-doctor could not follow it ({type(error).__name__} in {place}); please report this"


def _with_problem(script: Script, problem: str, line: int) -> Script:
    return _replace(script, problem=problem, problem_line=line)


def _replace(script: Script, **changes: Any) -> Script:
    import dataclasses

    return dataclasses.replace(script, **changes)


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def parse(source: str) -> tuple[ast.Module | None, str, int]:
    """The tree of a source text, or why there is none and the line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source), "", 0
        except SyntaxError as error:
            return None, _syntax_problem(error, source), error.lineno or 0
        except (RecursionError, MemoryError):
            return None, "it is nested too deeply to be read", 0
        except ValueError as error:
            return None, f"it is not Python source: {error}", 0


# A notebook's command, as Colab leaves it in a notebook that is saved as .py.
_COMMAND = re.compile(r"^\s*[!%]\s*[a-z]", re.MULTILINE)
_PYTHON_2 = re.compile(
    r"^\s*(print\s+[^\s(=.\[]|exec\s+['\"]|raise\s+\w+\s*,|except\s+[\w.]+\s*,\s*\w+\s*:)|\bprint\s+['\"]|<>|\bur['\"]"
)


def _syntax_problem(error: SyntaxError, source: str) -> str:
    lines = source.split("\n")
    line = lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else ""
    if ("print" in (error.msg or "") and "Missing parentheses" in error.msg) or _PYTHON_2.search(line):
        return "it is written for Python 2; the stack needs Python 3"
    return f"it is not valid Python {sys.version_info[0]}.{sys.version_info[1]}: {error.msg}"


def read_tree(
    tree: ast.Module,
    places: Places,
    source: str,
    folder: Path | None,
    *,
    kind: str = "python",
    ignores: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Script, Requests]:
    """The Script and the Requests of a parsed module."""
    told = names_of_versions(tree.body) if says_version(source) else frozenset()
    outline = scan.outline(tree.body, told)
    machine = walk.walk(tree.body, _local_imports(outline, folder), plain=outline.plain, told=told)
    order = _order(machine, outline)
    places = Places(places.path, places.sha256, places.parts, wholes(tree.body, source))
    context = requests.Context(places, order, guards(tree.body, told))
    found_loads = requests.loads(context, machine.records)
    found_trains = requests.trains(context, machine.records)
    found_calls = requests.calls(context, machine.records)
    imports = tuple(
        Import(
            i.module,
            i.name,
            i.alias,
            i.nested,
            i.guarded,
            outline.used[i.alias],
            _at(order, i.node),
            _site(places, i.node),
        )
        for i in outline.imports
    )
    script = Script(
        places.path,
        kind=kind,
        sha256=places.sha256,
        imports=imports,
        environ=_environ(machine, places, order),
        calls=tuple(found_calls),
        assignments=_assignments(machine, outline, places, order),
        classes=_classes(machine, places),
        fallbacks=_fallbacks(outline, found_calls, places),
        ignores=ignores or {},
        tokens=read_tokens(tree, places.node),
    )
    script = _replace(script, distributed=_distributed(script, machine, outline, source))
    tops = sorted({i.module.partition(".")[0] for i in imports if not i.module.startswith(".")})
    return script, Requests(tuple(found_loads), tuple(found_trains), tuple(tops))


def _order(machine: Machine, outline: scan.Outline) -> dict[tuple[int, int], int]:
    nodes: list[ast.AST] = [r.node for r in machine.records]
    nodes += [w.node for w in (*machine.environ, *machine.assignments)]
    nodes += [i.node for i in outline.imports] + [mask.node for mask in outline.masks]
    places = sorted({(n.lineno, n.col_offset) for n in nodes})  # type: ignore[attr-defined]
    return {place: index for index, place in enumerate(places, 1)}


def _at(order: Mapping[tuple[int, int], int], node: Any) -> int:
    return order.get((node.lineno, node.col_offset), 0)


def _site(places: Places, node: ast.AST) -> Site:
    return places.node(node)


def _local_imports(outline: scan.Outline, folder: Path | None) -> dict[str, tuple[str, ...]]:
    """What the modules beside a script import at their top, one level deep."""
    found: dict[str, tuple[str, ...]] = {}
    if folder is None:
        return found
    for one in outline.imports:
        module = one.module.lstrip(".") or one.name
        top = module.partition(".")[0]
        if not top or top in found or len(found) >= _LOCAL_FILES:
            continue
        for candidate in (
            folder / f"{module.replace('.', '/')}.py",
            folder / f"{top}.py",
            folder / top / "__init__.py",
        ):
            if candidate.is_file():
                found[top] = _top_imports(candidate)
                break
        else:
            if (folder / top).is_dir():
                found[top] = ()
    return found


def _top_imports(path: Path) -> tuple[str, ...]:
    try:
        tree, _, _ = parse(decode(read_bytes(path)).text)
    except Unreadable:
        return ()
    if tree is None:
        return ()
    tops: dict[str, None] = {}
    for statement in tree.body:
        inner: Iterable[ast.stmt] = statement.body if isinstance(statement, (ast.Try, ast.If)) else [statement]
        for one in inner:
            if isinstance(one, ast.Import):
                tops.update({a.name.partition(".")[0]: None for a in one.names})
            elif isinstance(one, ast.ImportFrom) and not one.level and one.module:
                tops[one.module.partition(".")[0]] = None
    return tuple(tops)


def _environ(machine: Machine, places: Places, order: Mapping[tuple[int, int], int]) -> tuple[EnvironWrite, ...]:
    found: dict[object, EnvironWrite] = {}
    for write in machine.environ:
        resolver = Resolver(places.node, order, {})
        value = resolver.value(write.value)
        key = (_at(order, write.node), write.target, signature(value))
        found.setdefault(
            key,
            EnvironWrite(
                write.target, value, write.default_only, _at(order, write.node), write.nested, write.imported,
                _site(places, write.node),
            ),
        )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda w: w.order))


_CARED = frozenset(
    {
        "pad_token", "pad_token_id", "eos_token", "eos_token_id", "bos_token", "unk_token", "padding_side",
        "truncation_side", "model_max_length", "use_cache", "pretraining_tp", "torch_dtype", "dtype", "chat_template",
        "is_parallelizable", "model_parallel", "requires_grad", "quantization_config", "data", "weight",
    }
)  # fmt: skip


def _assignments(
    machine: Machine, outline: scan.Outline, places: Places, order: Mapping[tuple[int, int], int]
) -> tuple[Assignment, ...]:
    found: dict[object, Assignment] = {}
    for write in machine.assignments:
        name = write.target.rpartition(".")[2]
        if not (name in _CARED or (write.origin and names.in_stack(write.origin))):
            continue
        value = _assigned(write, Resolver(places.node, order, {}))
        made = Assignment(
            write.target, value, write.origin, _at(order, write.node), write.nested, _site(places, write.node)
        )
        old = found.get(made.order)
        if old is None or (not old.origin and made.origin):
            found[made.order] = made
    for mask in outline.masks:
        at = _at(order, mask.node)
        found[("mask", at)] = Assignment(mask.target, -100, mask.origin, at, True, _site(places, mask.node))
    return tuple(sorted(found.values(), key=lambda a: a.order))


def _assigned(write: Written, resolver: Resolver) -> Value:
    """The value of an assignment; an attribute of an object as it is written, `tokenizer.eos_token`."""
    value = resolver.value(write.value)
    if not isinstance(value, Unresolved) or "." not in write.value_text:
        return value
    leaves = [leaf for leaf in each(write.value) if isinstance(leaf, Unknown)]
    given = any("command line" in u.reason or "environment" in u.reason or "file" in u.reason for u in leaves)
    return value if given or not leaves else Dotted(write.value_text)


def _classes(machine: Machine, places: Places) -> tuple[ClassDefinition, ...]:
    found: dict[int, ClassDefinition] = {}
    for cls in machine.classes:
        methods = tuple(
            _method(f, places)
            for f in cls.attrs.values()
            for f in each(f)
            if isinstance(f, FunctionValue) and f.owner is cls
        )
        found[cls.node.lineno] = ClassDefinition(
            cls.name, tuple(_base(b) for b in cls.bases), methods, _head(cls.node, places), tuple(cls.fields)
        )
    return tuple(found[line] for line in sorted(found))


def _base(base: V) -> str:
    return base.name.removeprefix("builtins.") if isinstance(base, (Dotted, ClassValue)) else "?"


def _head(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, places: Places) -> Site:
    """The site of a definition without its body, so that an ignore comment counts on its own line only."""
    whole = places.node(node)
    import dataclasses

    last = node.body[0].lineno - 1
    return dataclasses.replace(whole, end_line=whole.line + max(last - node.lineno, 0))


def _method(function: FunctionValue, places: Places) -> Method:
    node = function.node
    args = node.args
    parameters = [a.arg for a in (*args.posonlyargs, *args.args)]
    if args.vararg is not None:
        parameters.append("*")
    parameters += [a.arg for a in args.kwonlyargs]
    if args.kwarg is not None:
        parameters.append("**")
    assert not isinstance(node, ast.Lambda)
    last = last_parameter(node)
    spans = {} if last is None else {"parameters": places.range(last)}
    return Method(function.name, tuple(parameters), _calls_super(node), _replace_spans(_head(node, places), spans))


def _replace_spans(site: Site, spans: Mapping[str, tuple[int, int]]) -> Site:
    import dataclasses

    return dataclasses.replace(site, spans=spans)


def _calls_super(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and one.attr == node.name and isinstance(one.value, ast.Call):
            func = one.value.func
            if isinstance(func, ast.Name) and func.id == "super":
                return True
    return False


def _fallbacks(outline: scan.Outline, calls: Sequence[Call], places: Places) -> tuple[Fallback, ...]:
    by_start: dict[tuple[int, int | None], Call] = {}
    for call in calls:
        if call.site is not None:
            by_start.setdefault((call.site.start, call.site.cell), call)
    found = []
    for first, second, node in outline.fallbacks:
        sites = [places.node(n) for n in (first, second)]
        pair = [by_start.get((s.start, s.cell)) for s in sites]
        if pair[0] is not None and pair[1] is not None and pair[0].function != pair[1].function:
            span = handler_with(node, second)
            spans = {} if span is None else {"handler": places.range(span)}
            found.append(Fallback(pair[0], pair[1], _replace_spans(places.node(node), spans)))
    return tuple(found)


def _distributed(script: Script, machine: Machine, outline: scan.Outline, source: str) -> str:
    """Why the script is one that several processes run; "" where nothing says so."""
    for call in script.calls:
        if call.function in scan.LAUNCHED:
            return f"calls {call.function}"
        if names.is_settings(call.function):
            for name in ("deepspeed", "fsdp", "ddp_find_unused_parameters", "ddp_backend", "local_rank"):
                if call.seen(name) not in (None, "", -1, False) and _outright(call, name):
                    return f"passes {name} to the training arguments"
    # A notebook may launch a script; nobody launches a notebook.
    words = "" if script.kind == "notebook" else scan.launch_words(source, Path(script.path).name)
    if words:
        return f"says {words!r}"
    if _told_apart(machine):
        return ""
    if outline.ranks:
        return f"reads {outline.ranks}"
    if outline.local_rank_argument:
        return "takes --local_rank"
    return ""


def _outright(call: Call, name: str) -> bool:
    value = call.seen(name)
    if name == "ddp_find_unused_parameters":
        return False
    return value is not None


def _told_apart(machine: Machine) -> bool:
    """Whether the script itself chooses another device map when it runs in several processes."""
    for record in machine.records:
        for key in ("device_map", "**"):
            value = record.arguments.get(key)
            atoms = _atoms(value)
            if any("RANK" in a.yes or "WORLD_SIZE" in a.yes or "ddp" in a.yes or "world_size" in a.yes for a in atoms):
                return True
            if isinstance(getattr(value, "value", None), Choice) and any(
                isinstance(a.subject, Unknown) and "environment" in a.subject.reason for a in atoms
            ):
                return True
    return False


def _atoms(value: V) -> list[Any]:
    value = getattr(value, "value", value)
    if isinstance(value, Choice):
        return [value.atom, *_atoms(value.yes), *_atoms(value.no)]
    return []


def ignores_in(source: str) -> dict[int, tuple[str, ...]]:
    """The `# qlora-doctor: ignore[...]` comments of a source text, by line."""
    if "qlora-doctor" not in source:
        return {}
    import io
    import tokenize

    found: dict[int, tuple[str, ...]] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT:
                continue
            match = _IGNORE.search(token.string)
            if match:
                named = tuple(word.strip() for word in (match.group(1) or "").split(",") if word.strip())
                found[token.start[0]] = named if match.group(1) is not None else ("*",)
    except (tokenize.TokenError, SyntaxError):
        return found
    return found


def _insertion(tree: ast.Module, text: Text) -> int:
    """Where an import can be put first: after the docstring and the `from __future__` imports."""
    line = 0
    for index, statement in enumerate(tree.body):
        docstring = index == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        if not future and not (docstring and isinstance(statement.value.value, str)):  # type: ignore[attr-defined]
            if line == 0:
                decorators = getattr(statement, "decorator_list", [])
                return text.line_start(min([statement.lineno, *(d.lineno for d in decorators)]))
            break
        line = statement.end_lineno or statement.lineno
    return text.line_start(line + 1) if line else text.size


__all__ = ["Made", "ignores_in", "parse", "read_script", "read_tree"]
