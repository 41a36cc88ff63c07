"""Package fixes in a real environment: the solver first, one install, what is never touched, and the way back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from qlora_doctor.facts import Facts
from qlora_doctor.fix import PipRequirement
from qlora_doctor.gather import interpreters
from qlora_doctor.repair import pip, pips, solve

SELECT = ("--select", "QD001,QD002,QD003,QD004,QD007", "--offline")


def facts_of(environment: Any) -> Facts:
    return interpreters.other(environment.python, ["interpreter", "host", "packages"])


@pytest.fixture
def solving(environment: Any, monkeypatch: Any) -> Any:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(environment.index.path)}.items():
        monkeypatch.setenv(name, value)
    facts = facts_of(environment)
    return lambda *requirements: solve.solver_for(facts, environment.python)([PipRequirement(r) for r in requirements])


def test_the_solver_moves_what_is_asked_and_leaves_the_rest(solving: Any, environment: Any) -> None:
    solution = solving("bitsandbytes>=0.46.1", "peft>=0.20")
    moved = pips.changed(facts_of(environment).packages, solution.packages)
    assert (moved, solution.packages.find("torch").version) == (["bitsandbytes", "peft"], "2.13.0+cpu")
    assert all(solution.sizes[name] for name in moved)
    assert environment.versions()["peft"] == "0.17.0"


def test_a_set_that_cannot_be_solved_says_why(solving: Any) -> None:
    solution = solving("peft>=99")
    assert solution.packages is None
    assert "peft>=99" in solution.failure


@pytest.fixture
def needy(environment: Any) -> Any:
    """Two versions of a package on the index, of which the newer wants another tqdm."""
    made = [
        environment.index.wheel("needy", "1.0", "tqdm>=4"),
        environment.index.wheel("needy", "2.0", "tqdm>=5", "torch"),
        environment.index.wheel("tqdm", "5.0"),
    ]
    yield
    for path in made:
        path.unlink()


def test_the_nearest_set_is_the_one_that_leaves_the_rest_alone(needy: Any, solving: Any, environment: Any) -> None:
    solution = solving("needy")
    assert pips.changed(facts_of(environment).packages, solution.packages) == ["needy"]
    assert solution.packages.find("needy").version == "1.0"


def test_others_move_only_where_they_must_and_torch_never(needy: Any, solving: Any, environment: Any) -> None:
    solution = solving("needy>=2")
    assert pips.changed(facts_of(environment).packages, solution.packages) == ["needy", "tqdm"]
    assert solution.packages.find("torch").version == "2.13.0+cpu"


def test_what_is_installed_is_what_was_shown_whatever_the_index_learned_since(solving: Any, environment: Any) -> None:
    fixes = [PipRequirement("peft>=0.20")]
    solution = solving("peft>=0.20")
    newer = environment.index.wheel("peft", "0.22.0")
    try:
        before = facts_of(environment).packages
        pip.install(pip.installer_of(environment.python), fixes, before, solution.packages)
        assert environment.versions()["peft"] == "0.21.2"
    finally:
        newer.unlink()


def test_an_index_that_cannot_be_reached_is_named_as_the_cause(environment: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    solution = solve.solver_for(facts_of(environment), environment.python)([PipRequirement("peft>=0.20")])
    assert "index cannot be reached" in solution.failure
    assert "secret" not in solution.failure


def test_check_names_the_pairs_and_fix_applies_one_set_and_undo_restores_it(environment: Any, project: Any) -> None:
    before = environment.versions()
    target = ("--python", environment.python, *SELECT[:2])
    assert set(project.run("check", *target, "--offline", "--format", "json").codes) >= {"QD002"}

    dry = project.run("fix", *target)
    assert dry.code == 1
    (command,) = [line for line in dry.out.splitlines() if line.strip().startswith("bash:")]
    assert "'bitsandbytes>=" in command and "'peft>=" in command
    assert "PowerShell: " in dry.out and "to download: " in dry.out
    assert environment.versions() == before

    done = project.run("fix", *target, "--apply", "--yes")
    assert (done.code, done.err) == (0, "")
    after = environment.versions()
    assert {n for n in after if after[n] != before.get(n)} == {"peft", "bitsandbytes"}

    assert project.run("undo").code == 0
    assert environment.versions() == before
    assert "nothing is left" in project.run("undo").out


def test_an_apply_leaves_a_constraints_file_that_holds_the_stack_and_undo_takes_it_away(
    environment: Any, project: Any
) -> None:
    target = ("--python", environment.python, *SELECT[:2])
    dry = project.run("fix", *target)
    assert "proved by the installer's dry run" in dry.out
    path = project.path / ".qlora-doctor" / "constraints.txt"
    assert not path.exists()
    done = project.run("fix", *target, "--apply", "--yes")
    assert (done.code, str(path) in done.out) == (0, True)
    held = dict(line.split("  # ") for line in path.read_text().splitlines() if not line.startswith("#"))
    assert {line.strip() for line in held} == {
        f"{name.lower()}=={version}"
        for name, version in environment.versions().items()
        if name not in ("packaging", "regex", "tqdm", "PyYAML", "pyyaml")
    }
    assert held[next(line for line in held if line.startswith("bitsandbytes"))].startswith("bitsandbytes>=")
    assert held[next(line for line in held if line.startswith("torch"))] == "as it was"
    assert environment.pip("install", "--dry-run", "-c", str(path), "peft").count("Would install") == 0
    assert project.run("undo").code == 0
    assert not path.exists()


def test_a_person_at_the_terminal_is_asked_and_may_say_no(environment: Any, project: Any) -> None:
    pty = pytest.importorskip("pty")
    before = environment.versions()
    command = [sys.executable, "-m", "qlora_doctor", "fix", "--python", environment.python, *SELECT[:2], "--apply"]
    master, slave = pty.openpty()
    with subprocess.Popen(
        command, cwd=project.path, env={**os.environ, **project.environ}, stdin=slave, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.write(master, b"n\n")
        out, err = process.communicate(timeout=120)
    assert (process.returncode, "as you said" in out, "Change the packages" in err) == (1, True, True)
    assert environment.versions() == before


def test_without_yes_and_nobody_to_ask_the_packages_stay(environment: Any, project: Any) -> None:
    before = environment.versions()
    run = project.run("fix", "--python", environment.python, *SELECT[:2], "--apply")
    assert run.code == 1
    assert "add --yes" in run.out
    assert environment.versions() == before


@pytest.mark.parametrize("moment", ["noted-packages-start", "packages-installed"])
def test_undo_restores_the_packages_of_an_apply_that_was_killed(environment: Any, project: Any, moment: str) -> None:
    before = environment.versions()
    target = ("--python", environment.python, *SELECT[:2])
    killed = project.run("fix", *target, "--apply", "--yes", QLORA_DOCTOR_STOP_AT=moment)
    assert killed.code == -9
    undone = project.run("undo")
    assert (undone.code, undone.err) == (0, "")
    assert environment.versions() == before


def test_the_packages_come_back_though_the_project_is_gone(environment: Any, project: Any) -> None:
    before = environment.versions()
    assert project.run("fix", "--python", environment.python, *SELECT[:2], "--apply", "--yes").code == 0
    shutil.rmtree(project.path)
    project.path.mkdir()
    assert "nothing is left" in project.run("undo").out
    (state,) = (project.path.parent / "state" / "qlora-doctor").iterdir()
    assert project.run("undo", "--project", state).code == 0
    assert environment.versions() == before


def test_a_pip_that_fails_stops_the_plan_and_says_how_to_go_back(environment: Any, project: Any) -> None:
    # The wheel solves, and then is no wheel: pip fails after its verdict.
    target = ("--python", environment.python, *SELECT[:2])
    before = environment.versions()
    wheel = environment.index.wheel("peft", "0.21.9")
    try:
        broken = wheel.read_bytes()
        wheel.write_bytes(broken.replace(b"peft/__init__.py", b"peft/__xnit__.py", 1))
        run = project.run("fix", *target, "--apply", "--yes")
    finally:
        wheel.unlink()
    assert run.code == 2
    assert "qlora-doctor undo" in run.err
    assert project.run("undo").code == 0
    assert environment.versions() == before


def test_a_local_build_is_never_replaced_by_a_safe_fix(environment: Any, project: Any) -> None:
    environment.index.wheel("accelerate", "1.16.0", "torch>=2.14")
    fixes = [PipRequirement("accelerate>=1.16")]
    facts = facts_of(environment)
    after = solve.with_installs(facts.packages, [])
    assert pips.risk(fixes, facts, facts.but(packages=after)) == {}
    torch = PipRequirement("torch>=2.14")
    assert "torch" in pips.risk([torch], facts, facts)["torch"]
    (environment.index.path / "accelerate-1.16.0-py3-none-any.whl").unlink()


def test_a_plan_for_another_machine_shows_the_command_and_is_not_solved_here(project: Any, tmp_path: Any) -> None:
    import json

    from qlora_doctor.testing import facts

    file = tmp_path / "facts.json"
    file.write_text(json.dumps(facts({"transformers": "5.23.0", "bitsandbytes": "0.42.0"}).to_wire()))
    run = project.run("fix", "--facts", file, "--select", "QD002")
    assert run.code == 1
    assert "python -m pip install 'bitsandbytes>=0.46.1'" in run.out
    assert "of another machine" in run.out


UV = """#!/bin/sh
echo "$@" >> "{log}"
case "$1" in
  pip) exec "{python}" -m pip "$2" $(echo "$@" | sed 's/^pip [a-z]* --python [^ ]*//; s/--reinstall/--force-reinstall/') ;;
  add) echo "# $2" >> pyproject.toml; echo "# $2" >> uv.lock; exec "{python}" -m pip install -q "$2" "$3" ;;
esac
"""


def test_a_project_of_uv_is_changed_through_uv_and_its_manifest_comes_back(environment: Any, project: Any) -> None:
    before = environment.versions()
    (project.path / "uv.lock").write_text("version = 1\n")
    manifest = (project.path / "pyproject.toml").read_bytes()
    tools = project.path.parent / "tools"
    tools.mkdir()
    uv = tools / "uv"
    uv.write_text(UV.format(log=project.path.parent / "log", python=environment.python))
    uv.chmod(0o755)
    project.environ["UV_PROJECT_ENVIRONMENT"] = str(environment.path)
    target = ("fix", "--python", environment.python, *SELECT[:2])
    alone = project.run(*target, "--apply", "--yes", PATH=os.path.dirname(sys.executable))
    assert (alone.code, "uv, which is not on PATH" in alone.out) == (1, True)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = project.run(*target, "--apply", "--yes", PATH=path)
    assert (done.code, "managed by uv" in done.out) == (0, True), done.out + done.err
    assert "add bitsandbytes>=" in (project.path.parent / "log").read_text()
    assert environment.versions()["peft"] == "0.21.2"
    assert (project.path / "pyproject.toml").read_bytes() != manifest
    undone = project.run("undo", PATH=path)
    assert undone.code == 0, undone.err
    assert ((project.path / "pyproject.toml").read_bytes(), environment.versions()) == (manifest, before)


@pytest.mark.parametrize(
    ("command", "bash", "powershell", "cmd"),
    [
        (
            ["C:\\my env\\python.exe", "-m", "pip", "install", "peft>=0.20"],
            "'C:\\my env\\python.exe' -m pip install 'peft>=0.20'",
            "& 'C:\\my env\\python.exe' -m pip install 'peft>=0.20'",
            '"C:\\my env\\python.exe" -m pip install "peft>=0.20"',
        ),
        (
            ["/a/it's/python", "x<1"],
            "'/a/it'\"'\"'s/python' 'x<1'",
            "& '/a/it''s/python' 'x<1'",
            '"/a/it\'s/python" "x<1"',
        ),
    ],
)
def test_commands_are_quoted_for_each_shell(command: list[str], bash: str, powershell: str, cmd: str) -> None:
    from qlora_doctor.report.plan import quoted

    assert dict(quoted(command)) == {"bash": bash, "PowerShell": powershell, "cmd": cmd}
