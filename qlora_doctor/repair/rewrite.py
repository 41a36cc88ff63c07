"""One argument of one call changed in a script's text, by LibCST. Imports libcst, so import this module late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider

from qlora_doctor.errors import RepairError
from qlora_doctor.fix import LoadKwarg, TrainSetting
from qlora_doctor.repair import commas
from qlora_doctor.repair.imports import with_imports
from qlora_doctor.repair.places import Place, direct_places, mapping_places
from qlora_doctor.repair.tree import Span, Tree
from qlora_doctor.repair.values import Names, names_in
from qlora_doctor.source import Call, Unresolved, show

MODEL = "pretrained_model_name_or_path"


@dataclass(slots=True)
class Rewritten:
    """The new text. `unsafe`: why this edit reaches further than its fix says, "" where it does not.

    `renamed`: the argument got another name and kept its expression.
    """

    text: str
    unsafe: str = ""
    renamed: bool = False


def rewrite(
    text: str,
    fix: LoadKwarg | TrainSetting,
    call: Call,
    span: Span,
    spans: Mapping[str, Span],
    elsewhere: Mapping[str, str],
) -> Rewritten:
    """The script with `fix` carried out on the call that stands at `span` (character offsets).

    `spans` are the reader's places of the arguments, `elsewhere` the imports of a notebook's earlier cells.

    Raises:
        RepairError: the change cannot be made without guessing; the message says what is in the way.
    """
    try:
        module = cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        raise RepairError(f"it cannot be parsed: {error.message}") from None
    wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
    tree = Tree(text, module, wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider))
    work = _Work(tree, fix, call, tree.call_at(span), spans)
    work.names = names_in(module, tree.functions_around(work.node), text)
    work.names.bound = {**elsewhere, **work.names.bound}
    work.carry_out()
    changed = module.visit(_Apply(work))
    return Rewritten(with_imports(changed, work.names.missing).code, work.unsafe, work.keeps_value(bool(fix.replaces)))


@dataclass(slots=True)
class _Work:
    """What the transformer will do. `brackets` maps a call or dict to the changes of its inside."""

    tree: Tree
    fix: LoadKwarg | TrainSetting
    call: Call
    node: cst.Call
    spans: Mapping[str, Span]
    names: Names = field(default_factory=Names)
    unsafe: str = ""
    brackets: dict[cst.CSTNode, list[Callable[[commas.Bracket], None]]] = field(default_factory=dict)
    nodes: dict[cst.CSTNode, Callable[[Any], Any]] = field(default_factory=dict)

    def carry_out(self) -> None:
        fix = self.fix
        old = self._places(fix.replaces) if fix.replaces else []
        new = self._places(fix.name)
        if fix.drop:
            if not new:
                raise RepairError(f"where {fix.name} is set cannot be seen in this file")
            for place in new:
                self._drop(place)
        elif fix.replaces:
            if not old and not new:
                raise RepairError(f"where {fix.replaces} is set cannot be seen in this file")
            for place in new:
                if any(self._collide(place, other) for other in old):
                    self._drop(place)
            for place in old or new:
                self._set(place, rename=bool(old))
        elif fix.name == MODEL:
            self._set_model(new)
        elif new:
            for place in new:
                self._set(place)
        else:
            self._add()

    def _collide(self, place: Place, other: Place) -> bool:
        """Whether two names would be passed at once: in one bracket, or one in the call and one in its mapping.

        Two items of a mapping do not collide under one name: the later one wins, or they stand in two branches.
        """
        return place.owner is other.owner or (place.owner is self.node) != (other.owner is self.node)

    def _places(self, name: str) -> list[Place]:
        places = direct_places(self.node, name)
        for arg in self.node.args:
            if arg.star == "**":
                places += mapping_places(self.tree, self.node, arg.value, name)
        if not places:
            places = self._written_elsewhere(name)
        wanted = self.spans.get(f"{name}:value")
        if wanted is None:
            return places
        if not places:
            hits = [
                Place("value", n, n)
                for n in self.tree.positions
                if isinstance(n, cst.BaseExpression) and self.tree.span(n) == wanted
            ]
            return hits[:1]
        exact = [p for p in places if p.value is not None and self.tree.span(p.value) == wanted]
        # An if/else sets it in both branches: change the branch that was judged.
        return exact or places

    def _written_elsewhere(self, name: str) -> list[Place]:
        """The argument at the place that the reader gives: a helper's call, `partial(...)`, a dict that goes a long way."""
        whole = self.spans.get(name)
        for node in self.tree.positions if whole is not None else ():
            if not isinstance(node, (cst.Arg, cst.DictElement, cst.Assign)) or self.tree.span(node) != whole:
                continue
            owner = self.tree.parents[node]
            if isinstance(node, cst.Arg) and isinstance(owner, cst.Call) and node.keyword is not None:
                if node.keyword.value == name:
                    return [Place("bracket", node, owner, [*owner.args].index(node), "elsewhere")]
            elif isinstance(node, cst.DictElement) and isinstance(owner, cst.Dict):
                return [Place("bracket", node, owner, [*owner.elements].index(node), "elsewhere")]
            elif isinstance(node, cst.Assign) and isinstance(node.targets[0].target, cst.Subscript):
                return [Place("item", node, owner, mapping="elsewhere")]
        return []

    def _drop(self, place: Place) -> None:
        self._shared(place)
        if place.kind == "bracket":
            index = place.index
            self.brackets.setdefault(place.owner, []).append(lambda b: b.remove(index))
        elif place.kind == "item":
            line = place.owner
            if not isinstance(line, cst.SimpleStatementLine):
                raise RepairError(f"{self.fix.name} is set on the line of its condition; put that on a line of its own")
            index = next(i for i, s in enumerate(line.body) if s is place.node)
            block = self.tree.parents[line]
            only = isinstance(block, cst.IndentedBlock) and len(block.body) == 1
            self.nodes[line] = lambda old: _without(old, index, only)
        else:
            raise RepairError(f"{self.fix.name} is set in a way that cannot be taken out")

    def _set(self, place: Place, rename: bool = False) -> None:
        self._shared(place)
        name = self.fix.name if rename else ""
        value = None if self.keeps_value(rename) else cst.parse_expression(self.names.render(self.fix.value))
        if place.kind == "bracket":
            index = place.index

            def change(bracket: commas.Bracket) -> None:
                bracket.items[index] = _changed(bracket.items[index], name, value)

            self.brackets.setdefault(place.owner, []).insert(0, change)
        elif place.kind == "item":
            self.nodes[place.node] = lambda assign: _changed_item(assign, name, value)
        elif value is not None:
            new = value
            self.nodes[place.node] = lambda _: new

    def keeps_value(self, rename: bool) -> bool:
        """A rename keeps the expression that is there, unless the fix brings another value."""
        if not rename:
            return False
        there = self.call.arguments.get(self.fix.replaces)
        given = self.fix.value
        return (
            given is None
            or isinstance(given, Unresolved)
            or isinstance(there, Unresolved)
            or show(there) == show(given)
        )

    def _set_model(self, places: list[Place]) -> None:
        if not places:
            places = [Place("bracket", self.node.args[0], self.node, 0)] if self._positional() else []
        if not places:
            raise RepairError("where the model is named cannot be seen in this file")
        node = places[0].value or places[0].node
        literal = self._literal(node)
        if literal is None:
            raise RepairError(f"the model's name comes from {self.tree.code(node)}; change it there")
        old = literal.evaluated_value
        new = cst.parse_expression(self.names.render(self.fix.value))
        self.nodes[literal] = lambda _: new
        for call in self.tree.positions:
            if isinstance(call, cst.Call) and call.args and getattr(call.func, "attr", None) is not None:
                if not self.tree.code(call.func).endswith(".from_pretrained"):
                    continue
                for index, arg in enumerate(call.args):
                    named = arg.keyword.value == MODEL if arg.keyword is not None else index == 0 and not arg.star
                    if named and isinstance(arg.value, cst.SimpleString) and arg.value.evaluated_value == old:
                        self.nodes[arg.value] = lambda _: new

    def _positional(self) -> bool:
        return bool(self.node.args) and self.node.args[0].keyword is None and not self.node.args[0].star

    def _literal(self, node: cst.CSTNode, depth: int = 4) -> cst.SimpleString | None:
        """The string that a plain name was given, where that happens once; names that stand for names are followed."""
        if isinstance(node, cst.SimpleString) or not isinstance(node, cst.Name) or not depth:
            return node if isinstance(node, cst.SimpleString) else None
        found: list[cst.CSTNode] = []
        for scope in (*reversed(self.tree.functions_around(self.node)), self.tree.module):
            for inner in self.tree.positions:
                above = self.tree.functions_around(inner)
                if (above[-1] if above else self.tree.module) is not scope:
                    continue
                if isinstance(inner, (cst.Assign, cst.AnnAssign)):
                    targets = [t.target for t in inner.targets] if isinstance(inner, cst.Assign) else [inner.target]
                    if any(self.tree.code(t) == node.value for t in targets) and inner.value is not None:
                        found.append(inner.value)
                elif isinstance(inner, cst.Param) and inner.name.value == node.value and inner.default is not None:
                    found.append(inner.default)
            if found:
                break
        return self._literal(found[0], depth - 1) if len(found) == 1 else None

    def _add(self) -> None:
        text = self.names.render(self.fix.value)
        for arg in self.node.args:
            if arg.star != "**":
                continue
            anchors = mapping_places(self.tree, self.node, arg.value, "quantization_config")
            if anchors and anchors[-1].kind == "item":
                self._add_item(anchors[-1], self.tree.code(arg.value), text)
                return
            if anchors and anchors[-1].kind == "bracket":
                self._insert(anchors[-1].owner, anchors[-1].index + 1, text)
                return
        stars = [i for i, a in enumerate(self.node.args) if a.star == "**"]
        self._insert(self.node, stars[0] if stars else len(self.node.args), text)

    def _insert(self, owner: cst.CSTNode, index: int, text: str) -> None:
        value = cst.parse_expression(text)
        item: commas.Element
        if isinstance(owner, cst.Dict):
            item = cst.DictElement(cst.SimpleString(self.names.string(self.fix.name)), value)
        else:
            item = cst.Arg(value, keyword=cst.Name(self.fix.name), equal=cst.AssignEqual(commas.NONE, commas.NONE))
        self.brackets.setdefault(owner, []).append(lambda b: b.insert(index, item))

    def _add_item(self, anchor: Place, mapping: str, text: str) -> None:
        line = anchor.owner
        if not isinstance(line, cst.SimpleStatementLine):
            raise RepairError(f"{mapping} is filled on the line of its condition; put that on a line of its own")
        new = cst.parse_statement(f"{mapping}[{self.names.string(self.fix.name)}] = {text}")
        self.nodes[line] = lambda old: cst.FlattenSentinel([old, new])

    def _shared(self, place: Place) -> None:
        if place.mapping and self.tree.text.count(f"**{place.mapping}") > 1:
            self.unsafe = f"{place.mapping} feeds other calls too"


def _changed(item: commas.Element, name: str, value: cst.BaseExpression | None) -> commas.Element:
    if isinstance(item, cst.DictElement):
        key = item.key
        if name and isinstance(key, cst.SimpleString):
            key = key.with_changes(value=f"{key.prefix}{key.quote}{name}{key.quote}")
        return item.with_changes(key=key, value=value or item.value)
    assert isinstance(item, cst.Arg)
    keyword = cst.Name(name) if name and item.keyword is not None else item.keyword
    return item.with_changes(keyword=keyword, value=value or item.value)


def _changed_item(assign: cst.Assign, name: str, value: cst.BaseExpression | None) -> cst.Assign:
    if value is not None:
        assign = assign.with_changes(value=value)
    target = assign.targets[0].target
    assert isinstance(target, cst.Subscript)
    index = target.slice[0].slice
    assert isinstance(index, cst.Index) and isinstance(index.value, cst.SimpleString)
    if name:
        key = index.value.with_changes(value=f"{index.value.quote}{name}{index.value.quote}")
        assign = assign.with_deep_changes(index, value=key)
    return assign


def _without(line: cst.SimpleStatementLine, index: int, last_of_block: bool) -> Any:
    kept = [*line.body[:index], *line.body[index + 1 :]]
    if kept:
        return line.with_changes(body=[*kept[:-1], kept[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)])
    return line.with_changes(body=[cst.Pass()]) if last_of_block else cst.RemoveFromParent()


class _Apply(cst.CSTTransformer):
    def __init__(self, work: _Work) -> None:
        self.work = work

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        changes = self.work.brackets.get(original_node)
        if changes and isinstance(updated_node, cst.Call):
            bracket = commas.of_call(updated_node)
            for change in changes:
                change(bracket)
            updated_node = commas.to_call(updated_node, bracket)
        elif changes:
            bracket = commas.of_dict(updated_node)
            for change in changes:
                change(bracket)
            updated_node = commas.to_dict(updated_node, bracket)
        change_node = self.work.nodes.get(original_node)
        return updated_node if change_node is None else change_node(updated_node)
