"""Scores `diagnose` on a file of cases (one JSON object a line), and on our own logs that hold no failure to explain.

    python benchmarks/diagnose.py CASES.jsonl [--misses] [--negatives DIR]

A case has `error_lines`, `cause_id`, `category`, and maybe `environment` (free text), `confirmed`, `id`. Each is
diagnosed as a log of its own; from the environment only pairs of a package and its version are taken. A cause is right
when its id is the case's. Where the same lines stand in the file with several causes and no version decides, any of
them among the first three counts as top-1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_doctor.facts import Distribution, Facts, Interpreter, Packages, TorchBuild
from qlora_doctor.logs.diagnose import diagnose

PAIR = re.compile(
    r"\b(torch|transformers|peft|bitsandbytes|accelerate|trl|datasets|tokenizers|huggingface_hub|safetensors|deepspeed|"
    r"hf[-_]xet|flash[-_]attn|sentencepiece|triton)[ =]+(\d+\.\d[\w.+]*)"
)
PYTHON = re.compile(r"\bPython[ =]+(\d+\.\d+(?:\.\d+)?)")


def facts_of(environment: str | None) -> Facts:
    """The version pairs of a free text; everything else stays unknown."""
    text = environment or ""
    pairs = {name: version.rstrip(".") for name, version in PAIR.findall(text)}
    parts: dict[str, Any] = {}
    if pairs:
        parts["packages"] = Packages(distributions=tuple(Distribution(n, v) for n, v in pairs.items()))
    if match := PYTHON.search(text):
        parts["interpreter"] = Interpreter(match[1])
    local = pairs.get("torch", "").partition("+")[2]
    if local == "cpu":
        parts["torch"] = TorchBuild(pairs["torch"])
    elif cuda := re.match(r"cu(\d+)(\d)$", local):
        parts["torch"] = TorchBuild(pairs["torch"], cuda=f"{cuda[1]}.{cuda[2]}")
    return Facts().but(**parts)


def score(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures by category, and the misses."""
    same = defaultdict(set)
    for case in cases:
        same["\n".join(case["error_lines"])].add(case["cause_id"])
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    misses = []
    for case in cases:
        text = "\n".join(case["error_lines"])
        report = diagnose(text, facts_of(case.get("environment")))
        causes, wanted = report.causes, case["cause_id"]
        confident = [d.best.cause.id for d in report.diagnoses if d.best.confidence != "possible"]
        top3 = wanted in causes[:3]
        ambiguous = len(same[text]) > 1
        top1 = causes[:1] == (wanted,) or (ambiguous and top3)
        wrong = bool(confident) and wanted not in confident and not (ambiguous and top3)
        for row in (rows[case["category"]], rows["ALL"], *([rows["CONFIRMED"]] if case.get("confirmed") else [])):
            row.update(n=1, strict=int(causes[:1] == (wanted,)), top1=int(top1), top3=int(top3), wrong=int(wrong))
        if not top1 or not top3 or wrong:
            mark = "wrong-with-confidence" if wrong else "top-3 only" if top3 else "miss"
            misses.append((case.get("id", "?"), mark, wanted, causes[:4], confident, text[:160]))
    return {"rows": rows, "misses": misses}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--misses", action="store_true", help="list what was not right")
    parser.add_argument("--negatives", type=Path, help="a folder of logs without a failure to explain")
    options = parser.parse_args(arguments)
    cases = [json.loads(line) for line in options.cases.read_text(encoding="utf-8").splitlines() if line.strip()]
    result = score(cases)
    print(f"{'category':24}{'n':>5}{'top-1':>8}{'exact':>8}{'top-3':>8}{'wrong':>8}")
    for name in sorted(result["rows"], key=lambda n: (n.isupper(), n)):
        row = result["rows"][name]
        cells = "".join(f"{100 * row[key] / row['n']:7.1f}%" for key in ("top1", "strict", "top3", "wrong"))
        print(f"{name:24}{row['n']:5}{cells}")
    for miss in result["misses"] if options.misses else ():
        print(*miss, sep="  ")
    if options.negatives:
        logs = sorted(p for p in options.negatives.iterdir() if p.is_file())
        confident = []
        for path in logs:
            report = diagnose(path.read_bytes())
            confident += [(path.name, d.best.cause.id) for d in report.diagnoses if d.best.confidence != "possible"]
        print(f"negatives: {len(logs)}, with a confident diagnosis: {len(confident)}", *confident, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
