"""Calls whose failure a script provides for."""

from __future__ import annotations

import ast

import pytest

from qlora_doctor.gather.static.guards import guards


def guarded(source: str) -> list[str]:
    """The guards of the calls named `Args`, in the order of their lines."""
    tree = ast.parse(source)
    found = guards(tree.body)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Args"]
    return [found.get((c.lineno, c.col_offset), "") for c in sorted(calls, key=lambda c: c.lineno)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("try:\n    Args(old=1)\nexcept TypeError:\n    Args(new=1)\n", ["try", "try"]),
        ("try:\n    Args(new=1)\nexcept Exception:\n    Args(old=1)\n", ["try", "try"]),
        ("try:\n    Other()\nexcept TypeError:\n    Args(old=1)\n", [""]),
        ("try:\n    Args(old=1)\nexcept Exception as e:\n    print(e)\n", [""]),
        ("try:\n    Args(old=1)\nexcept TypeError:\n    raise\n", [""]),
        ("if version.parse(transformers.__version__) >= v:\n    Args()\nelse:\n    Args()\n", ["version", "version"]),
        ("if 'x' in inspect.signature(Args).parameters:\n    Args(x=1)\n", ["version"]),
        ("a = Args(x=1) if hasattr(Args, 'x') else Args(y=1)\n", ["version", "version"]),
        ("if torch.cuda.is_available():\n    Args(old=1)\n", [""]),
        ("Args(old=1)\n", [""]),
    ],
)
def test_a_call_is_guarded_where_its_failure_is_provided_for(source: str, expected: list[str]) -> None:
    assert guarded(source) == expected
