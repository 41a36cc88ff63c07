"""A plug-in of one check: what a third party writes."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.registry import check


@check("EXA001", needs=["interpreter"], since="1.0")
def python_of_another_house(facts: Facts) -> Iterator[Finding]:
    """A Python that the example house does not use.

    It exists to show that a plug-in is found, run, listed and explained like the checks that are shipped.
    """
    yield Finding(
        "Python {version} is not the example house's Python; nothing needs to be done.",
        {"version": facts.interpreter.version},
        severity="info",
    )


CHECKS = (python_of_another_house,)
