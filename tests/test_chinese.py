"""Chinese: the catalogue is whole, the report is Chinese where it should be, and stays English where a program reads it."""

from __future__ import annotations

import json
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_doctor import i18n, messages
from qlora_doctor.cli import main
from qlora_doctor.docs import OURS, stale, with_reports
from qlora_doctor.docs import chinese as chinese_pages
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.logs.signatures import installed_signatures
from qlora_doctor.registry import Check, installed_checks
from qlora_doctor.report.columns import table, width, wrap

ROOT = Path(__file__).parents[1]
PLANTED = ROOT / "examples" / "planted"


@pytest.fixture
def chinese() -> Iterator[None]:
    i18n.use("zh_CN")
    yield
    i18n.use("en")


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    i18n.use("en")


def fields(template: str) -> list[tuple[str, str]]:
    """The fields of a template with their conversions; sorted, as another language has another order of words."""
    return sorted((name, conversion or "") for _, name, _, conversion in parsed(template) if name is not None)


def parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError:  # a sentence with a brace of its own is never filled in
        return []


def test_every_message_of_the_code_is_translated() -> None:
    known = {m.id: m.string for m in messages.catalogue()}
    assert sorted(text for text in messages.messages() if not known.get(text)) == []


def test_no_message_is_fuzzy_and_none_is_left_of_code_that_is_gone() -> None:
    catalogue, wanted = messages.catalogue(), messages.messages()
    assert [m.id for m in catalogue if m.id and m.fuzzy] == []
    assert [m.id for m in catalogue if m.id and m.id not in wanted] == []


def test_a_translation_has_the_fields_of_its_message() -> None:
    wrong = [m.id for m in messages.catalogue() if m.id and m.string and fields(m.id) != fields(m.string)]
    assert wrong == []


def test_a_translation_has_no_fullwidth_brackets_in_its_commands_and_no_space_at_its_ends() -> None:
    for message in messages.catalogue():
        if message.id and message.id == message.id.strip() and message.string:
            assert message.string == message.string.strip(), message.id
        for command in message.string.split("`")[1::2]:
            assert not set(command) & set("（），：；"), message.string


def test_the_compiled_catalogue_is_that_of_the_source() -> None:
    assert messages.PO.with_suffix(".mo").read_bytes() == messages.compiled(messages.catalogue())


@pytest.mark.parametrize(
    ("asked", "environment", "language"),
    [
        ("", {}, "en"),
        ("", {"LANG": "zh_CN.UTF-8"}, "zh_CN"),
        ("", {"LANG": "zh_SG.UTF-8"}, "zh_CN"),
        ("", {"LANG": "zh_TW.UTF-8"}, "en"),
        ("", {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ("", {"LANG": "de_DE.UTF-8", "LANGUAGE": "zh"}, "en"),
        ("", {"LANG": "zh_CN.UTF-8", "QLORA_DOCTOR_LANG": "en"}, "en"),
        ("", {"LANG": "C", "QLORA_DOCTOR_LANG": "zh"}, "zh_CN"),
        ("en", {"QLORA_DOCTOR_LANG": "zh"}, "en"),
        ("zh-Hans", {}, "zh_CN"),
    ],
)
def test_the_language_is_what_is_asked_then_the_variable_then_the_locale(
    asked: str, environment: dict[str, str], language: str
) -> None:
    assert i18n.chosen(asked, environment) == language


def test_a_chinese_locale_on_a_terminal_without_chinese_characters_gets_english() -> None:
    assert i18n.chosen("", {"LANG": "zh_CN.UTF-8"}, can_show=lambda text: False) == "en"
    assert i18n.chosen("zh", {}, can_show=lambda text: False) == "zh_CN"


def test_lang_may_stand_anywhere_but_what_follows_run_is_the_users() -> None:
    assert i18n.asked_for(["check", "--lang", "zh", "a.py"]) == ("zh", ["check", "a.py"])
    assert i18n.asked_for(["--lang=zh", "list"]) == ("zh", ["list"])
    assert i18n.asked_for(["run", "python", "t.py", "--lang", "de"]) == ("", ["run", "python", "t.py", "--lang", "de"])


@pytest.mark.usefixtures("chinese")
def test_a_finding_is_told_in_chinese_with_the_phrases_in_its_evidence() -> None:
    finding = Finding(
        "{gpu} is in Exclusive mode: one process at a time can use it, {state}. A second one fails with 'devices are "
        "busy or unavailable'. End the first one, or ask an administrator for `{command}`.",
        {"gpu": "GPU 0", "state": "and it is free now", "command": "nvidia-smi -c DEFAULT"},
    )
    text = i18n.finding_text(finding)
    assert "独占模式" in text and "目前空闲" in text and "`nvidia-smi -c DEFAULT`" in text


@pytest.mark.usefixtures("chinese")
def test_a_sentence_that_was_filled_in_elsewhere_is_recognised() -> None:
    assert i18n.said(PipRequirement("peft>=0.18").title) == "安装 peft>=0.18"
    assert i18n.said(Advice("update the NVIDIA driver to 580 or newer").title) == "把 NVIDIA 驱动更新到 580 或更新"
    assert i18n.said("Check the network") == i18n.said("check the network") == "请检查网络"


@pytest.mark.usefixtures("chinese")
def test_a_remark_behind_a_field_is_not_taken_for_a_part_of_it() -> None:
    plan = i18n.said("the plan for this environment (a dry run: nothing is changed; --apply carries it out)")
    assert plan == "本环境 的修复计划（试演：什么都不会改；--apply 才会执行）"


@pytest.mark.usefixtures("chinese")
def test_a_text_of_nobody_here_stays_as_it_is() -> None:
    for text in ("", "llava-hf/llava-1.5-7b-hf", "a plug-in's own sentence about {braces}", "x\ny"):
        assert i18n.said(text) == text


@pytest.mark.usefixtures("chinese")
def test_columns_of_chinese_end_where_those_of_latin_do() -> None:
    lines = table([["not installed", "|"], ["torch", "|"], ["driver and allocator", "|"]])
    assert lines[0].startswith("未安装")
    assert len({width(line) for line in lines}) == 1
    assert all(width(line) <= 20 for line in wrap("the newest that goes with the rest", 20))


def test_english_is_untouched() -> None:
    assert i18n.said("not installed") == "not installed"
    assert i18n.tr("{number} errors", number=2) == "2 errors"


def checked(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    main(["check", str(PLANTED / "train.py"), "--facts", str(PLANTED / "facts.json"), *more])
    return capsys.readouterr().out


def test_the_report_of_the_planted_project_has_no_english_sentence_left(capsys: pytest.CaptureFixture[str]) -> None:
    out = checked(capsys, "--lang", "zh", "--select", "QD002,QD004,QD104,QD110,QD121,QD302,QD601,QD621,QD101")
    lines = [line for line in out.splitlines() if line.strip() and "$" not in line and "qlora-doctor" not in line]
    assert [line for line in lines if not any("\u4e00" <= char <= "\u9fff" for char in line)] == []


def test_json_is_the_same_in_every_language(capsys: pytest.CaptureFixture[str]) -> None:
    english, chinese_ = checked(capsys, "--format", "json"), checked(capsys, "--format", "json", "--lang", "zh")
    assert json.loads(english)["findings"] != []
    assert chinese_ == english


def test_help_and_errors_are_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys; from qlora_doctor.cli import main; sys.exit(main(sys.argv[1:]))"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "QLORA_DOCTOR_LANG": "zh", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)

    shown = run("check", "--help").stdout
    assert "用法：" in shown and "不访问网络" in shown and "判断本环境" in shown
    failed = run("check", "no-such-file.py")
    assert failed.returncode == 2
    assert failed.stderr.startswith("错误：") and "没有这个文件或文件夹" in failed.stderr


def test_a_run_in_english_reads_no_catalogue() -> None:
    program = (
        "import builtins, sys\n"
        "real, opened = builtins.open, []\n"
        "builtins.open = lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k)\n"
        "from qlora_doctor.cli import main\n"
        "main(['list'])\n"
        "print('OPENED', [f for f in opened if f.endswith('.mo')], 'qlora_doctor.messages' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "OPENED [] False"


def test_the_chinese_pages_are_those_of_the_catalogue() -> None:
    assert stale(ROOT / "docs" / "zh", chinese_pages.wanted()) == []


def test_the_chinese_readme_shows_what_the_command_prints() -> None:
    text = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    assert with_reports(text, ROOT) == text


def test_every_category_and_family_of_the_pages_has_a_chinese_name() -> None:
    assert {s.category for s in installed_signatures().all} <= set(chinese_pages.CATEGORIES)
    assert {c.code[:3] for c in installed_checks().checks if c.distribution == "qlora-doctor"} <= set(
        chinese_pages.FAMILIES
    )


def test_every_check_is_explained_in_chinese_as_its_docstring_is_today() -> None:
    assert chinese_pages.lagging() == []


@pytest.mark.parametrize(
    "check", [c for c in installed_checks().checks if c.distribution == OURS], ids=lambda c: c.code
)
def test_the_chinese_explanation_of_a_check_keeps_its_names_and_versions(check: Check) -> None:
    written = chinese_pages.explanation(check)
    english = " ".join(check.doc.partition("\n\n")[2].split())  # its first paragraph is in the catalogue
    facts = {*re.findall(r"`[^`]+`", english), *re.findall(r"\b\d+\.\d+(?:\.\d+)?\b", english)}
    facts = {fact for fact in facts if '"' not in fact}  # a quotation that holds a backtick itself
    assert sorted(fact for fact in facts if fact.strip("`") not in written) == []
