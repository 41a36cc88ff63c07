"""Facts over ssh, with a program named `ssh` on PATH that runs the command on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_doctor.errors import ProbeError, UsageError
from qlora_doctor.facts import Unknown
from qlora_doctor.gather.ssh import remote
from tests.gather.environments import executable, install, virtual_environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for ssh is a shell script")

# Like ssh, it hands the last word to a shell, with the home of another user and that user's variables.
LOOPBACK = """#!/bin/sh
echo "$@" >> {log}
for last; do :; done
cd {home} && HOME={home} CUDA_VISIBLE_DEVICES=7 exec sh -c "$last"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a program named ssh first on PATH; returns the file that its arguments are written to."""

    def write(text: str = LOOPBACK) -> Path:
        (tmp_path / "home").mkdir(exist_ok=True)
        log = tmp_path / "log"
        executable(tmp_path / "bin" / "ssh", text.format(log=log, home=tmp_path / "home"))
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        return log

    return write


def test_the_facts_are_those_of_the_other_machine(ssh: Callable[..., Path], tmp_path: Path) -> None:
    log = ssh()
    python, site = virtual_environment(tmp_path / "a folder with 'quotes'")
    install(site, "torch", "2.13.0", package=False)
    facts = remote("gpu-box", ("interpreter", "packages", "environ"), str(python))
    assert facts.interpreter.prefix == str(python.parent.parent)
    assert [d.name for d in facts.packages.distributions] == ["torch"]
    assert facts.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert "BatchMode=yes" in log.read_text() and "gpu-box" in log.read_text()
    assert list((tmp_path / "home").iterdir()) == []


def test_what_lies_on_this_machine_is_not_taken_for_the_other_ones(ssh: Callable[..., Path]) -> None:
    ssh()
    facts = remote("gpu-box", ("interpreter",), sys.executable)
    for part in ("installed", "hub"):
        state = facts.state(part)
        assert isinstance(state, Unknown) and state.skipped and "gpu-box" in state.reason


def test_a_driver_that_crashes_over_there_leaves_the_rest_known(ssh: Callable[..., Path]) -> None:
    ssh('#!/bin/sh\nfor last; do :; done\ncase "$last" in *gpus*) kill -SEGV $$ ;; esac\nexec sh -c "$last"\n')
    facts = remote("gpu-box", ("interpreter", "gpus", "driver"), sys.executable)
    gpus = facts.state("gpus")
    assert isinstance(gpus, Unknown) and "signal 11" in gpus.reason
    assert facts.interpreter.version == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho 'ssh: Could not resolve hostname gpu-box' >&2\nexit 255\n", "failed: ssh: Could not resolve"),
        ("#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n", "It must work without a question"),
        ("#!/bin/sh\necho 'sh: python9: not found' >&2\nexit 127\n", "name one with --python"),
        ("#!/bin/sh\necho 'Welcome to the cluster'\n", "gave no facts"),
        ("#!/bin/sh\nsleep 60\n", "gave no facts within"),
    ],
    ids=["no host", "no key", "no python", "no facts", "hangs"],
)
def test_a_connection_that_fails_says_how_and_what_to_do(ssh: Callable[..., Path], text: str, message: str) -> None:
    ssh(text)
    with pytest.raises(ProbeError) as caught:
        remote("gpu-box", ("interpreter",), "python9", timeout=1.0)
    assert message in str(caught.value)
    assert "gpu-box" in str(caught.value)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b"])
def test_a_host_that_ssh_would_take_for_an_option_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="expected a host"):
        remote(host, ("interpreter",))


def test_without_ssh_the_way_round_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProbeError, match="facts --save"):
        remote("gpu-box", ("interpreter",))
