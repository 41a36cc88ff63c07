"""A paper as SARIF 2.1.0, which code scanning and editors read. docs.oasis-open.org/sarif/sarif/v2.1.0."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from qlora_doctor import __version__
from qlora_doctor.report.paper import Entry, Paper, Remedy, Replacement, visible, without_secrets

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note", "ok": "none"}
# A code scanning service drops a result without a place; the environment's findings go to the run's first file.
NOWHERE = "environment"


def render(paper: Paper, folder: str = "") -> str:
    """The SARIF log as text. Paths under `folder` are written relative to it, as %SRCROOT%."""
    return json.dumps(sarif(paper, folder), indent=2, ensure_ascii=False) + "\n"


def sarif(paper: Paper, folder: str = "") -> dict[str, Any]:
    """The SARIF log as JSON data."""
    paper = without_secrets(paper)
    rules: dict[str, dict[str, Any]] = {}
    for entry in paper.entries:
        rules.setdefault(entry.code, _rule(entry))
    order = list(rules)
    fallback = next((e.site.path for e in paper.entries if e.site is not None), NOWHERE)
    results = [_result(entry, order.index(entry.code), fallback, folder) for entry in paper.entries]
    if paper.bar is not None and paper.command == "plan":
        rules["memory-plan"] = {"id": "memory-plan", "shortDescription": {"text": "What the run takes in GPU memory."}}
        results.append(_memory(paper, len(order), folder))
    driver = {
        "name": "qlora-doctor",
        "version": __version__,
        "semanticVersion": __version__ if __version__.count(".") == 2 else f"{__version__}.0",
        "rules": list(rules.values()),
    }
    notifications = [
        {"level": "error" if word == "crashed" else "note", "message": {"text": visible(f"{code} {word}: {reason}")}}
        for code, word, reason in paper.unsaid
    ]
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"qlora-doctor/{paper.command}/"},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not any(word == "crashed" for _, word, _ in paper.unsaid),
                "exitCode": paper.exit_code,
                "toolExecutionNotifications": notifications,
            }
        ],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(entry: Entry) -> dict[str, Any]:
    page = visible(entry.help, newlines=True)
    title = " ".join(page.partition("\n\n")[0].split()) or visible(entry.name)
    rule: dict[str, Any] = {
        "id": visible(entry.code),
        "name": visible(entry.name),
        "shortDescription": {"text": title},
        "defaultConfiguration": {"level": _LEVELS[entry.severity]},
        "properties": {"tags": ["qlora"], "problem.severity": _problem(entry)},
    }
    if page:
        rule["fullDescription"] = {"text": title}
        rule["help"] = {"text": page, "markdown": f"# {rule['id']} {rule['name']}\n\n{page}\n"}
    return rule


def _problem(entry: Entry) -> str:
    return {"error": "error", "warning": "warning"}.get(entry.severity, "recommendation")


def _result(entry: Entry, index: int, fallback: str, folder: str) -> dict[str, Any]:
    remedies = "".join(f"\nFix: {r.title} ({r.applicability})" for r in entry.remedies)
    path = entry.site.path if entry.site is not None else fallback
    marked = f"{entry.code}\0{os.path.basename(path)}\0{entry.template}\0{entry.site is None}"
    result: dict[str, Any] = {
        "ruleId": visible(entry.code),
        "ruleIndex": index,
        "level": _LEVELS[entry.severity],
        "message": {"text": visible(_placed(entry) + entry.text + remedies, newlines=True)},
        "locations": [_location(entry, fallback, folder)],
        "partialFingerprints": {"qloraDoctor/v1": hashlib.sha256(marked.encode("utf-8", "replace")).hexdigest()[:32]},
    }
    if entry.evidence:
        result["properties"] = {"evidence": {visible(k): visible(v) for k, v in entry.evidence}}
    fixes = [_fix(remedy, folder) for remedy in entry.remedies if remedy.replacements]
    if fixes:
        result["fixes"] = fixes
    return result


def _placed(entry: Entry) -> str:
    """The place in words, where lines and columns of a file do not say it."""
    if entry.site is None:
        return "environment: "
    return f"cell {entry.site.cell + 1}, line {entry.site.line}: " if entry.site.cell is not None else ""


def _location(entry: Entry, fallback: str, folder: str) -> dict[str, Any]:
    site = entry.site
    if site is None:
        return {"physicalLocation": {"artifactLocation": artifact(fallback, folder), "region": {"startLine": 1}}}
    # A notebook's lines are those of a cell; in the file they are JSON strings elsewhere.
    if site.cell is not None:
        return {
            "physicalLocation": {"artifactLocation": artifact(site.path, folder), "region": {"startLine": 1}},
            "logicalLocations": [{"name": f"cell {site.cell + 1}", "kind": "element"}],
        }
    region: dict[str, Any] = {"startLine": max(site.line, 1)}
    if site.column:
        region["startColumn"] = site.column
    if site.end_line > site.line:
        region["endLine"] = site.end_line
    return {"physicalLocation": {"artifactLocation": artifact(site.path, folder), "region": region}}


def artifact(path: str, folder: str) -> dict[str, Any]:
    """An artifactLocation: relative to `folder` where the path lies in it, else a file URI."""
    relative = path
    if os.path.isabs(path) and folder:
        inside = os.path.relpath(path, folder)
        relative = path if inside.startswith("..") else inside
    words = quote(relative.replace("\\", "/").removeprefix("./"), safe="/~!$&'()*+,;=@", errors="surrogatepass")
    if os.path.isabs(relative):
        return {"uri": f"file://{'' if words.startswith('/') else '/'}{words}"}
    return {"uri": words, "uriBaseId": "%SRCROOT%"}


def _fix(remedy: Remedy, folder: str) -> dict[str, Any]:
    changes: dict[str, list[Replacement]] = {}
    for one in remedy.replacements:
        changes.setdefault(one.path, []).append(one)
    return {
        "description": {"text": visible(f"{remedy.title} ({remedy.applicability})")},
        "artifactChanges": [
            {"artifactLocation": artifact(path, folder), "replacements": [_replacement(one) for one in ones]}
            for path, ones in changes.items()
        ],
    }


def _replacement(one: Replacement) -> Mapping[str, Any]:
    (line, column), (end_line, end_column) = one.start, one.end
    region = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}
    return {"deletedRegion": region, "insertedContent": {"text": one.text}}


def _memory(paper: Paper, index: int, folder: str) -> dict[str, Any]:
    kind = {"fits": "pass", "": "informational"}.get(paper.bar.verdict if paper.bar else "", "fail")
    result: dict[str, Any] = {
        "ruleId": "memory-plan",
        "ruleIndex": index,
        "kind": kind,
        "level": _LEVELS[paper.tone] if kind == "fail" else "none",
        "message": {"text": visible(f"{paper.about}: {paper.verdict}")},
    }
    if paper.bar is not None:
        result["properties"] = {"low": paper.bar.low, "expected": paper.bar.expected, "high": paper.bar.high}
    return result
