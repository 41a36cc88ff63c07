"""Facts and requests as they would be after a fix. Pure: nothing on disk changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from qlora_doctor.facts import NEWEST, Distribution, Facts, Hub, Packages, Unknown, canonical
from qlora_doctor.fix import EnvVar, Fix, LoadKwarg, PipRequirement, TrainSetting
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Value

R = TypeVar("R", LoadRequest, TrainRequest)


def facts_after(facts: Facts, fixes: Iterable[Fix]) -> Facts:
    """The facts once the pip and environment fixes among `fixes` have been carried out."""
    for fix in fixes:
        if isinstance(fix, PipRequirement):
            facts = _forget_builds(facts, _after_pip(facts, fix))
        elif isinstance(fix, EnvVar) and not isinstance(facts.state("environ"), Unknown):
            environ = {k: v for k, v in facts.environ.items() if k != fix.name}
            facts = facts.but(environ=environ if fix.value is None else {**environ, fix.name: fix.value})
            facts = _after_library_path(_after_hub_variable(facts, fix), fix)
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


def _after_hub_variable(facts: Facts, fix: EnvVar) -> Facts:
    """What is known of the Hub where a variable changes which one is asked, or whether."""
    hub = facts.state("hub")
    if isinstance(hub, Unknown):
        return facts
    if fix.name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        offline = (fix.value or "").upper() in ("1", "ON", "YES", "TRUE")
        return facts.but(hub=dataclasses.replace(hub, offline=offline))
    if fix.name == "HF_ENDPOINT":
        endpoint = fix.value or Hub().endpoint
        source = "HF_ENDPOINT" if fix.value else "default"
        fresh = dataclasses.replace(hub, endpoint=endpoint, source=source, reachable=None, failure="", detail="")
        return facts.but(hub=fresh)
    return facts


def _after_library_path(facts: Facts, fix: EnvVar) -> Facts:
    """What the loader finds once LD_LIBRARY_PATH is gone; with another value only asking again would tell."""
    native = facts.state("native")
    if fix.name != "LD_LIBRARY_PATH" or fix.value is not None or isinstance(native, Unknown):
        return facts
    return facts.but(native=dataclasses.replace(native, on_path=()))


def facts_with(facts: Facts, packages: Packages) -> Facts:
    """The facts with another set of packages, as a solver gives it."""
    return _forget_builds(facts, facts.but(packages=packages))


UNTIL_INSTALLED = Unknown("known only after the installation", skipped=True)
_READ = ("transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets")


def _forget_builds(before: Facts, after: Facts) -> Facts:
    """What was read in a package's own files says nothing about its next version."""
    if isinstance(before.state("packages"), Unknown) or before.packages == after.packages:
        return after
    moved = {n for n in ("torch", *_READ) if _version_of(before, n) != _version_of(after, n)}
    parts: dict[str, Any] = {}
    if moved & set(_READ) and not isinstance(after.state("installed"), Unknown):
        parts["installed"] = UNTIL_INSTALLED
    for name in ("torch", "bitsandbytes"):
        if name in moved and not isinstance(after.state(name), Unknown):
            parts[name] = UNTIL_INSTALLED
    return after.but(**parts) if parts else after


def _version_of(facts: Facts, name: str) -> str | None:
    found = facts.packages.find(name)
    return found.version if found is not None else None


def resulting_version(requirement: Requirement, installed: str | None) -> str:
    """The version that satisfies `requirement`: the installed one where it does, else the nearest named bound.

    Without a bound it is `NEWEST`, which stands for whatever an index has.
    """
    if installed is not None:
        try:
            if requirement.specifier.contains(Version(installed), prereleases=True):
                return installed
        except InvalidVersion:
            pass
    named = sorted((Version(s.version.removesuffix(".*")) for s in requirement.specifier), reverse=True)
    for version in [*named, *(below(v) for v in named)]:
        if requirement.specifier.contains(version, prereleases=True):
            return str(version)
    return str(named[0]) if named and not requirement.specifier.contains(NEWEST) else NEWEST


def below(version: Version) -> Version:
    """A version just under another, as `4.9999` for 5: the newest that an upper bound leaves."""
    release = list(version.release)
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    return Version(".".join(map(str, [*release[:-1], release[-1] - 1, 9999]))) if release[-1] else Version("0")
