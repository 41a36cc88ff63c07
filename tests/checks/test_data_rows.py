"""QD706 to QD726: facts of data in, findings out; each with a near miss that is silent."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import data_content, data_images, data_rows
from qlora_doctor.facts import DataFacts, Facts, Unknown
from qlora_doctor.registry import Check
from qlora_doctor.testing import data, findings, outcome

CHECKS = {check.code: check for check in (*data_rows.CHECKS, *data_images.CHECKS, *data_content.CHECKS)}


def said(check: Check, *given: DataFacts) -> list[str]:
    return [finding.severity for finding in findings(check, Facts(data=given))]


ENCODED: dict[str, Any] = {"max_length": 512, "tokens": 900, "supervised": 300, "lengths": {"512": 90, "1024": 10}}
CASES = [
    ("QD706", data(("unreadable", 1)), ["error"]),
    ("QD706", data(rows=0), ["error"]),
    ("QD706", data(), []),
    ("QD707", data(("malformed", 1)), ["error"]),
    ("QD707", data(("not text", 3)), ["error"]),
    ("QD707", data(("empty answer", 3), ("preference", 1)), []),
    ("QD708", data(("preference", 100)), ["error"]),
    ("QD708", data(("malformed", 2)), []),
    ("QD709", data(("empty answer", 1)), ["warning"]),
    ("QD709", data(("empty answer", 51)), ["error"]),
    ("QD709", data(("empty question", 9)), []),
    ("QD710", data(("no answer", 2)), ["error"]),
    ("QD710", data(("empty answer", 2)), []),
    ("QD711", data(("masked", 100), kept=0, **ENCODED), ["error"]),
    ("QD711", data(("masked", 60), ("too long", 40), kept=0, **ENCODED), ["error"]),
    ("QD711", data(("masked", 1), kept=99, **ENCODED), ["warning"]),
    ("QD711", data(("masked", 1), ("too long", 99), kept=0, **ENCODED), ["warning"]),
    ("QD711", data(kept=100, **ENCODED), []),
    ("QD712", data(("too long", 1), kept=99, **ENCODED), ["info"]),
    ("QD712", data(("too long", 5), kept=95, **ENCODED), ["warning"]),
    ("QD712", data(("too long", 60), kept=40, **ENCODED), ["warning"]),
    ("QD712", data(("too long", 100), kept=0, **ENCODED), ["error"]),
    ("QD712", data(("too long", 1), kept=99, too_long="refuse", **ENCODED), ["error"]),
    ("QD712", data(kept=100, too_long="refuse", **ENCODED), []),
    ("QD713", data(("image missing", 1)), ["error"]),
    ("QD713", data(("image outside", 1), ("image address", 1)), ["error"]),
    ("QD713", data(("image huge", 1)), []),
    ("QD714", data(("image broken", 1)), ["error"]),
    ("QD714", data(("image missing", 1)), []),
    ("QD715", data(("image huge", 1)), ["warning"]),
    ("QD715", data(("image broken", 1)), []),
    ("QD716", data(("placeholders", 1)), ["error"]),
    ("QD716", data(("placeholder without image", 1)), ["warning"]),
    ("QD716", data(("image put first", 9)), []),
    ("QD717", data(("cannot be encoded", 1), kept=99, **ENCODED), ["warning"]),
    ("QD717", data(("cannot be encoded", 51), kept=49, **ENCODED), ["error"]),
    ("QD717", data(("turn order", 9)), []),
    ("QD718", data(("image put first", 9)), ["info"]),
    ("QD718", data(("placeholders", 9)), []),
    ("QD719", data(("duplicate", 9)), ["info"]),
    ("QD719", data(("duplicate", 10)), ["warning"]),
    ("QD719", data(("contradiction", 10)), []),
    ("QD720", data(("leak", 1)), ["warning"]),
    ("QD720", data(("near leak", 1)), ["warning"]),
    ("QD720", data(("duplicate", 5), eval_rows=5), []),
    ("QD721", data(("damaged text", 1)), ["warning"]),
    ("QD721", data(("damaged text", 1), rows=200), ["info"]),
    ("QD721", data(encodings={"d.jsonl": "GBK"}), []),
    ("QD722", data(("thinking", 100), template_thinks=False), ["warning"]),
    ("QD722", data(("thinking", 50), template_thinks=True), ["info"]),
    ("QD722", data(("thinking", 100), template_thinks=True), []),
    ("QD722", data(("thinking", 100)), []),
    ("QD722", data(template_thinks=False), []),
    ("QD723", data(("contradiction", 1)), ["info"]),
    ("QD723", data(("contradiction", 20)), ["warning"]),
    ("QD723", data(("duplicate", 20)), []),
    ("QD724", data(("turn order", 1)), ["info"]),
    ("QD724", data(("turn order", 5)), ["warning"]),
    ("QD724", data(("no answer", 5)), []),
    ("QD725", data(("empty question", 1)), ["warning"]),
    ("QD725", data(("empty answer", 1)), []),
    ("QD726", data(encodings={"d.jsonl": "GBK"}), ["info"]),
    ("QD726", data(("damaged text", 1)), []),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{n}")
def test_a_fault_of_data_has_the_severity_of_its_effect(case: int) -> None:
    code, given, severities = CASES[case]
    assert said(CHECKS[code], given) == severities


def test_every_check_of_rows_has_a_case_that_finds_and_one_that_is_silent() -> None:
    for code in CHECKS:
        assert {bool(severities) for c, _, severities in CASES if c == code} == {True, False}, code


@pytest.mark.parametrize("code", sorted(CHECKS))
def test_data_that_nobody_read_is_unknown_and_data_that_nobody_named_is_skipped(code: str) -> None:
    assert outcome(CHECKS[code], Facts(data=Unknown("no right to read"))) == "unknown"  # type: ignore[arg-type]
    assert outcome(CHECKS[code], Facts()) == "skipped"


def test_each_set_of_data_is_judged_on_its_own() -> None:
    assert said(CHECKS["QD707"], data(("malformed", 1)), data(), data(("malformed", 2))) == ["error", "error"]


def test_the_first_rows_are_named_and_the_others_counted() -> None:
    (finding,) = findings(CHECKS["QD710"], Facts(data=(data(("no answer", 9)),)))
    assert "9 of 100 rows" in finding.text and "d.jsonl rows 1, 2, 3, 4, 5 and 4 more" in finding.text


def test_a_row_in_which_nothing_is_learned_is_not_told_where_the_file_could_not_be_read() -> None:
    from qlora_doctor.judge import judge

    given = data(("unreadable", 1), ("masked", 1))
    verdict = judge([CHECKS["QD706"], CHECKS["QD711"]], Facts(data=(given,)))
    assert {f.code for f in verdict.findings} == {"QD706"}
