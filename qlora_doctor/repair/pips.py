"""pip fixes before anything runs: one requirement for each package, and whether the rest stays satisfied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from packaging.markers import UndefinedEnvironmentName, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from qlora_doctor.facts import Distribution, Facts, Packages, Unknown, canonical
from qlora_doctor.fix import Applicability, PipRequirement
from qlora_doctor.install.builds import fitting, patch_of
from qlora_doctor.install.machine import machine_of
from qlora_doctor.repair.simulate import below

TORCH_FAMILY = ("torch", "torchvision", "torchaudio", "triton", "pytorch-triton", "torchtext", "xformers", "flash-attn")


@dataclass(slots=True)
class Merged:
    """The requirements of a plan. `asked` maps a canonical name to (requirement, code) in the order of asking.

    `clashes` maps a canonical name to the requirements that no version satisfies together.
    """

    asked: dict[str, list[tuple[PipRequirement, str]]] = field(default_factory=dict)

    def add(self, fix: PipRequirement, code: str) -> bool:
        """Notes one request; False where it is noted already."""
        entry = (fix, code)
        entries = self.asked.setdefault(name_of(fix), [])
        if entry in entries:
            return False
        entries.append(entry)
        return True

    def requirements(self, facts: Facts) -> tuple[PipRequirement, ...]:
        """One fix a package, in the order of asking, without those that clash."""
        clashing = self.clashes(facts)
        return tuple(
            with_fitting_build(intersect([fix for fix, _ in entries]), facts)
            for name, entries in self.asked.items()
            if name not in clashing
        )

    def clashes(self, facts: Facts) -> dict[str, list[tuple[PipRequirement, str]]]:
        return {
            name: entries
            for name, entries in self.asked.items()
            if not satisfiable([fix for fix, _ in entries], installed_version(facts, name))
        }

    def codes(self, name: str) -> tuple[str, ...]:
        """The checks that ask for a package."""
        return tuple(dict.fromkeys(code for _, code in self.asked.get(name, [])))


def name_of(fix: PipRequirement) -> str:
    """The canonical name that a fix is about."""
    try:
        return canonical(Requirement(fix.requirement).name)
    except InvalidRequirement:
        return canonical(fix.requirement.split()[0])


def intersect(fixes: Sequence[PipRequirement]) -> PipRequirement:
    """One fix that asks for what all of them ask for."""
    first = fixes[0]
    if first.remove or len(fixes) == 1:
        return first
    requirements = [Requirement(fix.requirement) for fix in fixes]
    specifiers = sorted(_tightest(s for r in requirements for s in r.specifier), key=_rank)
    extras = sorted({e for r in requirements for e in r.extras})
    extra = f"[{','.join(extras)}]" if extras else ""
    order: list[Applicability] = ["safe", "unsafe", "display-only"]
    worst = max((fix.applicability for fix in fixes), key=order.index)
    return PipRequirement(f"{requirements[0].name}{extra}{','.join(specifiers)}", applicability=worst)


def with_fitting_build(fix: PipRequirement, facts: Facts) -> PipRequirement:
    """A fix of torch narrowed to the nearest version, and the build of it, that driver, GPU and Python can run.

    `torch>=2.6` alone brings the newest torch in its default build, which an older driver does not run. Any other fix, and
    one for which the tables know no build, stays as it is.
    """
    if fix.remove or name_of(fix) != "torch" or isinstance(facts.state("gpus"), Unknown):
        return fix
    requirement = Requirement(fix.requirement)
    if any(s.operator in ("==", "===") for s in requirement.specifier):
        return fix
    builds = [b for b in fitting(machine_of(facts)) if requirement.specifier.contains(patch_of(b.torch))]
    if not builds:
        return fix
    have = version_of(installed_version(facts, "torch") or "")
    # The newest where there is none yet, else the nearest to the one that is there; of one torch what pip brings.
    build = builds[0] if have is None else min(builds, key=lambda b: abs(Version(b.torch).minor - have.minor))
    if not build.plain:
        return PipRequirement(f"torch=={build.version}", applicability=fix.applicability)
    chosen = Version(build.torch)
    bounds = [*requirement.specifier, Specifier(f">={chosen}"), Specifier(f"<{chosen.major}.{chosen.minor + 1}")]
    held = ",".join(sorted(_tightest(bounds), key=_rank))
    return PipRequirement(f"torch{held}", applicability=fix.applicability)


def _tightest(specifiers: Iterable[Specifier]) -> set[str]:
    """The bounds, of several lower ones the highest and of several upper ones the lowest."""
    kept: dict[str, Specifier] = {}
    rest = set()
    for one in specifiers:
        if one.operator not in (">=", "<") or version_of(one.version) is None:
            rest.add(str(one))
            continue
        other = kept.get(one.operator)
        if other is None or (Version(one.version) > Version(other.version)) == (one.operator == ">="):
            kept[one.operator] = one
    return rest | {str(one) for one in kept.values()}


def _rank(specifier: str) -> tuple[bool, str]:
    return specifier.startswith(("<", "!")), specifier


def satisfiable(fixes: Sequence[PipRequirement], installed: str | None) -> bool:
    """Whether some version can satisfy all of them."""
    if len({fix.remove for fix in fixes}) > 1:
        return False
    if fixes[0].remove or len(fixes) == 1:
        return True
    both = SpecifierSet()
    for fix in fixes:
        both &= Requirement(fix.requirement).specifier
    return any(both.contains(version, prereleases=True) for version in candidates(both, installed))


def candidates(specifier: SpecifierSet, installed: str | None = None) -> list[Version]:
    """Versions that tell whether a set of bounds leaves anything: the named ones and their neighbours."""
    found = [Version("0")]
    for one in specifier:
        version = version_of(one.version.removesuffix(".*"))
        if version is not None:
            found += [version, Version(f"{version.base_version}.1"), below(version)]
    known = version_of(installed or "")
    return [*([known] if known else []), *found]


def version_of(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def installed_version(facts: Facts, name: str) -> str | None:
    """The version that is there, or None."""
    packages = facts.state("packages")
    found = packages.find(name) if isinstance(packages, Packages) else None
    return found.version if found is not None else None


def torch_family(name: str) -> bool:
    """Whether a package is torch, built against torch's binary interface, or one of its CUDA wheels."""
    name = canonical(name)
    return name in TORCH_FAMILY or name.startswith("nvidia-")


def irreplaceable(distribution: Distribution) -> str:
    """Why no index can give this distribution back, or ""."""
    if distribution.origin:
        kinds = {"editable": "an editable install", "local": "installed from a file or folder"}
        return kinds.get(distribution.origin, f"installed from a {distribution.origin}")
    if distribution.installer == "conda":
        return "installed by conda, over which pip should not install"
    if "+" in distribution.version:
        return f"a local build ({distribution.version})"
    return ""


def broken(packages: Packages, facts: Facts) -> set[tuple[str, str]]:
    """Every (distribution, requirement) of the set that the set itself does not satisfy."""
    environment = environment_of(facts)
    found = set()
    for distribution in packages.distributions:
        for line in distribution.requires:
            try:
                requirement = Requirement(line)
                if requirement.marker is not None and not requirement.marker.evaluate({**environment, "extra": ""}):
                    continue
            except (InvalidRequirement, UndefinedEnvironmentName):
                continue
            have = packages.find(requirement.name)
            version = version_of(have.version) if have is not None else None
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                found.add((distribution.name, line))
    return found


def environment_of(facts: Facts) -> dict[str, str]:
    """The marker variables of the interpreter that is judged."""
    environment = {k: str(v) for k, v in default_environment().items()}
    interpreter = facts.state("interpreter")
    if not isinstance(interpreter, Unknown):
        environment |= {
            "python_version": ".".join(interpreter.version.split(".")[:2]),
            "python_full_version": interpreter.version,
        }
    host = facts.state("host")
    if not isinstance(host, Unknown):
        platforms = {"Linux": "linux", "Windows": "win32", "Darwin": "darwin"}
        environment |= {
            "platform_system": host.system,
            "platform_machine": host.machine,
            "sys_platform": platforms.get(host.system, environment["sys_platform"]),
            "os_name": "nt" if host.system == "Windows" else "posix",
        }
    return environment


def risk(fixes: Iterable[PipRequirement], before: Facts, after: Facts) -> dict[str, str]:
    """Why each package's change is not safe, by canonical name; a safe one is not in it.

    Safe: it adds a missing package that is not torch, or moves one that an index can give back, and no requirement
    of an installed distribution that was satisfied is broken by it.
    """
    if isinstance(before.state("packages"), Unknown) or isinstance(after.state("packages"), Unknown):
        return {name_of(fix): "the installed packages are not known" for fix in fixes}
    reasons = {}
    new = broken(after.packages, after) - broken(before.packages, before)
    for fix in fixes:
        name = name_of(fix)
        have = before.packages.find(name)
        if torch_family(name):
            reasons[name] = "it changes torch: gigabytes, and the build that fits your driver"
        elif fix.remove:
            reasons[name] = "it removes a package"
        elif have is not None and irreplaceable(have):
            reasons[name] = f"{have.name} is {irreplaceable(have)}, which no index gives back"
        for owner, line in sorted(new):
            if canonical(Requirement(line).name) == name:
                reasons.setdefault(name, f"{owner} asks for {line.partition(';')[0].strip()}")
    for other in changed(before.packages, after.packages):
        have = before.packages.find(other)
        if torch_family(other) or (have is not None and irreplaceable(have)):
            what = f"change {have.name} {have.version}" if have is not None else f"install {other}"
            for fix in fixes:
                reasons.setdefault(name_of(fix), f"it would also {what}")
    for name, old, older in downgraded(before.packages, after.packages, {name_of(fix) for fix in fixes}):
        for fix in fixes:
            reasons.setdefault(name_of(fix), f"it would also take {name} back from {old} to {older}")
    return reasons


def downgraded(before: Packages, after: Packages, asked: Iterable[str] = ()) -> list[tuple[str, str, str]]:
    """What goes back to an older version although nobody asked for it: (name, old version, new version)."""
    found = []
    for name in changed(before, after):
        old, new = before.find(name), after.find(name)
        if name in asked or old is None or new is None:
            continue
        versions = version_of(old.version), version_of(new.version)
        if versions[0] is not None and versions[1] is not None and versions[1] < versions[0]:
            found.append((name, old.version, new.version))
    return found


def changed(before: Packages, after: Packages) -> list[str]:
    """The canonical names whose version differs, or that come or go."""
    one = {canonical(d.name): d.version for d in reversed(before.distributions)}
    other = {canonical(d.name): d.version for d in reversed(after.distributions)}
    return sorted(n for n in {*one, *other} if one.get(n) != other.get(n))
