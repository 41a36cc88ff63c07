"""The simulated world of a plan: facts, requests and files as they would be, none of it on disk."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlora_doctor.errors import RepairError
from qlora_doctor.examine import Examination
from qlora_doctor.facts import Facts
from qlora_doctor.fix import EnvVar, Fix, LoadKwarg, ModelFile, SourceEdit, TrainSetting
from qlora_doctor.judge import Case, Verdict, judge
from qlora_doctor.registry import matches
from qlora_doctor.repair.edits import edit_for, edited
from qlora_doctor.repair.simulate import facts_after
from qlora_doctor.repair.targets import Target, again, part_of
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Script, Unresolved, show


@dataclass(frozen=True, slots=True)
class World:
    """One state of the simulation. `files` maps the absolute path of each changed file to its new bytes."""

    base: Examination
    facts: Facts
    cases: tuple[Case, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """What the selected checks say of this world."""
        wanted = self.base.question.severities.items()
        severities = {c.code: s for word, s in wanted for c in self.base.checks if matches(c, word)}
        return judge(self.base.checks, self.facts, self.cases, severities=severities)

    def bytes_of(self, path: str) -> bytes:
        """A file as it would be. Raises RepairError where it cannot be read."""
        known = self.files.get(path)
        if known is not None:
            return known
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise RepairError(f"{path} cannot be read: {error.strerror or error}") from None


def start(examination: Examination) -> World:
    """The world as it was examined."""
    return World(examination, examination.facts, examination.cases)


def carry_out(world: World, fix: Fix, target: Target | None = None) -> tuple[World, Fix]:
    """The world after one fix, and the fix in the form in which it is applied (a SourceEdit for an argument).

    `target` is the call that an argument fix is for; edits made since it was found do not matter.

    Raises:
        RepairError: it cannot be carried out; the message says why.
    """
    if isinstance(fix, (LoadKwarg, TrainSetting)):
        assert target is not None
        target = again(world, target, fix)
        script = world.cases[target.case].script
        assert script is not None
        data = world.bytes_of(script.path)
        edit = edit_for(data, script, fix, target.call, world.facts)
        after = with_file(world, script.path, edited(data, edit, script.encoding))
        _verify(after, target, fix)
        return after, edit
    if isinstance(fix, SourceEdit):
        data = world.bytes_of(fix.path)
        encoding = next((c.script.encoding for c in world.cases if c.script and c.script.path == fix.path), "")
        return with_file(world, fix.path, edited(data, fix, encoding)), fix
    if isinstance(fix, ModelFile):
        new = None if fix.text is None else fix.text.encode("utf-8")
        return dataclasses.replace(world, files={**world.files, fix.path: new}), fix
    if isinstance(fix, EnvVar):
        return dataclasses.replace(world, facts=facts_after(world.facts, (fix,))), fix
    raise RepairError("only you can do this")


def with_file(world: World, path: str, data: bytes) -> World:
    """The world with other bytes in one file, read again."""
    cases = tuple(
        Case(*read_again(case, data)) if case.script is not None and case.script.path == path else case
        for case in world.cases
    )
    return dataclasses.replace(world, cases=cases, files={**world.files, path: data})


def read_again(case: Case, data: bytes) -> tuple[Requests, Script]:
    """The requests of a changed file. Raises RepairError where it can no longer be read."""
    assert case.script is not None
    if case.script.kind == "config":
        from qlora_doctor.gather.config import read_config

        script, requests = read_config(case.script.path, data)
    else:
        from qlora_doctor.gather.script import read_script

        script, requests = read_script(case.script.path, data)
    if script.problem:
        raise RepairError(f"after the edit it can no longer be read: {script.problem}")
    return requests, script


def _verify(world: World, target: Target, fix: LoadKwarg | TrainSetting) -> None:
    """Raises RepairError where the edited file does not read as the fix meant it."""
    case = world.cases[target.case]
    found: Sequence[LoadRequest | TrainRequest | Call] = case.requests.trains
    if target.kind != "trains":
        found = case.requests.loads if target.kind == "loads" or case.script is None else case.script.calls
    calls = [part_of(item, fix) for item in found]
    if not any(_carried_out(c, fix, target) for c in calls if c is not None and c.function == target.call.function):
        raise RepairError("the edited file does not read as it should; the edit was thrown away")


def _carried_out(call: Call, fix: LoadKwarg | TrainSetting, target: Target) -> bool:
    if fix.replaces and fix.replaces in call.arguments:
        return False
    if fix.drop:
        return fix.name not in call.arguments
    if fix.name not in call.arguments:
        return False
    value = call.arguments[fix.name]
    kept = target.call.arguments.get(fix.replaces) if fix.replaces else None
    # As they are shown: the same call stands at another place after the edit.
    return isinstance(value, Unresolved) or show(value) in (show(fix.value), *([show(kept)] if fix.replaces else []))


def digest(data: bytes | None) -> str:
    """The SHA-256 of a file's bytes; "" for a file that is not there."""
    return "" if data is None else hashlib.sha256(data).hexdigest()
