"""What stands between the brackets of a call or a dict: items, commas, comments, and changes that keep them right.

LibCST hangs the white space and the comments on the commas. Here they are brought into one form for calls and dicts:
`lead` before the first item, a gap after each comma, `tail` before the closing bracket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import libcst as cst

Gap: TypeAlias = cst.BaseParenthesizableWhitespace
Element: TypeAlias = "cst.Arg | cst.BaseDictElement"
NONE = cst.SimpleWhitespace("")
SPACE = cst.SimpleWhitespace(" ")


@dataclass(slots=True)
class Bracket:
    """The inside of one pair of brackets."""

    items: list[Element]
    lead: Gap
    gaps: list[Gap]
    tail: Gap
    trailing: bool

    def insert(self, index: int, item: Element) -> None:
        """Puts `item` before the item at `index`, in the layout of its neighbours."""
        if index >= len(self.items):
            self._append(item)
            return
        before = self.lead if index == 0 else self.gaps[index - 1]
        gap = bare(before)
        self.gaps.insert(index, SPACE if isinstance(gap, cst.SimpleWhitespace) and not gap.value else gap)
        self.items.insert(index, item)

    def _append(self, item: Element) -> None:
        if not self.items:
            self.items.append(item)
            return
        base = self.gaps[-1] if self.gaps else self.lead
        if isinstance(base, cst.ParenthesizedWhitespace) or comment_of(self.tail):
            gap = self._new_line()
            if isinstance(self.tail, cst.ParenthesizedWhitespace):
                gap = gap.with_changes(first_line=self.tail.first_line)
                self.tail = self.tail.with_changes(
                    first_line=self.tail.first_line.with_changes(whitespace=NONE, comment=None)
                )
            self.gaps.append(gap)
        else:
            self.gaps.append(SPACE)
        self.items.append(item)

    def _new_line(self) -> cst.ParenthesizedWhitespace:
        for gap in (*reversed(self.gaps), self.lead):
            if isinstance(gap, cst.ParenthesizedWhitespace):
                new = bare(gap)
                assert isinstance(new, cst.ParenthesizedWhitespace)
                return new
        assert isinstance(self.tail, cst.ParenthesizedWhitespace)
        return self.tail.with_changes(
            empty_lines=(), last_line=cst.SimpleWhitespace(self.tail.last_line.value + " " * 4)
        )

    def remove(self, index: int) -> None:
        """Takes the item at `index` out, with the comment on its line; other comments stay."""
        del self.items[index]
        if not self.items:
            self.trailing = False
            self.lead = self.lead if has_comment(self.lead) else NONE
            self.tail = self.tail if has_comment(self.lead) else NONE
        elif index == len(self.items):
            before = self.gaps.pop()
            if isinstance(self.tail, cst.ParenthesizedWhitespace) or has_comment(before):
                self.tail = _joined(before, self.tail)
        elif index == 0:
            after = self.gaps.pop(0)
            if isinstance(self.lead, cst.ParenthesizedWhitespace) or has_comment(after):
                self.lead = _joined(self.lead, after)
        else:
            self.gaps[index - 1 : index + 1] = [_joined(self.gaps[index - 1], self.gaps[index])]


def _joined(before: Gap, after: Gap) -> Gap:
    """What is left between two neighbours when the item between these gaps goes."""
    if isinstance(before, cst.SimpleWhitespace):
        return after if isinstance(after, cst.ParenthesizedWhitespace) else before
    if not isinstance(after, cst.ParenthesizedWhitespace):
        return before
    assert isinstance(before, cst.ParenthesizedWhitespace)
    return after.with_changes(first_line=before.first_line, empty_lines=[*before.empty_lines, *after.empty_lines])


def bare(gap: Gap) -> Gap:
    """The same line break and indentation without comments and empty lines."""
    if not isinstance(gap, cst.ParenthesizedWhitespace):
        return gap
    first = gap.first_line.with_changes(whitespace=NONE, comment=None)
    return gap.with_changes(first_line=first, empty_lines=())


def comment_of(gap: Gap) -> cst.Comment | None:
    """The comment that ends the line before this gap."""
    return gap.first_line.comment if isinstance(gap, cst.ParenthesizedWhitespace) else None


def has_comment(gap: Gap) -> bool:
    """Whether a comment stands anywhere in it."""
    return isinstance(gap, cst.ParenthesizedWhitespace) and bool(
        gap.first_line.comment or any(line.comment for line in gap.empty_lines)
    )


def of_call(call: cst.Call) -> Bracket:
    """The inside of a call's brackets."""
    gaps: list[Gap] = []
    tail: Gap = NONE
    trailing = False
    for number, arg in enumerate(call.args):
        last = number == len(call.args) - 1
        comma = arg.comma if isinstance(arg.comma, cst.Comma) else None
        if not last:
            gaps.append(comma.whitespace_after if comma else SPACE)
        else:
            trailing = comma is not None
            tail = comma.whitespace_after if comma else arg.whitespace_after_arg
    return Bracket(list(call.args), call.whitespace_before_args, gaps, tail, trailing)


def to_call(call: cst.Call, bracket: Bracket) -> cst.Call:
    """The call with this inside."""
    args: list[cst.Arg] = []
    for number, item in enumerate(bracket.items):
        assert isinstance(item, cst.Arg)
        last = number == len(bracket.items) - 1
        old = item.comma if isinstance(item.comma, cst.Comma) else None
        if last and not bracket.trailing:
            args.append(item.with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=bracket.tail))
            continue
        comma = (old or cst.Comma()).with_changes(whitespace_after=bracket.tail if last else bracket.gaps[number])
        args.append(item.with_changes(comma=comma, whitespace_after_arg=item.whitespace_after_arg if old else NONE))
    lead = bracket.lead
    if not args and has_comment(lead) and isinstance(bracket.tail, cst.ParenthesizedWhitespace):
        lead = _joined(lead, bracket.tail)
    return call.with_changes(args=args, whitespace_before_args=lead)


def of_dict(node: cst.Dict) -> Bracket:
    """The inside of a dict's braces."""
    elements: Sequence[cst.BaseDictElement] = node.elements
    gaps: list[Gap] = []
    tail: Gap = node.rbrace.whitespace_before
    trailing = False
    for number, element in enumerate(elements):
        comma = element.comma if isinstance(element.comma, cst.Comma) else None
        if number < len(elements) - 1:
            gaps.append(comma.whitespace_after if comma else SPACE)
        else:
            trailing = comma is not None
            if comma is not None and not comma.whitespace_after.empty:
                tail = comma.whitespace_after
    return Bracket(list(elements), node.lbrace.whitespace_after, gaps, tail, trailing)


def to_dict(node: cst.Dict, bracket: Bracket) -> cst.Dict:
    """The dict with this inside."""
    elements: list[cst.BaseDictElement] = []
    for number, item in enumerate(bracket.items):
        assert isinstance(item, cst.BaseDictElement)
        last = number == len(bracket.items) - 1
        old = item.comma if isinstance(item.comma, cst.Comma) else cst.Comma()
        if last and not bracket.trailing:
            elements.append(item.with_changes(comma=cst.MaybeSentinel.DEFAULT))
        else:
            elements.append(
                item.with_changes(comma=old.with_changes(whitespace_after=NONE if last else bracket.gaps[number]))
            )
    return node.with_changes(
        elements=elements,
        lbrace=node.lbrace.with_changes(whitespace_after=bracket.lead),
        rbrace=node.rbrace.with_changes(whitespace_before=bracket.tail),
    )
