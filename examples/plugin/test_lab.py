"""The tests of the plug-in: each check speaks where it should, is silent where it should, and its fix removes the finding."""

from __future__ import annotations

from qlora_doctor_lab import checkpoints_without_a_limit, lab_tools_that_cannot_resume

from qlora_doctor.testing import assert_fixed_by, facts, findings, train


def test_a_run_without_a_limit_is_found_and_the_fix_sets_one() -> None:
    run = train(settings={"output_dir": "out", "save_strategy": "epoch"})
    (found,) = findings(checkpoints_without_a_limit, facts(), run)
    assert found.text == "every checkpoint is kept, on a disk that is shared; pass save_total_limit=2"
    assert_fixed_by(checkpoints_without_a_limit, facts(), run)


def test_a_run_with_a_limit_or_without_saving_is_fine() -> None:
    for settings in ({"save_total_limit": 5}, {"save_strategy": "no"}):
        assert findings(checkpoints_without_a_limit, facts(), train(settings=settings)) == ()


def test_an_old_labtools_is_found_and_an_absent_one_is_not() -> None:
    assert findings(lab_tools_that_cannot_resume, facts({"labtools": "1.9"}))
    assert_fixed_by(lab_tools_that_cannot_resume, facts({"labtools": "1.9"}))
    assert findings(lab_tools_that_cannot_resume, facts({"labtools": "2.0"})) == ()
    assert findings(lab_tools_that_cannot_resume, facts({})) == ()
