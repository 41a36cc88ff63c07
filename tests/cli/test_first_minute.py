"""The first minute: no arguments, slips of the pen, help, completion, waiting, Ctrl-C, colours, Windows' paths."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qlora_core.cli import COMMANDS as CORE_COMMANDS
from qlora_core.cli import main as core
from qlora_core.cli.examples import EXAMPLES as CORE_EXAMPLES
from qlora_doctor import stage
from qlora_doctor.cli import COMMANDS, cli
from qlora_doctor.cli.examples import EXAMPLES
from qlora_doctor.cli.suggest import CORE
from qlora_doctor.gather.surroundings import ENTRIES, look
from qlora_doctor.report.shell import command_line

SCRIPT = "from transformers import AutoModel\nAutoModel.from_pretrained('gpt2')\n"


def write(path: str, text: str = "", changed: int = 1_000_000) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    os.utime(file, (changed, changed))
    return file


def offered(text: str) -> list[str]:
    """The commands of the first screen, without what they are for."""
    lines = text.partition("Next:\n")[2].partition("\n\n")[0].splitlines()
    return [re.split(r"\s{2,}", line.strip())[0] for line in lines]


# --- without arguments ---


def test_alone_it_says_what_it_is_and_offers_what_needs_nothing(doctor: Any) -> None:
    run = doctor()
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("qlora-doctor ")
    assert "4-bit fine-tuning" in run.out
    assert "In this folder" not in run.out
    assert offered(run.out) == ["qlora-doctor check", "qlora-doctor plan --gpu 8gb", "qlora-doctor setup my-env"]


def test_each_kind_of_thing_is_seen_and_gets_its_command(doctor: Any) -> None:
    write("train.py", SCRIPT, changed=5)
    write("train.log", "Killed\n", changed=9)
    write("data.jsonl", "{}\n")
    write("run.yaml", "base_model: gpt2\nlora_r: 8\n")
    write("my-adapter/adapter_config.json", "{}")
    write("output/checkpoint-20/trainer_state.json", "{}")
    write("models/llava/config.json", "{}")
    write("models/llava/model.safetensors")
    found = {thing.path.replace("\\", "/"): thing.kind for thing in look()}
    assert found == {
        "train.py": "script",
        "train.log": "log",
        "data.jsonl": "data",
        "run.yaml": "settings",
        "my-adapter": "adapter",
        "output/checkpoint-20": "checkpoint",
        "models/llava": "model",
    }
    text = doctor().out.replace("\\", "/")
    assert all(re.search(rf"^  {re.escape(path)}  +\w", text, re.MULTILINE) for path in found)
    assert offered(text) == [
        "qlora-doctor diagnose train.log",
        "qlora-doctor check train.py",
        "qlora-doctor fix train.py",
        "qlora-doctor check data.jsonl",
        "qlora-doctor check my-adapter",
        f"qlora-doctor check {'output/checkpoint-20'}",
    ]


def test_a_log_older_than_the_script_is_no_longer_the_first_question(doctor: Any) -> None:
    write("train.py", SCRIPT, changed=9)
    write("train.log", "Killed\n", changed=5)
    assert offered(doctor().out)[0] == "qlora-doctor check train.py"


def test_files_that_have_nothing_to_do_with_training_are_left_out(doctor: Any) -> None:
    write("app.py", "print('transform')\n")
    write("package.json", '{"name": "x", "dependencies": {}}')
    write("pyproject.toml", "[tool.x]\nbf16 = true\n")
    write("notes.txt", "transformers")
    write("venv/adapter_config.json", "{}")
    assert look() == ()


def test_a_model_is_no_model_without_weights_and_a_checkpoint_no_adapter(doctor: Any) -> None:
    write("settings/config.json", "{}")
    write("checkpoint-5/trainer_state.json", "{}")
    write("checkpoint-5/adapter_config.json", "{}")
    assert [(t.path, t.kind) for t in look()] == [("checkpoint-5", "checkpoint")]


def test_a_folder_of_many_files_is_not_read_to_its_end(doctor: Any) -> None:
    for number in range(ENTRIES + 50):
        Path(f"{number:05}.csv").touch()
    assert len(look()) == ENTRIES


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
def test_a_named_pipe_does_not_hold_the_first_screen(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.py")
    os.mkfifo(tmp_path / "train.log")
    command = [sys.executable, "-m", "qlora_doctor"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert "In this folder" not in done.stdout


def test_a_file_name_cannot_command_the_terminal(doctor: Any) -> None:
    if os.name == "nt":
        pytest.skip("no file can have such a name here")
    write("a\x1b[31m\x07red\r.jsonl", "{}")
    out = doctor().out
    assert "red" in out
    assert not re.search("[\x1b\x07\r]", out)


def test_an_offered_command_can_be_pasted_into_a_shell(doctor: Any) -> None:
    write("my run's.py", SCRIPT)
    line = offered(doctor().out)[0]
    if os.name != "nt":
        assert shlex.split(line) == ["qlora-doctor", "check", "my run's.py"]
    assert cli.make_context("qlora-doctor", shlex.split(line)[1:] if os.name != "nt" else ["check", "my run's.py"])


# --- slips of the pen ---


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["diagnos"], "did you mean 'diagnose'?"),
        (["QD101"], "qlora-doctor explain QD101"),
        (["quantized-load-without-dtype"], "qlora-doctor explain quantized-load-without-dtype"),
        (["Qwen/Qwen3-8B"], "qlora-doctor check --model Qwen/Qwen3-8B"),
        (["train.log"], "qlora-doctor diagnose train.log"),
        (["run.py"], "qlora-doctor check run.py"),
        (["absent.py"], "there is no such file"),
        (["--model", "x"], "qlora-doctor check --model"),
        (["--save", "x"], "qlora-doctor facts --save"),
        (["check", "--sellect", "QD1"], "--select"),
        (["explain", "QD1O1"], "did you mean QD1"),
        (["completion", "bahs"], "did you mean 'bash'?"),
        (["completion", "tcsh"], "bash, zsh or fish"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(doctor: Any, words: list[str], answer: str) -> None:
    write("run.py", SCRIPT)
    write("train.log")
    run = doctor(*words)
    assert (run.code, run.out) == (2, "")
    assert answer in run.err
    assert "Traceback" not in run.err


def test_a_command_of_the_other_program_is_answered_with_it(doctor: Any) -> None:
    assert sorted(CORE) == sorted(set(CORE_COMMANDS) - set(COMMANDS))
    run = doctor("train", "gpt2")
    assert (run.code, "qlora-core train" in run.err) == (2, True)
    answers = {word: CliRunner().invoke(core, [word]) for word in ("check", "trian")}
    assert [a.exit_code for a in answers.values()] == [2, 2]
    assert "qlora-doctor check" in answers["check"].output
    assert "did you mean 'train'?" in answers["trian"].output


def test_an_option_that_no_command_has_is_said_to_be_none(doctor: Any) -> None:
    run = doctor("--nonsense")
    assert run.code == 2
    assert "--nonsense" in run.err
    assert "comes after a command" not in run.err


# --- help ---


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_ends_with_examples_that_its_parser_takes(doctor: Any, name: str) -> None:
    run = doctor(name, "--help")
    assert run.code == 0
    assert "Examples:\n" in run.out
    assert len(EXAMPLES[name]) >= 1
    for line, why in EXAMPLES[name]:
        assert f"    # {why}\n    {line}" in run.out.replace("\r", "")
        for part in re.findall(r"qlora-doctor [^|>\"]*(?:\"[^\"]*\")?[^|>\")]*", line):
            words = shlex.split(part)
            command = import_module(COMMANDS[words[1]]).command
            assert isinstance(command.make_context(words[1], words[2:]), click.Context)


def test_no_example_is_of_a_command_that_is_gone() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(CORE_COMMANDS))
def test_the_help_of_a_command_of_the_core_ends_with_examples_that_its_parser_takes(name: str) -> None:
    command = import_module(CORE_COMMANDS[name]).command
    shown = CliRunner().invoke(core, [name, "--help"]).output
    assert len(CORE_EXAMPLES[name]) >= 1
    for line, why in CORE_EXAMPLES[name]:
        assert f"    # {why}\n    {line}" in shown
        program, word, *words = shlex.split(line)
        assert (program, word) == ("qlora-core", name)
        assert isinstance(command.make_context(name, words), click.Context)


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_printed_for_both_programs(doctor: Any, shell: str) -> None:
    run = doctor("completion", shell)
    assert run.code == 0
    for variable in ("_QLORA_DOCTOR_COMPLETE", "_QLORA_CORE_COMPLETE"):
        assert f"{variable}={shell}_complete" in run.out


def test_the_shell_is_known_by_its_variable(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert "fish_complete" in doctor("completion").out
    monkeypatch.delenv("SHELL")
    run = doctor("completion")
    assert (run.code, "name bash, zsh or fish" in run.err) == (2, True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_codes_and_options(doctor: Any, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "qlora-doctor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qlora_doctor "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    source = tmp_path / "completion.sh"
    source.write_text(doctor("completion", "bash").out, encoding="utf-8")

    def completed(*words: str) -> list[str]:
        line = (
            f"source {shlex.quote(str(source))}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
            '_qlora_doctor_completion qlora-doctor; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", line],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        )
        return [line for line in done.stdout.splitlines() if not line.startswith(("complete", "compopt"))]

    assert completed("qlora-doctor", "diag") == ["diagnose"]
    assert "QD101" in completed("qlora-doctor", "explain", "QD10")
    assert completed("qlora-doctor", "check", "--offl") == ["--offline"]


# --- a terminal ---

# Ctrl-C reaches only the process whose terminal it is.
OWN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # the tests may run where Ctrl-C is ignored, as in the background of a shell
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "qlora_doctor", *sys.argv[1:]])
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Runs a command on a terminal of its own; the answer has its output, its exit code and the terminal's modes."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    opened: list[int] = []

    class Terminal:
        def __init__(self, *words: str | Path, cwd: Path = tmp_path, **environ: str) -> None:
            self.master, self.slave = pty.openpty()
            opened.extend((self.master, self.slave))
            self.before = termios.tcgetattr(self.slave)
            self.text = ""
            self.process = subprocess.Popen(
                [sys.executable, "-c", OWN_TERMINAL, *map(str, words)],
                stdin=self.slave,
                stdout=self.slave,
                stderr=self.slave,
                cwd=cwd,
                env={
                    **os.environ,
                    "TERM": "xterm",
                    "XDG_CACHE_HOME": str(tmp_path / "cache"),
                    "NO_COLOR": "",
                    **environ,
                },
                start_new_session=True,
            )

        def read(self, until: str = "", seconds: float = 60) -> str:
            """All that is written until the process ends or, where it is given, until `until` is."""
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                ready, _, _ = select.select([self.master], [], [], 0.1)
                if ready:
                    self.text += os.read(self.master, 65536).decode("utf-8", "replace")
                elif self.process.poll() is not None:
                    break
                if until and until in self.text:
                    break
            return self.text

        def press_ctrl_c(self) -> None:
            os.write(self.master, b"\x03")

        @property
        def unchanged(self) -> bool:
            return bool(termios.tcgetattr(self.slave) == self.before)

    started: list[Terminal] = []

    def start(*words: str | Path, **options: Any) -> Terminal:
        started.append(Terminal(*words, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGKILL)
        one.process.wait()
    for number in opened:
        os.close(number)


@pytest.fixture
def slow_python(tmp_path: Path) -> Path:
    """An interpreter that takes its time to say what it is."""
    path = tmp_path / "slow-python"
    path.write_text(f'#!/bin/sh\nsleep 2\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def screen(text: str) -> list[str]:
    """What a terminal of 80 columns shows of `text`, line by line, with carriage returns obeyed."""
    shown = []
    for line in text.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        at = 0
        for char in line:
            if char == "\r":
                at = 0
                continue
            cells[at : at + 1] = [char]
            at += 1
        shown.append("".join(cells).rstrip())
    return shown


def test_what_takes_longer_than_a_second_is_told_on_a_terminal_and_wiped(terminal: Any, slow_python: Path) -> None:
    run = terminal("check", "--python", slow_python, "--offline", "--select", "QD001", NO_COLOR="1")
    text = run.read()
    assert run.process.wait() in (0, 1)
    assert re.search(r"\rlooking at .* \.\.\. 1 s", text)
    assert re.match(r"\d+ (error|warning|note)|nothing found", screen(text)[0])
    assert "looking at" not in "\n".join(screen(text))
    assert run.unchanged


def test_in_a_pipe_nothing_is_told_of_the_waiting(process: Any, slow_python: Path) -> None:
    run = process("check", "--python", slow_python, "--offline", "--select", "QD001")
    assert run.code in (0, 1)
    assert run.err == ""


def test_ctrl_c_leaves_the_terminal_as_it_was(terminal: Any, slow_python: Path) -> None:
    run = terminal("check", "--python", slow_python, "--offline")
    run.read(until=" 1 s")
    run.press_ctrl_c()
    text = run.read()
    assert run.process.wait() == 130
    assert [line for line in screen(text) if line][-1] in ("stopped", "^Cstopped")
    assert "Traceback" not in text
    assert "\x1b[?25l" not in text
    assert run.unchanged


def test_ctrl_c_at_a_question_leaves_the_terminal_as_it_was(terminal: Any, tmp_path: Path) -> None:
    program = "import sys, click; import qlora_doctor.cli.list as l\nl.command.callback = lambda **_: click.confirm('Sure?')\n"
    (tmp_path / "sitecustomize.py").write_text(program, encoding="utf-8")
    run = terminal("list", PYTHONPATH=str(tmp_path))
    run.read(until="Sure?")
    # One that comes before the question waits for its answer is noticed by Python with the next only.
    for _ in range(20):
        run.press_ctrl_c()
        if "stopped" in run.read(until="stopped", seconds=1):
            break
    assert "stopped" in run.text
    assert run.process.wait() == 130
    assert run.unchanged


def test_colours_are_for_a_terminal_that_wants_them(terminal: Any, process: Any) -> None:
    words = ("check", "--offline", "--select", "QD001", "--fail-on", "error")
    coloured = terminal(*words)
    assert "\x1b[" in coloured.read()
    plain = terminal(*words, NO_COLOR="1")
    assert "\x1b[" not in plain.read()
    assert "\x1b[" not in process(*words).out
    assert "\x1b[" not in terminal(*words, TERM="dumb").read()


def test_the_first_screen_fits_the_terminal(terminal: Any, tmp_path: Path) -> None:
    write(str(tmp_path / ("long-name-" * 20 + ".jsonl")), "{}")
    run = terminal(COLUMNS="60")
    lines = screen(run.read())
    assert max(len(line) for line in lines) <= 60
    assert [line for line in lines if line.endswith("…")] != []
    assert run.process.wait() == 0


# --- stages ---


def test_the_inner_stage_is_told_and_then_the_outer_one_again() -> None:
    told: list[str] = []
    stage.listen(told.append)
    try:
        with stage.stage("outer"), stage.stage("inner"):
            pass
        with pytest.raises(KeyError), stage.stage("failing"):
            raise KeyError
    finally:
        stage.listen(None)
    assert told == ["outer", "inner", "outer", "", "failing", ""]


def test_a_check_tells_what_it_reads_and_asks(doctor: Any, facts_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.py", SCRIPT)
    told: list[str] = []
    monkeypatch.setattr(stage, "listen", lambda listener: None)
    monkeypatch.setattr(stage, "_listener", told.append)
    doctor("check", "train.py", "--offline")
    assert [t for t in told if t] == [
        "reading train.py",
        "looking at this environment",
        "waiting for the Hub's answers",
        "judging",
    ]


# --- Windows ---


def test_a_printed_command_is_quoted_for_the_shell_that_will_read_it() -> None:
    words = ["qlora-doctor", "check", r"C:\Users\my name\run.py"]
    assert command_line(words, windows=True) == r'qlora-doctor check "C:\Users\my name\run.py"'
    assert shlex.split(command_line(words, windows=False)) == words


@pytest.mark.parametrize("path", [r"C:\Users\me\run.py", r"\\server\share\run.py", "C:run.py"])
def test_a_windows_path_is_a_path_and_shown_as_it_was_typed(doctor: Any, path: str) -> None:
    for words in (["check", path], [path], ["check", "--facts", path], ["diagnose", path]):
        run = doctor(*words)
        assert run.code == 2
        assert path in run.err
        assert "Traceback" not in run.err


def test_a_file_with_a_backslash_in_its_name_is_read(doctor: Any) -> None:
    if os.name == "nt":
        pytest.skip("a backslash parts folders here")
    write(r"C:\run.py", SCRIPT)
    run = doctor("check", r"C:\run.py", "--offline", "--format", "json")
    assert {f["location"]["path"] for f in run.json["findings"] if f["location"]} <= {r"C:\run.py"}
    assert run.code in (0, 1)
