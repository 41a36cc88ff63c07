"""Collecting facts: the parts that are wanted, from the environment that is meant, and nothing else.

The Hub is asked while the probe runs, and only where something that is asked for could come from it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qlora_doctor.facts import NOT_GATHERED, Facts, Hub, Installed, ModelFacts, Packages, Unknown
from qlora_doctor.judge import Case
from qlora_doctor.stage import stage

if TYPE_CHECKING:
    from qlora_doctor.source import Call

PROBED = (
    "interpreter",
    "host",
    "packages",
    "shadows",
    "torch",
    "bitsandbytes",
    "gpus",
    "driver",
    "native",
    "disks",
    "environ",
)
HUB_READERS = ("huggingface_hub", "transformers", "datasets", "peft", "accelerate", "trl", "diffusers")
STACK = ("transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")


def collect(
    wanted: set[str],
    cases: Sequence[Case],
    *,
    folder: str,
    python: str = "",
    facts_file: str = "",
    model: str = "",
    offline: bool = False,
    ssh: str = "",
    live: bool = False,
    progress: Callable[[str, str], None] | None = None,
) -> Facts:
    """The facts named in `wanted`, of this interpreter, of `python`, of the machine `ssh`, or as `facts_file` holds them.

    `folder` is where the run's own modules lie. `cases` and `model` say which calls are looked up in the installed
    source, and whether the Hub is needed.

    Raises:
        UsageError: the facts file cannot be used.
        ProbeError: the interpreter gives no facts.
    """
    from qlora_doctor.gather import interpreters

    if facts_file:
        return _with_data(_with_models(interpreters.saved(facts_file), wanted, model, cases), wanted, cases)
    if ssh:
        from qlora_doctor.gather.ssh import remote

        with stage(f"asking {ssh}"):
            return remote(ssh, [part for part in PROBED if part in wanted], python)
    finish_hub = _start_hub(cases, model, offline, "model" in wanted, folder) if "hub" in wanted else None
    # What the installed source says is read wherever a request may be held against it, though no check insists on it.
    installed = "installed" in wanted or ("packages" in wanted and (bool(cases) or bool(model)))
    parts = [part for part in PROBED if part in wanted or (installed and part == "packages")]
    with stage(f"looking at {python or 'this environment'}"):
        facts = interpreters.other(python, parts, folder) if python else interpreters.here(parts, folder)
    if installed:
        facts = facts.but(installed=_installed(facts, cases))
    facts = _with_data(_with_models(facts, wanted, model, cases), wanted, cases)
    if finish_hub is not None:
        with stage("waiting for the Hub's answers"):
            hub, models = finish_hub()
        facts = facts.but(hub=hub)
        if models:
            facts = facts.but(models=(*facts.models, *models))
    if live:
        from qlora_doctor.live.run import run

        facts = facts.but(live=run(interpreters.find_executable(python) if python else sys.executable, progress))
    return facts


def _with_models(facts: Facts, wanted: set[str], model: str, cases: Sequence[Case]) -> Facts:
    """The facts with the local model folders that are loaded, where a check asks and a saved file does not hold them."""
    if not wanted & {"model", "models"} or facts.state("models") != NOT_GATHERED:
        return facts
    loads = [load.call.seen("pretrained_model_name_or_path") for case in cases for load in case.requests.loads]
    names = [n for n in (model, *loads) if isinstance(n, str) and n and os.path.isdir(n)]
    if not names:
        return facts.but(models=())
    from qlora_doctor.gather.model_files import read_models

    return facts.but(models=read_models(names))


def _with_data(facts: Facts, wanted: set[str], cases: Sequence[Case]) -> Facts:
    """The facts with the rows of the data files that are named, each file on its own."""
    files = [case.script.path for case in cases if case.script is not None and case.script.kind == "data"]
    files = [file for file in files if not file.lower().endswith((".parquet", ".arrow"))]
    facts = _with_saved(facts, wanted, cases)
    if "data" not in wanted or not files:
        return facts
    from qlora_doctor.gather.data.survey import read_survey

    with stage("reading the data"):
        return facts.but(data=tuple(read_survey([file]) for file in files))


def _with_saved(facts: Facts, wanted: set[str], cases: Sequence[Case]) -> Facts:
    """The facts with the adapter and checkpoint folders that are named."""
    folders = [c.script.path for c in cases if c.script is not None and c.script.kind in ("adapter", "checkpoint")]
    if "saved" not in wanted or not folders:
        return facts
    from qlora_doctor.gather.saved_runs import read_saved_runs

    return facts.but(saved=read_saved_runs(folders))


def _installed(facts: Facts, cases: Sequence[Case]) -> Installed | Unknown:
    packages: Packages | Unknown = facts.state("packages")
    if isinstance(packages, Unknown):
        return packages
    from qlora_doctor.gather.installed import DEFAULT_SIGNATURES, read_installed

    return read_installed(packages, tuple(dict.fromkeys((*DEFAULT_SIGNATURES, *called_names(cases)))))


def called_names(cases: Sequence[Case]) -> list[str]:
    """The import paths of the stack's functions that the scripts call, and of what they import from it, sorted."""
    names = set()
    for case in cases:
        for item in case.script.imports if case.script else ():
            if item.name not in ("", "*"):
                names.add(f"{item.module}.{item.name}")
        for call in case.script.calls if case.script else ():
            names.add(call.function)
        for train in case.requests.trains:
            names |= {c.function for c in (train.trainer, train.settings, train.lora) if c is not None}
        names |= {load.call.function for load in case.requests.loads}
    return sorted(n for n in names if n.partition(".")[0] in STACK)


def _start_hub(
    cases: Sequence[Case], model: str, offline: bool, details: bool, folder: str
) -> Callable[[], tuple[Hub, tuple[ModelFacts, ...]]]:
    """Asks the Hub in a thread while the probe runs; the result is a function that waits for the answer."""
    from qlora_doctor.gather.hub_ask import ask

    models = sorted(hub_models(model, cases))
    needed = bool(models) or any(_may_download(call) for case in cases for call in _calls(case))
    environ = environ_of(cases)
    if offline or not needed:
        return lambda: ask(environ, models, folder=folder, offline=True, details=details)
    from threading import Thread

    answers: list[tuple[Hub, tuple[ModelFacts, ...]]] = []
    thread = Thread(
        target=lambda: answers.append(ask(environ, models, folder=folder, details=details)), name="hub", daemon=True
    )
    thread.start()

    def finish() -> tuple[Hub, tuple[ModelFacts, ...]]:
        thread.join()
        return answers[0]

    return finish


def environ_of(cases: Sequence[Case]) -> dict[str, str]:
    """Our environment with what the scripts set in time: a mirror that a script names is the one that it will ask."""
    environ = dict(os.environ)
    for write in (w for case in cases if case.script for w in case.script.environ):
        kept = write.default_only and write.name in environ
        if isinstance(write.value, str) and not kept and not set(HUB_READERS) & set(write.after_imports):
            environ[write.name] = write.value
    return environ


def hub_models(model: str, cases: Sequence[Case]) -> set[str]:
    """The repositories that the requests name, without what lies in a folder here."""
    names = {model} if model else set()
    for case in cases:
        for call in _calls(case):
            value = call.seen("pretrained_model_name_or_path")
            if isinstance(value, str) and call.function.endswith(".from_pretrained"):
                names.add(value)
    return {n for n in names if n and not os.path.exists(n) and not n.startswith((".", "/", "~")) and "\\" not in n}


def _calls(case: Case) -> list[Call]:
    return [*(r.call for r in case.requests.loads), *(case.script.calls if case.script else ())]


def _may_download(call: Call) -> bool:
    """Whether a call may need the Hub although the name of what it loads cannot be read."""
    if not call.function.endswith((".from_pretrained", ".load_dataset", "load_dataset")):
        return False
    return not isinstance(call.seen("pretrained_model_name_or_path"), str)
