"""The doctor in Python: what `import qlora_doctor` gives, and what its answers show."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import qlora_doctor
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts
from qlora_doctor.testing import facts

LOAD = """
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
model = AutoModelForCausalLM.from_pretrained(
    "<script>alert(1)</script>", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp5"),
)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with caches of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "here"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An environment of packages alone."""
    path = tmp_path / "facts.json"
    stack = {"transformers": "5.23.0", "bitsandbytes": "0.50.2", "accelerate": "1.15.0", "torch": "2.13.0"}
    path.write_text(json.dumps(facts(stack, gpus=()).to_wire()), encoding="utf-8")
    return path


def check_html(text: str) -> list[str]:
    """The tags of a piece of HTML whose tags are all closed in their order."""
    seen: list[str] = []
    still_open: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            seen.append(tag)
            still_open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert still_open.pop() == tag

    Reader().feed(text)
    assert still_open == []
    return seen


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys; old = set(sys.modules); import qlora_doctor; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["qlora_doctor"]


def test_the_functions_are_there_by_name_and_in_dir() -> None:
    for name in qlora_doctor.__all__:
        assert getattr(qlora_doctor, name)
        assert name in dir(qlora_doctor)
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        qlora_doctor.chekc  # type: ignore[attr-defined]  # noqa: B018


def test_no_function_has_the_name_of_a_module_that_would_take_its_place() -> None:
    modules = {module.name for module in pkgutil.iter_modules(qlora_doctor.__path__)}
    assert modules.isdisjoint(qlora_doctor.__all__)


def test_the_function_check_is_not_the_decorator_that_declares_a_check() -> None:
    from qlora_doctor import check
    from qlora_doctor.registry import check as decorator

    assert qlora_doctor.check is check is not decorator


def test_a_report_holds_what_the_command_line_says(saved: Path) -> None:
    from qlora_doctor.cli import main

    Path("run.py").write_text(LOAD, encoding="utf-8")
    report = qlora_doctor.check("run.py", facts=saved)
    assert "QD115" in {f.code for f in report.findings}
    assert (report.ok, report.exit_code) == (False, 1)
    assert {o.outcome for o in report.outcomes} >= {"ok", "found"}
    assert report.facts.packages.find("torch")
    assert report.to_dict()["findings"] == json.loads(json.dumps(report.to_dict()["findings"]))
    assert report.exit_code == main(["check", "run.py", "--facts", str(saved), "--format", "json"])


def test_select_and_fail_on_mean_what_they_mean_on_the_command_line(saved: Path) -> None:
    Path("run.py").write_text(LOAD, encoding="utf-8")
    one = qlora_doctor.check("run.py", facts=saved, select="QD115,QD110")
    assert {o.code for o in one.outcomes} == {"QD115", "QD110"}
    assert {o.code for o in qlora_doctor.check("run.py", facts=saved, select=["QD110"]).outcomes} == {"QD110"}
    assert not qlora_doctor.check("run.py", facts=saved, select="QD110", fail_on="info").ok
    assert qlora_doctor.check("run.py", facts=saved, select="QD110").ok


def test_the_settings_of_the_project_count(saved: Path) -> None:
    Path("run.py").write_text(LOAD, encoding="utf-8")
    Path("pyproject.toml").write_text('[tool.qlora-doctor]\nselect = ["QD110"]\n', encoding="utf-8")
    assert {o.code for o in qlora_doctor.check("run.py", facts=saved).outcomes} == {"QD110"}


def test_a_mistake_is_an_exception_with_its_message() -> None:
    with pytest.raises(UsageError, match="no such file"):
        qlora_doctor.check("absent.py")
    with pytest.raises(UsageError, match="did you mean QD1"):
        qlora_doctor.check(select="QD10l", offline=True)
    with pytest.raises(UsageError, match="did you mean 'length'"):
        qlora_doctor.plan("Qwen/Qwen3-8B", "8gb", lenght=5)


def test_the_repr_is_the_report_as_text(saved: Path) -> None:
    Path("run.py").write_text(LOAD, encoding="utf-8")
    report = qlora_doctor.check("run.py", facts=saved)
    assert repr(report) == str(report)
    assert "QD115 quantization-option-of-wrong-type" in str(report)
    assert max(map(len, report.text(columns=60).splitlines())) < max(map(len, report.text(columns=None).splitlines()))


def test_a_notebook_gets_html_and_text_of_every_answer(saved: Path) -> None:
    Path("run.py").write_text(LOAD, encoding="utf-8")
    answers = [
        qlora_doctor.check("run.py", facts=saved),
        qlora_doctor.plan("Qwen/Qwen3-8B", "8gb", fit=True),
        qlora_doctor.diagnose("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"),
    ]
    for answer in answers:
        bundle = answer._repr_mimebundle_()
        assert bundle == {"text/plain": str(answer), "text/html": answer._repr_html_()}
        assert list(answer._repr_mimebundle_(include=["text/html"])) == ["text/html"]
        assert list(answer._repr_mimebundle_(exclude=["text/html"])) == ["text/plain"]
        assert "script" not in check_html(bundle["text/html"])


def test_what_a_script_and_a_log_say_is_escaped_in_the_html(saved: Path) -> None:
    Path("run.py").write_text(LOAD, encoding="utf-8")
    html = qlora_doctor.check("run.py", facts=saved)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    log = "CUDA out of memory. <img src=x onerror=alert(1)> \x1b[31m \u202etxt.exe\n"
    html = qlora_doctor.diagnose("torch.cuda.OutOfMemoryError: " + log)._repr_html_()
    assert check_html(html).count("img") == 0
    assert "&lt;img src=x" in html
    assert not re.search("[\x1b\u202e]", html)


def test_a_token_in_a_log_is_not_saved_with_the_notebook() -> None:
    answer = qlora_doctor.diagnose(
        "OSError: hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 CUDA out of memory. Tried to allocate 2 GiB\n"
    )
    bundle = answer._repr_mimebundle_()
    assert "out of memory" in bundle["text/plain"]
    assert "out of memory" in bundle["text/html"]
    assert "hf_AbCd" not in bundle["text/plain"] + bundle["text/html"]


def test_a_token_in_a_script_is_not_saved_with_the_notebook(saved: Path) -> None:
    token = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
    Path("run.py").write_text(LOAD.replace("<script>alert(1)</script>", token), encoding="utf-8")
    bundle = qlora_doctor.check("run.py", facts=saved)._repr_mimebundle_()
    assert "QD115" in bundle["text/plain"]
    assert token not in bundle["text/plain"] + bundle["text/html"]


def test_the_reader_is_answered_in_the_language_of_the_environment() -> None:
    program = "import qlora_doctor; print(qlora_doctor.check(offline=True, select='QD001'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "QLORA_DOCTOR_LANG": "zh_CN", "PYTHONIOENCODING": "utf-8"},
    )
    assert re.search("[\u4e00-\u9fff]", done.stdout)


def test_the_html_brings_no_script_and_asks_no_network(saved: Path) -> None:
    Path("run.py").write_text(LOAD.replace("<script>alert(1)</script>", "gpt2"), encoding="utf-8")
    html = qlora_doctor.check("run.py", facts=saved)._repr_html_()
    assert not re.search(r"(src|href)=|url\(|@import|\bon\w+=", html)


def test_in_a_notebook_a_package_is_installed_by_its_own_magic(elsewhere: Path) -> None:
    Path("run.py").write_text("import trl\n", encoding="utf-8")
    html = qlora_doctor.check("run.py", select="QD009", offline=True)._repr_html_()
    assert "%pip install" in html
    assert "python -m pip" not in html


def test_a_plan_says_whether_a_run_fits_and_what_would() -> None:
    tight = qlora_doctor.plan("Qwen/Qwen3-8B", "6gb")
    assert (tight.verdict, tight.ok, tight.proposal) == ("does not fit", False, None)
    wide = qlora_doctor.plan("Qwen/Qwen3-8B", "24gb", length=1024)
    assert (wide.verdict, wide.ok, wide.settings.length) == ("fits", True, 1024)
    assert wide.breakdown.low <= wide.breakdown.expected <= wide.breakdown.high < wide.room
    assert "Qwen/Qwen3-8B" in str(wide)


def test_a_log_is_read_from_a_file_from_text_or_from_an_exception(tmp_path: Path) -> None:
    words = "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    file = tmp_path / "run.log"
    file.write_text(words, encoding="utf-8")
    from_file = qlora_doctor.diagnose(file)
    assert from_file.causes == qlora_doctor.diagnose(words).causes != ()
    error = RuntimeError(words.strip())
    assert from_file.causes[0] in qlora_doctor.diagnose(error).causes
    assert not from_file.ok
    assert qlora_doctor.diagnose("all is well\n").ok
    with pytest.raises(UsageError, match="add a line break"):
        qlora_doctor.diagnose("CUDA out of memory")


def test_facts_are_data_that_can_be_read_back() -> None:
    found = qlora_doctor.read_facts(offline=True)
    assert found.interpreter.version == ".".join(map(str, sys.version_info[:3]))
    assert Facts.from_wire(json.loads(json.dumps(found.to_wire()))) == found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on exceptions came with Python 3.11")
def test_explain_errors_is_reached_from_the_package() -> None:
    with pytest.raises(RuntimeError) as caught, qlora_doctor.explain_errors():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert any("qlora-doctor" in note for note in caught.value.__notes__)
