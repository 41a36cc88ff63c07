"""Facts and requests as they would be after a fix. Pure: nothing on disk changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from qlora_doctor.facts import Distribution, Facts, Unknown, canonical
from qlora_doctor.fix import EnvVar, Fix, LoadKwarg, PipRequirement, TrainSetting
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Value

R = TypeVar("R", LoadRequest, TrainRequest)


def facts_after(facts: Facts, fixes: Iterable[Fix]) -> Facts:
    """The facts once the pip and environment fixes among `fixes` have been carried out."""
    for fix in fixes:
        if isinstance(fix, PipRequirement):
            facts = _after_pip(facts, fix)
        elif isinstance(fix, EnvVar) and not isinstance(facts.state("environ"), Unknown):
            environ = {k: v for k, v in facts.environ.items() if k != fix.name}
            facts = facts.but(environ=environ if fix.value is None else {**environ, fix.name: fix.value})
    return facts


def request_after(request: R, fixes: Iterable[Fix]) -> R:
    """A request once the argument fixes that belong to it have been carried out."""
    for fix in fixes:
        if isinstance(request, TrainRequest):
            request = _train_after(request, fix)
        elif isinstance(fix, LoadKwarg) and _same_site(fix, request.call):
            request = dataclasses.replace(request, call=_load_after(request.call, fix))
    return request


def requests_after(requests: Requests, fixes: Iterable[Fix]) -> Requests:
    """All requests of a case once `fixes` have been carried out."""
    fixes = tuple(fixes)
    return dataclasses.replace(
        requests,
        loads=tuple(request_after(r, fixes) for r in requests.loads),
        trains=tuple(request_after(r, fixes) for r in requests.trains),
    )


def _same_site(fix: LoadKwarg | TrainSetting, call: Call | None) -> bool:
    if fix.site is None:
        return True
    site = call.site if call is not None else None
    return site is not None and (site.path, site.cell, site.start) == (fix.site.path, fix.site.cell, fix.site.start)


def _load_after(call: Call, fix: LoadKwarg) -> Call:
    if fix.target == "load":
        return call_after(call, fix)
    config = call.arguments.get("quantization_config")
    if not isinstance(config, Call):
        return call
    return dataclasses.replace(call, arguments={**call.arguments, "quantization_config": call_after(config, fix)})


def call_after(call: Call, fix: LoadKwarg | TrainSetting) -> Call:
    """A call with one argument set, renamed or dropped."""
    gone = {fix.replaces, fix.name} if fix.drop or fix.replaces else {fix.name}
    arguments: dict[str, Value] = {}
    done = False
    for name, value in call.arguments.items():
        if name not in gone:
            arguments[name] = value
        elif not fix.drop and not done:
            arguments[fix.name] = fix.value
            done = True
    if not fix.drop and not done:
        arguments[fix.name] = fix.value
    return dataclasses.replace(call, arguments=arguments)


def _train_after(request: TrainRequest, fix: Fix) -> TrainRequest:
    if isinstance(fix, LoadKwarg) and request.load is not None:
        return dataclasses.replace(request, load=request_after(request.load, (fix,)))
    if not isinstance(fix, TrainSetting):
        return request
    call: Call | None = getattr(request, fix.target)
    if call is None or not _same_site(fix, call):
        return request
    changes: dict[str, Any] = {fix.target: call_after(call, fix)}
    return dataclasses.replace(request, **changes)


def _after_pip(facts: Facts, fix: PipRequirement) -> Facts:
    if isinstance(facts.state("packages"), Unknown):
        return facts
    try:
        requirement = Requirement(fix.requirement)
    except InvalidRequirement:
        return facts
    packages = facts.packages
    old = packages.find(requirement.name)
    others = tuple(d for d in packages.distributions if canonical(d.name) != canonical(requirement.name))
    duplicates = {k: v for k, v in packages.duplicates.items() if k != canonical(requirement.name)}
    if fix.remove:
        return facts.but(packages=dataclasses.replace(packages, distributions=others, duplicates=duplicates))
    version = resulting_version(requirement, old.version if old else None)
    requires = old.requires if old and old.version == version else ()
    new = Distribution(requirement.name, version, location=old.location if old else "", requires=requires)
    return facts.but(packages=dataclasses.replace(packages, distributions=(*others, new), duplicates=duplicates))


def resulting_version(requirement: Requirement, installed: str | None) -> str:
    """The version that satisfies `requirement`: the installed one where it does, else the nearest named bound."""
    if installed is not None:
        try:
            if requirement.specifier.contains(Version(installed), prereleases=True):
                return installed
        except InvalidVersion:
            pass
    named = sorted((Version(s.version.removesuffix(".*")) for s in requirement.specifier), reverse=True)
    for version in named:
        if requirement.specifier.contains(version, prereleases=True):
            return str(version)
    return str(named[0]) if named else "9999"
