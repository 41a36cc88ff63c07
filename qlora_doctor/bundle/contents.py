"""The parts of a bug report: facts, findings, the log's end, the configuration, the fixes tried. All redacted."""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_doctor import __version__, redaction
from qlora_doctor.errors import RepairError, UsageError
from qlora_doctor.examine import Examination, Question, examine, home_of
from qlora_doctor.finding import Finding
from qlora_doctor.logs.diagnose import Report, diagnose
from qlora_doctor.repair import journal
from qlora_doctor.repair.folders import OWN, project_of

PARTS = ("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver", "host", "environ", "disks")
LAST = 400
LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a bug report by name. `report` is the diagnosis of the log, where there is one."""

    files: Mapping[str, str]
    report: Report | None
    examination: Examination


def contents(question: Question, log: str = "") -> Contents:
    """Examines what the question means, reads the log, and gives the files of the report, redacted.

    Raises:
        UsageError: a path that is not there, or a question that cannot be answered.
    """
    examination = examine(replace(question, parts=(*question.parts, *PARTS), offline=True, live=False))
    report = _diagnosis(log, examination) if log else None
    project = project_of(home_of(question.paths))
    raw: dict[str, Any] = {
        "facts.json": examination.facts.to_wire(),
        "findings.json": [_finding(f) for f in examination.verdict.findings],
        "fixes-tried.json": tried(project),
        "requests.json": [_request(case.requests) for case in examination.cases],
    }
    texts = {f"configuration/{name}": text for name, text in configuration(question, project).items()}
    if report is not None:
        texts["log-tail.txt"] = _tail(report)
    names, hosts = _people(raw, texts)

    def rule(text: str) -> str:
        return redaction.private(text, names, hosts)

    files = {name: rule(text) for name, text in texts.items()}
    for name, value in raw.items():
        files[name] = json.dumps(redaction.data(value, rule), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    files["README.md"] = rule(_front(examination, report)) + _index(files)
    return Contents(dict(sorted(files.items())), report, examination)


def _diagnosis(log: str, examination: Examination) -> Report:
    codes = frozenset(f.code for f in examination.verdict.findings)
    try:
        with Path(log).open("rb") as stream:
            return diagnose(stream, examination.facts, codes=codes, script=next(iter(examination.scripts), None))
    except OSError as error:
        raise UsageError(f"--log {log}: {error.strerror or error}") from None


def _tail(report: Report) -> str:
    """The decisive lines with their numbers, then the end of the log."""
    lines = sorted(
        {(d.line.number, d.line.text) for d in report.diagnoses} | {(u.number, u.text) for u in report.unknown}
    )
    decisive = "".join(f"line {number}: {text[:1000]}\n" for number, text in lines)
    end = "\n".join(line[:2000] for line in report.tail[-LAST:])
    return f"# the decisive lines of {report.lines}\n{decisive}\n# the end\n{end}\n"


def _finding(finding: Finding) -> dict[str, Any]:
    site = finding.site
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "message": finding.text,
        "place": "" if site is None else f"{os.path.basename(site.path)}:{site.line}",
        "fixes": [fix.title for fix in finding.fixes],
    }


def _request(requests: Any) -> dict[str, Any]:
    from qlora_doctor.source import show

    return {
        "loads": [show(load.call) for load in requests.loads],
        "trains": [
            [show(call) for call in (train.trainer, train.settings, train.lora) if call is not None]
            for train in requests.trains
        ],
    }


def tried(project: str) -> list[dict[str, Any]]:
    """What `fix --apply` has done in a project: names and states, never the contents of files."""
    folder = os.path.join(project, OWN)
    found: list[dict[str, Any]] = []
    for id in journal.ids(folder):
        try:
            entry = journal.read(folder, id)
        except (RepairError, UsageError) as error:
            found.append({"id": id, "problem": str(error)})
            continue
        packages = entry.packages
        found.append(
            {
                "id": id,
                "started": entry.started,
                "state": journal.state(folder, id),
                "codes": list(entry.codes),
                "files": [os.path.relpath(f.path, project) for f in entry.files],
                "packages": [] if packages is None else list(packages.requirements),
                "packages_before": {}
                if packages is None
                else {n: packages.before.get(n, "") for n in packages.touched},
            }
        )
    return found


def configuration(question: Question, project: str) -> dict[str, str]:
    """The text of the scripts and settings that were named, and the doctor's own settings."""
    found: dict[str, str] = {}
    for path in (*question.paths, os.path.join(project, "qlora-doctor.toml")):
        if os.path.isfile(path) and path.endswith((".py", ".ipynb", ".toml", ".json", ".yaml", ".yml", ".sh")):
            data = Path(path).read_bytes()[:LARGEST]
            name = os.path.basename(path)
            while name in found:
                name = "_" + name
            found[name] = data.decode("utf-8", "replace")
    return found


def _people(raw: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """The users and machines whose names must not be in the report: our own, and those whose home folders are named."""
    names = {os.path.basename(os.path.expanduser("~"))}
    names |= {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    try:
        names.add(getpass.getuser())
    except (KeyError, OSError, ImportError):
        pass  # a user id without a name
    for text in (*texts.values(), json.dumps(raw, ensure_ascii=False)):
        names |= redaction.users_in(text)
    host = platform.node()
    return names, {host, host.partition(".")[0]}


def _front(examination: Examination, report: Report | None) -> str:
    facts = examination.facts
    packages = [
        f"{n} {v}" for n in ("torch", "transformers", "peft", "bitsandbytes", "accelerate") if (v := facts.version(n))
    ]
    lines = [
        f"# Report of qlora-doctor {__version__}",
        "",
        f"Packages: {', '.join(packages) or 'none of the stack'}",
        "",
        "## What the checks find",
        "",
        *[f"- {f.severity} {f.code} {f.name}: {f.text}" for f in examination.verdict.findings],
    ]
    if report is not None:
        lines += ["", "## What the log says", ""]
        lines += [f"- line {d.line.number}: `{d.line.text.strip()[:300]}`: {d.best.confidence}: {d.best.cause.says}" for d in report.diagnoses]  # fmt: skip
        lines += [f"- line {u.number}: `{u.text.strip()[:300]}`: not known" for u in report.unknown]
    return "\n".join(lines) + "\n"


def _index(files: Mapping[str, str]) -> str:
    rows = "".join(f"- {name} ({len(text.encode('utf-8'))} bytes)\n" for name, text in sorted(files.items()))
    return (
        f"\n## Files\n\n{rows}\nTokens, passwords, users, hosts, addresses, UUIDs and serial numbers were taken out by rules. "
        "Look through the files before you send them.\n"
    )
