"""A parsed script with the place of each node. Imports libcst, so import this module late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import libcst as cst
from libcst.metadata import CodeRange

from qlora_doctor.errors import RepairError
from qlora_doctor.repair.text import NEWLINE

Span: TypeAlias = tuple[int, int]


@dataclass(slots=True)
class Tree:
    """A module with the positions and parents of its nodes. `lines` are the offsets at which its lines begin."""

    text: str
    module: cst.Module
    positions: Mapping[cst.CSTNode, CodeRange]
    parents: Mapping[cst.CSTNode, cst.CSTNode]
    lines: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = [0, *(m.end() for m in NEWLINE.finditer(self.text))]

    def span(self, node: cst.CSTNode) -> Span:
        """Its character offsets."""
        where = self.positions[node]
        return self.lines[where.start.line - 1] + where.start.column, self.lines[where.end.line - 1] + where.end.column

    def call_at(self, span: Span) -> cst.Call:
        """The call at these offsets. Raises RepairError where there is none."""
        for node in self.positions:
            if isinstance(node, cst.Call) and self.span(node) == span:
                return node
        raise RepairError("the call is not where it was read; read the file again")

    def functions_around(self, node: cst.CSTNode) -> list[cst.CSTNode]:
        """The functions that a node lies in, outermost first."""
        found: list[cst.CSTNode] = [n for n in self.around(node) if isinstance(n, cst.FunctionDef)]
        return found[::-1]

    def around(self, node: cst.CSTNode) -> list[cst.CSTNode]:
        """All nodes above, nearest first."""
        found = []
        while node in self.parents:
            node = self.parents[node]
            found.append(node)
        return found

    def code(self, node: cst.CSTNode) -> str:
        return self.module.code_for_node(node).strip()
