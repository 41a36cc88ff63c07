"""Finding a definition in the source of a package, without importing it and without parsing what is not asked for.

The files of transformers have up to 5,000 lines; cutting out one class or function before `ast` reads it is what makes
a cold reading take tenths of a second. Where the cut piece does not parse, the whole file is parsed.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class CannotTell(Exception):
    """Why the source does not tell whether a name exists, or what it takes."""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file. `name` is its dotted path: `transformers.utils` for `transformers/utils/__init__.py`."""

    name: str
    path: str
    text: str

    @property
    def package(self) -> str:
        """What a relative import starts from."""
        return self.name if os.path.basename(self.path) == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Imported:
    """`from module import name as alias`; `name` is "" for `import module as alias`, `*` for all."""

    module: str
    name: str
    alias: str


@dataclass
class Sources:
    """The files of some packages, each read once. `stamps` has size and modification time of every file that was read."""

    roots: dict[str, str]
    modules: dict[str, Module | None] = field(default_factory=dict)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    imported: dict[str, tuple[Imported, ...]] = field(default_factory=dict)

    def read(self, path: str) -> str | None:
        """The text of a file; None where it cannot be read."""
        try:
            with open(path, "rb") as file:
                info = os.fstat(file.fileno())
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return None
        self.stamps[path] = (info.st_size, info.st_mtime_ns)
        return text

    def module(self, name: str) -> Module | None:
        """The module of a dotted name, None where there is no such file (or none of these packages)."""
        if name not in self.modules:
            self.modules[name] = self._find(name)
        return self.modules[name]

    def _find(self, name: str) -> Module | None:
        package, _, rest = name.partition(".")
        root = self.roots.get(package)
        if root is None:
            return None
        base = os.path.join(root, *rest.split(".")) if rest else root
        for path in (os.path.join(base, "__init__.py"), base + ".py") if os.path.isdir(base) else (base + ".py", base):
            if path.endswith(".py") and os.path.isfile(path):
                text = self.read(path)
                if text is not None:
                    return Module(name, path, text)
        return None

    def place(self, module: Module, line: int) -> str:
        """`package/file.py:line`, the same on every machine."""
        package = module.name.partition(".")[0]
        inside = os.path.relpath(module.path, os.path.dirname(self.roots[package]))
        return f"{inside.replace(os.sep, '/')}:{line}"

    def imports(self, module: Module) -> tuple[Imported, ...]:
        """What a module imports by name, also under `if TYPE_CHECKING` and in `try`; names first, stars last."""
        if module.name not in self.imported:
            found = list(_imports(module))
            found.sort(key=lambda i: i.name == "*")
            self.imported[module.name] = tuple(found)
        return self.imported[module.name]


_FROM = re.compile(
    r"^[ \t]*from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\((?:[^()#]|#[^\n]*)*\)|(?:[^\n(\\]|\\\n)+)", re.MULTILINE
)
_PLAIN = re.compile(r"^[ \t]*import[ \t]+([\w.]+)(?:[ \t]+as[ \t]+(\w+))?[ \t]*(?:#[^\n]*)?$", re.MULTILINE)
_COMMENT = re.compile(r"#[^\n]*")


def _imports(module: Module) -> Iterator[Imported]:
    for match in _FROM.finditer(module.text):
        source = absolute(module, match[1])
        for item in _COMMENT.sub("", match[2]).replace("\\\n", " ").strip("() \n").split(","):
            words = item.split()
            if words:
                yield Imported(source, words[0], words[-1])
    for match in _PLAIN.finditer(module.text):
        top = match[1].partition(".")[0]
        yield Imported(match[1], "", match[2]) if match[2] else Imported(top, "", top)


def absolute(module: Module, name: str) -> str:
    """The absolute name of what `from NAME import` means in `module`."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parts = module.package.split(".")
    base = parts[: len(parts) - (dots - 1)]
    return ".".join([*base, name[dots:]] if name[dots:] else base)


# ---- pieces of a file


def pieces(text: str, start: str) -> Iterator[tuple[int, str]]:
    """The top-level statements that begin with the pattern `start`, decorators included, with their first line number."""
    for match in re.finditer(rf"^(?:{start})", text, re.MULTILINE):
        first = _decorated(text, match.start())
        yield text.count("\n", 0, first) + 1, text[first : _end(text, match.end(), "")]


def _end(text: str, position: int, indent: str) -> int:
    """Where a statement ends: before the next line that is indented no deeper and is no closing bracket."""
    match = re.compile(rf"^{indent}[^\s)\]}}#]", re.MULTILINE).search(text, text.find("\n", position) + 1 or len(text))
    shallower = re.compile(r"^[^\s)\]}#]", re.MULTILINE).search(text, text.find("\n", position) + 1 or len(text))
    ends = [m.start() for m in (match, shallower) if m is not None]
    return min(ends, default=len(text))


def _decorated(text: str, position: int) -> int:
    """Where the decorators above a definition begin."""
    indent = re.match(r"[ \t]*", text[text.rfind("\n", 0, position) + 1 :])
    assert indent is not None
    first = line = text.rfind("\n", 0, position) + 1
    while line > 0:
        above = text.rfind("\n", 0, line - 1) + 1
        content = text[above : line - 1]
        if not content.strip():
            break
        line = above
        if content.startswith(indent[0] + "@"):
            first = above
        elif not content[len(indent[0]) :].startswith((" ", "\t", ")", "#")):
            break
    return first


def parse(text: str) -> ast.Module | None:
    """The tree of a piece of source; None where it is not Python."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@dataclass(frozen=True, slots=True)
class Class:
    """A class as far as it was read: its head with the decorators, and its text, from which methods are cut."""

    module: Module
    head: ast.ClassDef
    text: str
    line: int

    def body(self) -> ast.ClassDef | None:
        """The whole class, parsed."""
        tree = parse(self.text)
        return tree.body[0] if tree and tree.body and isinstance(tree.body[0], ast.ClassDef) else None

    def method(self, name: str) -> tuple[ast.FunctionDef, int] | None:
        """A method that this class itself defines, with its line in the file; of several (overloads) the last.

        Raises:
            CannotTell: the class may have it, but not as a plain `def`.
        """
        found = None
        for match in re.finditer(rf"^    (?:async )?def {re.escape(name)}\b", self.text, re.MULTILINE):
            if _inside_docstring(self.text, match.start()):
                continue
            first = _decorated(self.text, match.start())
            functions = self._functions(name, self.text[first : _end(self.text, match.end(), "    ")])
            if not functions:
                raise CannotTell(f"{self.head.name}.{name} cannot be parsed")
            found = functions[-1], self.line + self.text.count("\n", 0, match.start())
        if found is None and re.search(rf"^    (?:{re.escape(name)}\s*=|def __getattr__\b)", self.text, re.MULTILINE):
            raise CannotTell(f"{self.head.name}.{name} may be made in another way than by `def`")
        return found

    def _functions(self, name: str, piece: str) -> list[ast.FunctionDef]:
        tree = parse("class _:\n" + piece)
        cut = tree.body[0] if tree is not None and tree.body else None
        whole = cut if isinstance(cut, ast.ClassDef) else self.body()
        return [n for n in whole.body if isinstance(n, ast.FunctionDef) and n.name == name] if whole is not None else []


def _inside_docstring(text: str, position: int) -> bool:
    """Whether a place in a class lies in the docstring that the class begins with."""
    match = re.match(r'(?:.*\n)*?class\b[^"#]*?:[ \t]*(?:#[^\n]*)?\n\s*[rR]?("""|\'\'\')', text)
    if match is None:
        return False
    end = text.find(match[1], match.end())
    return match.end() <= position < end


def definition(module: Module, name: str) -> Class | tuple[ast.FunctionDef, int] | None:
    """The class or function `name` that a module defines, and None where it defines neither."""
    escaped = re.escape(name)
    found: Class | tuple[ast.FunctionDef, int] | None = None
    for line, piece in pieces(module.text, rf"class {escaped}\b|(?:async )?def {escaped}\b"):
        head = _head(piece)
        if head is not None:
            found = Class(module, head, piece, line)
            continue
        tree = parse(piece)
        if tree is not None and tree.body and isinstance(tree.body[-1], ast.FunctionDef):
            function = tree.body[-1]
            found = function, line + function.lineno - 1
    if found is None and re.search(rf"^[ \t]*(?:class|def) {escaped}\b", module.text, re.MULTILINE):
        found = _nested(module, name)
    return found


def _head(piece: str) -> ast.ClassDef | None:
    """The decorators, name and bases of a class, with an empty body."""
    start = re.search(r"^class\b", piece, re.MULTILINE)
    if start is None:
        return None
    for match in re.finditer(r":[ \t]*(?:#[^\n]*)?$", piece[start.start() :], re.MULTILINE):
        tree = parse(piece[: start.start() + match.start()] + ": pass\n")
        if tree is not None and tree.body and isinstance(tree.body[-1], ast.ClassDef):
            return tree.body[-1]
        if match.start() > 4000:
            break
    tree = parse(piece)
    return tree.body[0] if tree and tree.body and isinstance(tree.body[0], ast.ClassDef) else None


def _nested(module: Module, name: str) -> Class | tuple[ast.FunctionDef, int] | None:
    """A definition under a top-level `if`, `else` or `try`."""
    tree = parse(module.text)
    level = list(tree.body) if tree else []
    while level:
        node = level.pop(0)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node, node.lineno
        if isinstance(node, ast.ClassDef) and node.name == name:
            lines = module.text.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
            indent = " " * node.col_offset
            text = "".join(line.removeprefix(indent) for line in lines)
            return Class(module, node, text, node.lineno)
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try)):
                level += getattr(node, part, [])
        if isinstance(node, ast.Try):
            level += [statement for handler in node.handlers for statement in handler.body]
    return None
