"""The generated pages are those of today's checks and signatures, and the documents name only what exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor import tables
from qlora_doctor.cli import COMMANDS
from qlora_doctor.docs import pages, stale, with_reports, write
from qlora_doctor.docs.symptoms import GAP, data, messages, page, readings, symptom_pages, title
from qlora_doctor.docs.tables import table_page
from qlora_doctor.logs.expressions import compiled
from qlora_doctor.logs.signatures import Cause, Signature, installed_signatures
from qlora_doctor.logs.words import words_of
from qlora_doctor.registry import installed_checks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SIGNATURES = tuple(s for s in installed_signatures().all if s.distribution == "qlora-doctor")
WRITTEN = sorted(p for p in [*DOCS.glob("*.md"), *DOCS.glob("folklore/*.md")] if p.name != "symptoms.md")


def test_the_pages_of_the_checks_are_not_stale() -> None:
    assert stale(DOCS, pages(installed_checks().checks)) == [], "run `make docs`"


def test_writing_the_pages_mends_what_is_stale_and_removes_what_is_gone(tmp_path: Path) -> None:
    wanted = pages(installed_checks().checks)
    write(tmp_path, wanted)
    (tmp_path / "checks" / "QD999.md").write_text("gone", encoding="utf-8")
    (tmp_path / "checks.md").write_text("old", encoding="utf-8")
    assert stale(tmp_path, wanted) == ["checks.md", "checks/QD999.md"]
    write(tmp_path, wanted)
    assert stale(tmp_path, wanted) == []


def test_writing_leaves_what_is_written_by_hand(tmp_path: Path) -> None:
    for name in ("start.md", "assets/site.css", "folklore/index.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("by hand", encoding="utf-8")
    write(tmp_path, {**pages(installed_checks().checks), **symptom_pages(SIGNATURES)})
    assert (tmp_path / "assets/site.css").exists() and (tmp_path / "folklore/index.md").exists()
    assert (tmp_path / "start.md").read_text(encoding="utf-8") == "by hand"


def test_every_check_has_a_page_that_says_more_than_its_title() -> None:
    thin = [c.code for c in installed_checks().checks if c.distribution == "qlora-doctor" and "\n\n" not in c.doc]
    assert thin == []


def test_the_page_of_the_tables_is_not_stale_and_every_known_bad_pair_has_its_source() -> None:
    assert stale(DOCS, table_page()) == [], "run `make docs`"
    _, _, below = table_page()["tables.md"].partition("### bad_pair")
    rows = [line.split(" | ") for line in below.partition("###")[0].splitlines() if line.startswith("| `")]
    assert len(rows) == len(tables.rows("matrix.toml", "bad_pair")) > 10
    names = next(line for line in below.splitlines() if line.startswith("| left")).strip("| ").split(" | ")
    assert all(len(row) == len(names) and row[names.index("source")] for row in rows)


def test_the_pages_of_the_symptoms_are_not_stale() -> None:
    assert stale(DOCS, symptom_pages(SIGNATURES)) == [], "run `make docs`"


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        (r"CUDA (Setup|SETUP) failed", ("CUDA Setup failed", "CUDA SETUP failed")),
        (r"libbitsandbytes_\w+\.so", (f"libbitsandbytes_ {GAP}.so",)),
        (r"exit code\b:? *\(?(139|-11)\b", ("exit code 139", "exit code -11")),
        (r"'[^']+' object has no attribute", (f"' {GAP}' object has no attribute",)),
    ],
)
def test_a_pattern_is_shown_as_the_messages_it_matches(pattern: str, shown: tuple[str, ...]) -> None:
    assert readings(pattern) == shown


def test_every_message_that_is_written_out_in_full_is_one_that_its_signature_matches() -> None:
    wrong, tried = [], 0
    for signature in SIGNATURES:
        # What a pattern asks of the text around it is not part of the message.
        for pattern in (p for p in signature.patterns if "(?!" not in p and "(?<!" not in p):
            for text in (t for t in readings(pattern) if GAP not in t):
                tried += 1
                # A space at the edge of a pattern ends a word there, and is not shown.
                fits = compiled(pattern).search(text) or compiled(pattern).search(f" {text} ")
                wrong += [] if fits else [(signature.id, text)]
    assert wrong == [] and tried > 1000


def test_every_page_of_a_symptom_holds_the_words_that_a_search_needs() -> None:
    for signature in SIGNATURES:
        text = " ".join(messages(signature)).lower()
        for pattern in signature.patterns:
            telling = [word.decode() for word in words_of(pattern) or () if word != b"non-ascii"]
            assert not telling or any(word in text for word in telling), (signature.id, pattern)


def test_the_text_of_a_plug_in_cannot_become_markup() -> None:
    cause = Cause("hostile", "<script>alert(1)</script> [x](javascript:1) *a*", "use `a*b` | c")
    shown = page(Signature("hostile", "other", ("bad (news|luck)",), (cause,), "<b>"))
    assert "<script" not in shown.replace(r"\<script", "") and r"\[x\]" in shown
    assert r"use `a*b` \| c" in shown
    assert "bad news\nbad luck" in shown


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_pasted_message_finds_its_symptom_in_the_browsers_language(tmp_path: Path) -> None:
    (tmp_path / "patterns.js").write_text(data(SIGNATURES), encoding="utf-8")
    shutil.copy(DOCS / "assets" / "symptoms.js", tmp_path)
    asked = [[s.id, text] for s in SIGNATURES for text in messages(s) if GAP not in text]
    pasted = 'Traceback:\n  File "x.py"\nRuntimeError: "normal_kernel_cpu" not implemented for \'Char\'\n+ ~ ^ exit: 1'
    near = "the kernel named normal is not implemented for Char weights"
    (tmp_path / "run.js").write_text(
        "globalThis.window = globalThis; require('./patterns.js'); delete globalThis.window;\n"
        "const {find, searchable} = require('./symptoms.js');\n"
        "const all = globalThis.QLORA_SYMPTOMS, input = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        "const missed = input.asked.filter(([id, text]) => { const r = find(all, text + '\\n ' + text + ' ');\n"
        "  return !(r.sure && r.found.some((s) => s.id === id)); });\n"
        "const pasted = find(all, input.pasted), near = find(all, input.near), none = find(all, 'zzqx');\n"
        "console.log(JSON.stringify({missed, pasted: [pasted.sure, pasted.found[0].id], near: near.sure,\n"
        "  nearest: near.found.map((s) => s.id), none: none.found, words: searchable(all, input.pasted),\n"
        "  plain: searchable(all, 'zzqx: a new-thing + is ~not^ *known.')}));\n",
        encoding="utf-8",
    )
    given = json.dumps({"asked": asked, "pasted": pasted, "near": near})
    done = subprocess.run(
        ["node", "run.js"], input=given, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    ahead = {s.id for s in SIGNATURES if any("(?!" in p or "(?<!" in p for p in s.patterns)}
    assert [one for one in seen["missed"] if one[0] not in ahead] == []
    wanted = next(s.id for s in SIGNATURES if s.matches(pasted))
    assert seen["pasted"] == [True, wanted]
    assert seen["near"] is False and wanted in seen["nearest"]
    assert seen["none"] == []
    assert seen["words"] == title(next(s for s in SIGNATURES if s.id == wanted))
    assert seen["plain"] == "zzqx new thing known"


@pytest.mark.skipif(
    find_spec("rich") is None or sys.platform == "win32", reason="needs rich (the extra docs), and a pty"
)
def test_no_picture_is_stale() -> None:
    from qlora_doctor.docs.pictures import pictures

    made = pictures(ROOT)
    assert stale(DOCS, made) == [], "run `make docs`"
    for name, text in made.items():
        hosts = set(re.findall(r"https?://([\w.-]+)", text)) if name.endswith(".svg") else set()
        assert hosts <= {"www.w3.org"}, name
        assert str(ROOT) not in text, name


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    broken = []
    for path in sorted(DOCS.rglob("*.md")):
        for link in links(path):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                broken.append((str(path.relative_to(DOCS)), link))
    assert broken == []


def test_the_documents_name_only_checks_and_commands_that_exist() -> None:
    codes = {c.code for c in installed_checks().checks}
    for path in (ROOT / "README.md", *WRITTEN):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"\bQD\d{3}\b", text)) - codes == set(), path
        assert set(re.findall(r"qlora-doctor ([a-z]+)\b", text)) - set(COMMANDS) == set(), path


@pytest.mark.parametrize("name", ["README.md", "docs/start.md"])
def test_the_reports_in_a_document_are_what_the_doctor_prints(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "qlora-doctor check train.py --facts" in text
    assert with_reports(text, ROOT) == text, "run `make docs`"


@pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("material") is None, reason="needs mkdocs-material (the extra docs)"
)
def test_the_site_is_built_without_a_warning_and_its_search_knows_the_symptoms(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    found = {entry["location"]: entry["text"] + entry["title"] for entry in index}
    assert {f"symptoms/{s.id}/" for s in SIGNATURES} <= set(found)
    for signature in SIGNATURES:
        told = found[f"symptoms/{signature.id}/"].lower()
        words = [word.decode() for p in signature.patterns for word in words_of(p) or () if word != b"non-ascii"]
        assert not words or any(word in told for word in words), signature.id
    assert "normal_kernel_cpu" in found["symptoms/init-on-quantised/"]
