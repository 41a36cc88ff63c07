"""The call that an argument fix is for, found by its place, and found again after edits by its number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qlora_doctor.errors import RepairError
from qlora_doctor.finding import Finding
from qlora_doctor.fix import EnvVar, Fix, LoadKwarg, TrainSetting
from qlora_doctor.judge import Case
from qlora_doctor.repair.simulate import call_after
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call, Site, show


class World(Protocol):
    """What is needed of the simulated world."""

    @property
    def cases(self) -> tuple[Case, ...]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """The call that an argument fix is for: `index` among the loads, trains or plain calls of case `case`."""

    case: int
    kind: str
    index: int
    call: Call


def find_target(world: World, fix: LoadKwarg | TrainSetting, finding: Finding) -> Target:
    """The call that `fix` belongs to, the first where it would change something.

    Raises:
        RepairError: there is none in a file.
    """
    candidates = [t for t in _targets(world, fix) if world.cases[t.case].script is not None and t.call.site is not None]
    site = fix.site or finding.site
    if site is not None and not any(_near(t, world, site) for t in candidates):
        candidates += _plain_calls(world, site)
    if site is not None:
        candidates = [t for t in candidates if _near(t, world, site)] or (
            [t for t in candidates if _path(world, t) == site.path] if fix.site is None else []
        )
    for target in candidates:
        if _shown(call_after(target.call, fix)) != _shown(target.call):
            return target
    if candidates:
        raise RepairError("the file has this already")
    raise RepairError(f"no call in a script to change here; in your own code: {fix.title}")


def _shown(call: Call) -> list[tuple[str, str]]:
    # As text, since 6 == 6.0 and True == 1, which a signature may well tell apart.
    return sorted((name, show(value)) for name, value in call.arguments.items())


def claim(world: World, fix: Fix, finding: Finding) -> str:
    """The value that a fix insists on; "" for a rename that keeps the value, whatever it is."""
    if isinstance(fix, EnvVar):
        return str(fix.value)
    if not isinstance(fix, (LoadKwarg, TrainSetting)):
        return fix.title
    if fix.drop:
        return "taken out"
    if fix.replaces:
        call = find_target(world, fix, finding).call
        if show(call.arguments.get(fix.replaces)) == show(fix.value):
            return ""
    return show(fix.value)


def target_key(world: World, fix: Fix, finding: Finding) -> tuple[object, ...] | None:
    """What a fix changes: two fixes with one key and different values disagree. None: nothing that can clash."""
    if isinstance(fix, EnvVar):
        return ("environment", fix.name)
    if isinstance(fix, (LoadKwarg, TrainSetting)):
        try:
            target = find_target(world, fix, finding)
        except RepairError:
            return None
        return (target.case, target.kind, target.index, fix.kind, fix.target, fix.name)
    return None


def _targets(world: World, fix: LoadKwarg | TrainSetting) -> Iterable[Target]:
    for number, case in enumerate(world.cases):
        if isinstance(fix, LoadKwarg):
            for index, load in enumerate(case.requests.loads):
                call = _called(load, fix)
                if call is not None:
                    yield Target(number, "loads", index, call)
        else:
            for index, train in enumerate(case.requests.trains):
                called: Call | None = getattr(train, fix.target)
                if called is not None:
                    yield Target(number, "trains", index, called)


def _plain_calls(world: World, site: Site) -> list[Target]:
    """The calls at a place that belong to no request: in a function that nothing calls."""
    return [
        Target(number, "calls", index, call)
        for number, case in enumerate(world.cases)
        for index, call in enumerate(case.script.calls if case.script is not None else ())
        if call.site is not None
        and (call.site.path, call.site.cell, call.site.start) == (site.path, site.cell, site.start)
    ]


def again(world: World, target: Target, fix: LoadKwarg | TrainSetting) -> Target:
    """The same call as it stands in this world."""
    call = _call_of(world, target, fix)
    if call is None:
        raise RepairError("the call is not there any more")
    return dataclasses.replace(target, call=call)


def _call_of(world: World, target: Target, fix: LoadKwarg | TrainSetting) -> Call | None:
    case = world.cases[target.case]
    found: Sequence[LoadRequest | TrainRequest | Call]
    if target.kind == "calls":
        found = case.script.calls if case.script is not None else ()
    else:
        found = case.requests.loads if target.kind == "loads" else case.requests.trains
    if target.index >= len(found):
        return None
    return part_of(found[target.index], fix)


def part_of(item: LoadRequest | TrainRequest | Call, fix: LoadKwarg | TrainSetting) -> Call | None:
    if isinstance(item, Call):
        return item
    if isinstance(item, LoadRequest):
        return _called(item, fix) if isinstance(fix, LoadKwarg) else None
    called: Call | None = getattr(item, fix.target, None)
    return called


def _called(load: LoadRequest, fix: LoadKwarg) -> Call | None:
    if fix.target == "load":
        return load.call
    config = load.call.arguments.get("quantization_config")
    return config if isinstance(config, Call) else None


def _near(target: Target, world: World, site: Site) -> bool:
    """Whether `site` is that of the call itself, or of the request that it belongs to."""
    if target.kind == "calls":
        return True
    requests = world.cases[target.case].requests
    request: LoadRequest | TrainRequest
    request = requests.loads[target.index] if target.kind == "loads" else requests.trains[target.index]
    sites = [target.call.site, request.site]
    if isinstance(request, LoadRequest):
        sites += [t.site for t in requests.trains if t.load is not None and t.load.site == request.site]
    return any(s is not None and (s.path, s.cell, s.start) == (site.path, site.cell, site.start) for s in sites)


def _path(world: World, target: Target) -> str:
    script = world.cases[target.case].script
    return script.path if script is not None else ""
