"""Where an argument of a call is written: in the call, or in a mapping above that `**` passes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import libcst as cst

from qlora_doctor.repair.tree import Tree


@dataclass(frozen=True, slots=True)
class Place:
    """`bracket`: item `index` of the call or dict `owner`. `item`: the assignment `node` on the line `owner`.

    `value`: an expression alone. `mapping` is the text of the mapping that it belongs to, "" for the call itself.
    """

    kind: Literal["bracket", "item", "value"]
    node: cst.CSTNode
    owner: cst.CSTNode
    index: int = 0
    mapping: str = ""

    @property
    def value(self) -> cst.BaseExpression | None:
        """The expression that gives the value."""
        node = self.node
        if isinstance(node, (cst.Arg, cst.DictElement, cst.Assign)):
            return node.value
        return node if isinstance(node, cst.BaseExpression) else None


def direct_places(call: cst.Call, name: str, mapping: str = "") -> list[Place]:
    """The keyword `name` among the arguments of a call."""
    return [
        Place("bracket", arg, call, index, mapping)
        for index, arg in enumerate(call.args)
        if arg.keyword is not None and arg.keyword.value == name
    ]


def mapping_places(tree: Tree, call: cst.Call, mapping: cst.BaseExpression, name: str) -> list[Place]:
    """Where the key `name` is put into `mapping` before `call`, in the order of the script."""
    if isinstance(mapping, (cst.Dict, cst.Call)):
        return list(_in_value(mapping, name, tree.code(mapping)))
    text = tree.code(mapping)
    scope = _scope(tree, call, mapping)
    before = tree.positions[call].start
    places: list[Place] = []
    for node, where in tree.positions.items():
        start = where.start
        later = (start.line, start.column) >= (before.line, before.column)
        if not isinstance(node, (cst.Assign, cst.AnnAssign, cst.Call)) or (later and not text.startswith("self.")):
            continue
        if _scope(tree, node, mapping) is scope:
            places += _in_node(tree, node, text, name)
    return sorted(places, key=lambda p: (tree.positions[p.node].start.line, tree.positions[p.node].start.column))


def _scope(tree: Tree, node: cst.CSTNode, mapping: cst.BaseExpression) -> cst.CSTNode:
    """The function, or for an attribute of self the class, that a node lies in."""
    kinds = cst.FunctionDef if isinstance(mapping, cst.Name) else cst.ClassDef
    return next((n for n in tree.around(node) if isinstance(n, kinds)), tree.module)


def _in_node(tree: Tree, node: cst.Assign | cst.AnnAssign | cst.Call, text: str, name: str) -> Iterator[Place]:
    if isinstance(node, cst.Call):
        if (
            isinstance(node.func, cst.Attribute)
            and node.func.attr.value == "update"
            and tree.code(node.func.value) == text
        ):
            yield from direct_places(node, name, text)
            for arg in node.args:
                if isinstance(arg.value, cst.Dict) and arg.keyword is None:
                    yield from _in_value(arg.value, name, text)
        return
    targets = [t.target for t in node.targets] if isinstance(node, cst.Assign) else [node.target]
    for target in targets:
        if tree.code(target) == text and node.value is not None:
            yield from _in_value(node.value, name, text)
        elif isinstance(target, cst.Subscript) and tree.code(target.value) == text and _key(target) == name:
            line = next(
                n for n in tree.around(node) if isinstance(n, (cst.SimpleStatementLine, cst.SimpleStatementSuite))
            )
            yield Place("item", node, line, mapping=text)


def _in_value(value: cst.BaseExpression, name: str, text: str) -> Iterator[Place]:
    if isinstance(value, cst.Call) and isinstance(value.func, cst.Name) and value.func.value == "dict":
        yield from direct_places(value, name, text)
    elif isinstance(value, cst.Dict):
        for index, element in enumerate(value.elements):
            key = element.key if isinstance(element, cst.DictElement) else None
            if isinstance(key, cst.SimpleString) and key.evaluated_value == name:
                yield Place("bracket", element, value, index, text)


def _key(target: cst.Subscript) -> str:
    inner = target.slice[0].slice
    if len(target.slice) == 1 and isinstance(inner, cst.Index) and isinstance(inner.value, cst.SimpleString):
        return str(inner.value.evaluated_value)
    return ""
