"""Argument fixes as edits of the file: byte ranges in its own encoding, parsed again before anyone writes them."""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qlora_doctor.errors import RepairError
from qlora_doctor.facts import Facts, Installed
from qlora_doctor.fix import Applicability, LoadKwarg, SourceEdit, TrainSetting
from qlora_doctor.repair.notebook import cell_source, with_cell_source
from qlora_doctor.repair.text import Encoding, apply_edits, decode, edits_between, without_magics
from qlora_doctor.source import Call, Script, Site

if TYPE_CHECKING:
    from qlora_doctor.repair.rewrite import Rewritten


def edit_for(data: bytes, script: Script, fix: LoadKwarg | TrainSetting, call: Call, facts: Facts) -> SourceEdit:
    """The edit of the file `data` that carries `fix` out on `call`.

    Raises:
        RepairError: it cannot be done without guessing, or the installed signature has no such argument.
    """
    site = call.site
    if site is None or site.start < 0:
        raise RepairError("it is not known where this call stands")
    if script.kind == "config":
        from qlora_doctor.repair.settings import setting_edit

        return setting_edit(data, script, fix, site)
    refuse_unknown_argument(fix, call, facts)
    text, encoding = _source(data, site, script.encoding)
    code = without_magics(text)
    result = _rewritten(code, encoding, fix, call, site, script)
    _parse(result.text)
    edits = edits_between(code, result.text, encoding, text)
    if not edits:
        raise RepairError("the file has this already")
    applicability: Applicability = "unsafe" if result.unsafe and fix.applicability == "safe" else fix.applicability
    title = f"{fix.replaces}= becomes {fix.name}=" if result.renamed else fix.title
    what = f"{title} ({result.unsafe})" if result.unsafe else title
    digest = hashlib.sha256(data).hexdigest()
    return SourceEdit(script.path, digest, edits, what, site.cell, applicability=applicability)


def _rewritten(
    code: str, encoding: Encoding, fix: LoadKwarg | TrainSetting, call: Call, site: Site, script: Script
) -> Rewritten:
    from qlora_doctor.repair.rewrite import rewrite

    raw = encoding.bom + encoding.encode(code) if site.cell is None else code.encode("utf-8")

    def characters(span: tuple[int, int]) -> tuple[int, int]:
        start = len(raw[len(encoding.bom) : span[0]].decode(encoding.name, "replace"))
        return start, start + len(raw[span[0] : span[1]].decode(encoding.name, "replace"))

    spans = {name: characters(span) for name, span in site.spans.items()}
    return rewrite(code, fix, call, characters((site.start, site.end)), spans, _earlier_imports(script, site.cell))


def _earlier_imports(script: Script, cell: int | None) -> Mapping[str, str]:
    """The imports of a notebook's earlier cells, as import path to local name."""
    if cell is None:
        return {}
    found = {}
    for item in script.imports:
        if not item.nested and item.site is not None and item.site.cell is not None and item.site.cell < cell:
            path = f"{item.module}.{item.name}" if item.name else item.module
            local = item.alias or item.name or item.module.partition(".")[0]
            found[path if item.name or item.alias else local] = local
    return found


def refuse_unknown_argument(fix: LoadKwarg | TrainSetting, call: Call, facts: Facts) -> None:
    """Raises RepairError where the installed function is known not to take the argument that `fix` passes."""
    installed = facts.state("installed")
    if fix.drop or not isinstance(installed, Installed):
        return
    signature = installed.signatures.get(call.function)
    if signature is None or signature.open or fix.name in signature.parameters:
        return
    verb = "drops" if signature.swallows else "does not take"
    raise RepairError(f"the installed {call.function.rpartition('.')[2]} {verb} {fix.name}= ({signature.source})")


def edited(data: bytes, edit: SourceEdit, encoding_name: str = "") -> bytes:
    """The file with the edit carried out, its imports added, parsed again.

    Raises:
        RepairError: the file is not the one that the edit was made for, or the result is not Python.
    """
    if edit.sha256 and hashlib.sha256(data).hexdigest() != edit.sha256:
        raise RepairError(f"{edit.path} was changed since it was read; run the command again")
    text, encoding = _source(data, Site(edit.path, cell=edit.cell), encoding_name)
    raw = data if edit.cell is None else text.encode("utf-8")
    changed = apply_edits(raw, edit.edits, encoding)
    new = changed[len(encoding.bom) :].decode(encoding.name)
    if edit.imports:
        new = _with_missing_imports(new, edit)
    if edit.path.endswith((".py", ".ipynb")):
        _parse(without_magics(new))
    return encoding.bom + encoding.encode(new) if edit.cell is None else with_cell_source(data, edit.cell, new)


def _with_missing_imports(text: str, edit: SourceEdit) -> str:
    import libcst as cst

    from qlora_doctor.repair.imports import with_imports

    code = without_magics(text)
    have = {ast.unparse(n) for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.Import, ast.ImportFrom))}
    missing = [line for line in edit.imports if ast.unparse(ast.parse(line)) not in have]
    plain = Encoding()
    new = with_imports(cst.parse_module(code), missing).code
    return apply_edits(text.encode(), edits_between(code, new, plain, text), plain).decode()


def _source(data: bytes, site: Site, encoding_name: str) -> tuple[str, Encoding]:
    if site.cell is not None:
        return cell_source(data, site.cell), Encoding()
    return decode(data, encoding_name)


def _parse(text: str) -> None:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise RepairError(f"the edit would leave a file that is not Python ({error})") from None


def diff(path: str, old: bytes | None, new: bytes | None, encoding_name: str = "") -> str:
    """A unified diff as a person reads it: of a notebook, the cells' sources."""
    chunks = []
    for label, before, after in _pieces(path, old, new, encoding_name):
        a, b = f"a/{path.lstrip('/')}{label}", f"b/{path.lstrip('/')}{label}"
        lines = difflib.unified_diff(_lines(before), _lines(after), a, b)
        chunks += [line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines]
    return "".join(chunks)


def _pieces(path: str, old: bytes | None, new: bytes | None, name: str) -> list[tuple[str, str, str]]:
    if path.endswith(".ipynb") and old is not None and new is not None:
        from qlora_doctor.repair.notebook import sources

        pairs = zip(sources(old), sources(new), strict=True)
        return [(f" (cell {i})", a, b) for i, (a, b) in enumerate(pairs) if a != b]
    return [("", *(("" if data is None else decode(data, name)[0]) for data in (old, new)))]  # type: ignore[list-item]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
