"""The scripts of the corpus, which were not written for repair: every plan is carried out, judged and taken back."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from qlora_doctor.examine import Examination, Question
from qlora_doctor.facts import Facts
from qlora_doctor.gather.targets import read_targets
from qlora_doctor.judge import Case, judge
from qlora_doctor.registry import installed_checks
from qlora_doctor.repair.apply import apply_files, open_journal, undo_files
from qlora_doctor.repair.rounds import make_plan
from qlora_doctor.repair.text import decode, without_magics

CORPUS = Path(__file__).parent.parent / "corpus"
SCRIPTS = sorted(p for p in (CORPUS / "scripts").iterdir() if p.suffix in (".py", ".ipynb", ".yaml", ".json"))
FACTS = sorted((CORPUS / "facts").glob("*.json"))
# The reasons for which a finding may stay; anything else is an edit that repair could not make.
EXPECTED = ("only you can do this", "no automatic fix", "needs a change of packages", "shown only")
CHECKS = tuple(c for c in installed_checks().checks if not c.code.startswith(("QD0", "QD2", "QD4")))


def examined(path: Path, facts: Facts) -> Examination:
    cases = tuple(Case(requests, script) for script, requests in read_targets([str(path)]))
    return Examination(Question((str(path),)), facts, cases, CHECKS, judge(CHECKS, facts, cases))


@pytest.mark.parametrize("facts_file", FACTS, ids=lambda p: p.stem)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_of_the_corpus_is_repaired_and_undone(script: Path, facts_file: Path, tmp_path: Path) -> None:
    facts = Facts.from_wire(json.loads(facts_file.read_text()))
    shutil.copytree(CORPUS / "scripts", tmp_path / "scripts")
    path = tmp_path / "scripts" / script.name
    before = path.read_bytes()
    plan = make_plan(examined(path, facts), unsafe=True, pip=False)
    assert plan.adds == ()
    folder, entry = open_journal(str(tmp_path), plan.files, [])
    apply_files(folder, entry, plan.files)
    if path.suffix == ".py":
        ast.parse(without_magics(decode(path.read_bytes())[0]))
    after = examined(path, facts)
    left = {item.finding.code: item.why for item in plan.remains}
    assert sorted({f.code for f in after.verdict.findings}) == sorted(left)
    assert all(any(word in why for word in EXPECTED) for why in left.values()), left
    assert make_plan(after, unsafe=True, pip=False).files == ()
    undo_files(folder, entry)
    assert path.read_bytes() == before
