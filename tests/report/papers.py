"""Papers for the dresses' tests: one with a bit of everything, and one whose every word is hostile."""

from __future__ import annotations

import math

from qlora_doctor.report.paper import Bar, Curve, Entry, Paper, Remedy, Section
from qlora_doctor.source import Site

GIB = 2**30
# What a model's name, a file's name or a line of a log may hold.
HOSTILE = (
    '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\'"&amp;</title></style>'
    "\x1b[31mred\x1b[0m \u202egnp.exe\u2066 ]]> --> ${{ x }} `backticks` | pipe ::error::x"
)


def paper() -> Paper:
    """A report with a finding of each severity, a bar, a curve and a table."""
    entries = (
        Entry(
            "QD121",
            "outdated-training-argument",
            "error",
            "evaluation_strategy= is gone; write eval_strategy=",
            "train.py:79:21",
            Site("train.py", line=79, column=21, end_line=91),
            (("name", "evaluation_strategy"), ("since", "4.51")),
            (Remedy("evaluation_strategy= becomes eval_strategy=", "safe", "eval_strategy='epoch'"),),
            "An argument that is gone.\n\nIt is a TypeError.",
            "{name}= is gone",
        ),
        Entry("QD001", "missing-package", "warning", "accelerate is not installed", "environment", None),
        Entry("QD101", "quantized-load-without-dtype", "info", "no dtype", "run.ipynb:cell 3:2:1", Site("run.ipynb", 2, 1, 2, cell=2)),
    )  # fmt: skip
    bar = Bar(
        "Qwen/Qwen3-8B",
        (("quantised weights", 5 * GIB), ("adapters", GIB)),
        5 * GIB,
        6 * GIB,
        7 * GIB,
        "RTX",
        8 * GIB,
        "fits",
    )
    curve = Curve(
        "out/train_log.jsonl", tuple((float(n), 3 - n / 100) for n in range(1, 200)), ((50.0, 2.6), (100.0, 2.1))
    )
    sections = (
        Section("Environment", rows=(("part", "value"), ("torch", "2.13.0")), kind="table"),
        Section("Changes to files", ("--- a/train.py", "+++ b/train.py", "@@ -1 +1 @@", "-old", "+new"), kind="diff"),
        Section("Commands", ("pip install x",), kind="commands"),
        Section(
            "Packages",
            rows=(("name", "version"), ("nvidia-cudnn", "9.1.0.70")),
            kind="table",
            folded=True,
            versions=True,
        ),
    )
    unsaid = (("QD401", "unknown", "driver: could not be read"),)
    return Paper(
        "check", "train.py", "1 error, 1 warning, 1 note", "error", 1, entries, sections, bar, (curve,), unsaid
    )


def hostile() -> Paper:
    """A report whose every word tries something."""
    entry = Entry(
        "QD999", HOSTILE, "error", HOSTILE, HOSTILE, Site(HOSTILE, 1, 1), ((HOSTILE, HOSTILE),),
        (Remedy(HOSTILE, "safe", HOSTILE),), HOSTILE, HOSTILE,
    )  # fmt: skip
    sections = (
        Section(HOSTILE, rows=((HOSTILE, HOSTILE), (HOSTILE, HOSTILE)), kind="table"),
        Section(HOSTILE, ("+" + HOSTILE, "-" + HOSTILE, HOSTILE), kind="diff"),
        Section(HOSTILE, (HOSTILE,), kind="commands"),
        Section(HOSTILE, (HOSTILE,), folded=True),
        Section(HOSTILE, (HOSTILE,)),
    )
    bar = Bar(HOSTILE, ((HOSTILE, GIB),), GIB, GIB, GIB, HOSTILE, 2 * GIB, HOSTILE, HOSTILE)
    curve = Curve(HOSTILE, ((1.0, 2.0), (2.0, math.nan), (3.0, 1.0)))
    return Paper(
        "check", HOSTILE, HOSTILE, "error", 1, (entry,), sections, bar, (curve,), ((HOSTILE, "crashed", HOSTILE),)
    )
