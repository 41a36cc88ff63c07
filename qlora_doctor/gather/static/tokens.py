"""What a script does with padding and labels, read off its syntax alone: no name is followed.

Labels are made in functions that are handed to `map` or in collators, which nobody can follow without running them. What
the checks of the data need is visible in single statements: which comparison decides what becomes -100, whether the pad
token is the end token.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from qlora_doctor.gather.static.values import Span
from qlora_doctor.source import Site, TokenUse

_ENDS = frozenset({"</s>", "<|endoftext|>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<eos>"})
_GUARDS = ("pad_token", "_pad_token", "pad_token_id")


def read_tokens(tree: ast.AST, site: Callable[[ast.AST], Site | None]) -> tuple[TokenUse, ...]:
    """Every use of padding and labels in a syntax tree, in the order of the text. `site` turns a node into its place."""
    found: list[tuple[str, str, ast.AST]] = []
    _walk(tree, False, found)
    return tuple(TokenUse(kind, detail, site(node)) for kind, detail, node in found)


def _walk(node: ast.AST, guarded: bool, found: list[tuple[str, str, ast.AST]]) -> None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        found.extend(_assignment(node, node.targets[0], node.value, guarded))
    elif isinstance(node, ast.Call):
        found.extend(_call(node, guarded))
    elif isinstance(node, (ast.IfExp, ast.ListComp)):
        found.extend(_expression(node))
    if isinstance(node, ast.If):
        inside = guarded or _asks_for_pad(node.test)
        for statement in node.body:
            _walk(statement, inside, found)
        for statement in node.orelse:
            _walk(statement, guarded, found)
        return
    for child in ast.iter_child_nodes(node):
        _walk(child, guarded, found)


def _assignment(
    node: ast.Assign, target: ast.expr, value: ast.expr, guarded: bool
) -> Iterator[tuple[str, str, ast.AST]]:
    name = target.attr if isinstance(target, ast.Attribute) else ""
    # The ids in a model's config are for generating.
    if name in ("pad_token", "pad_token_id") and "config" not in ast.unparse(target):
        # `x.pad_token = x.pad_token or x.eos_token` asks for itself.
        own = isinstance(value, ast.BoolOp) and _mentions(value, "pad_token")
        last = value.values[-1] if isinstance(value, ast.BoolOp) else value
        if _is_end(last):
            yield "pad-is-eos", "guarded" if guarded or own else "", node
    elif name in ("padding_side", "truncation_side") and isinstance(value, ast.Constant):
        yield name.replace("_", "-"), str(value.value), node
    if _is_labels(target) and _is_copy(value):
        yield "labels-copied", "", node
    if isinstance(target, ast.Subscript) and _is_ignored(value) and _is_labels(target.value):
        yield "mask", _by(target.slice), node


def _call(node: ast.Call, guarded: bool) -> Iterator[tuple[str, str, ast.AST]]:
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    for keyword in node.keywords:
        value = keyword.value
        if keyword.arg in ("padding_side", "truncation_side") and isinstance(value, ast.Constant):
            yield keyword.arg.replace("_", "-"), str(value.value), node
        elif keyword.arg == "padding" and isinstance(value, ast.Constant) and value.value == "max_length":
            yield "pad-to-length", "", node
        elif keyword.arg == "pad_token" and _is_end(value) and function == "from_pretrained":
            yield "pad-is-eos", "", node
        elif keyword.arg == "labels" and _is_copy(value):
            yield "labels-copied", "", node
    if function == "add_special_tokens" and node.args and isinstance(node.args[0], ast.Dict):
        pairs = zip(node.args[0].keys, node.args[0].values, strict=True)
        if any(isinstance(k, ast.Constant) and k.value == "pad_token" and _is_end(v) for k, v in pairs):
            yield "pad-is-eos", "guarded" if guarded else "", node
    if function in ("where", "masked_fill", "masked_fill_", "index_fill_") and any(
        _is_ignored(a) or (isinstance(a, ast.Call) and any(_is_ignored(one) for one in a.args)) for a in node.args
    ):
        yield "mask", _by(node), node


def _expression(node: ast.IfExp | ast.ListComp) -> Iterator[tuple[str, str, ast.AST]]:
    if isinstance(node, ast.IfExp):
        if _is_ignored(node.body) or _is_ignored(node.orelse):
            yield "mask", _by(node.test), node
    elif _is_ignored(node.elt):
        yield "mask", "other", node


def _asks_for_pad(test: ast.expr) -> bool:
    """Whether a condition asks if there is a pad token: `tokenizer.pad_token is None`, `not tokenizer.pad_token`."""
    return any(isinstance(n, ast.Attribute) and n.attr in _GUARDS for n in ast.walk(test)) or any(
        isinstance(n, ast.Constant) and n.value in _GUARDS for n in ast.walk(test)
    )


def _is_end(value: ast.expr) -> bool:
    if isinstance(value, ast.Attribute):
        return value.attr in ("eos_token", "eos_token_id")
    return isinstance(value, ast.Constant) and value.value in _ENDS


def _is_labels(target: ast.expr) -> bool:
    """`labels`, `batch["labels"]`, `self.labels`, `model_inputs["labels"]`, `labels[i]`."""
    if isinstance(target, ast.Subscript):
        key = target.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return key.value in ("labels", "label")
        return _is_labels(target.value)
    name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
    return name in ("labels", "label", "label_ids", "lm_labels", "target", "targets") or name.endswith("_labels")


def _is_copy(value: ast.expr) -> bool:
    """Whether a value is the input ids, or a copy of them: `x["input_ids"].copy()`, `input_ids.clone()`."""
    if isinstance(value, ast.Call):
        function = value.func
        if isinstance(function, ast.Attribute) and function.attr in ("copy", "clone", "deepcopy", "detach"):
            inner = value.args[0] if function.attr == "deepcopy" and value.args else function.value
            return _is_copy(inner)
        if isinstance(function, ast.Name) and function.id in ("list", "deepcopy") and value.args:
            return _is_copy(value.args[0])
        return False
    if isinstance(value, ast.Subscript):
        if isinstance(value.slice, ast.Slice) and value.slice.lower is None and value.slice.upper is None:
            return _is_copy(value.value)
        return isinstance(value.slice, ast.Constant) and value.slice.value == "input_ids"
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return name == "input_ids"


def _is_ignored(value: ast.expr) -> bool:
    """-100, or a name for it (`IGNORE_INDEX`)."""
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub) and isinstance(value.operand, ast.Constant):
        return value.operand.value == 100
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return "ignore" in name.lower()


def _by(test: ast.AST) -> str:
    words = {n.attr.lower() for n in ast.walk(test) if isinstance(n, ast.Attribute)}
    words |= {n.id.lower() for n in ast.walk(test) if isinstance(n, ast.Name)}
    words |= {n.value.lower() for n in ast.walk(test) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    compared = any(isinstance(n, ast.Compare) for n in ast.walk(test))
    if any("attention" in word for word in words):
        return "attention"
    if compared and any("pad" in word for word in words):
        return "pad"
    if compared and any("eos" in word for word in words):
        return "eos"
    return "other"


def _mentions(value: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr == name for n in ast.walk(value))


def handler_with(node: ast.AST, call: ast.AST) -> Span | None:
    """Where the body of the except stands that holds `call`; None where it stands elsewhere."""
    for handler in node.handlers if isinstance(node, ast.Try) else ():
        if any(one is call for statement in handler.body for one in ast.walk(statement)):
            first, last = handler.body[0], handler.body[-1]
            return first.lineno, first.col_offset, last.end_lineno or last.lineno, last.end_col_offset or 0
    return None


def last_parameter(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Span | None:
    """From the first positional parameter of a function to the last, its default included: what a new one follows."""
    positional = [*node.args.posonlyargs, *node.args.args]
    if not positional:
        return None
    ends: list[ast.expr | ast.arg] = [positional[-1], *node.args.defaults[-1:]]
    line, column = max((e.end_lineno or e.lineno, e.end_col_offset or 0) for e in ends)
    return positional[0].lineno, positional[0].col_offset, line, column
