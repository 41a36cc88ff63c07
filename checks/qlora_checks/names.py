"""QD1: names that the installed versions no longer have: imports of removed classes and functions."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.api import Change, changes, nearest, new_name, state_of
from qlora_checks.common import at_least
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.families import BY_CLASS
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, Edit, Fix, PipRequirement, SourceEdit
from qlora_doctor.registry import Check, check
from qlora_doctor.source import Import, Script

# Every transformers exports thousands of names; a shorter list was read in part only.
_WHOLE = 1000
_REMOVED = (
    "{module}.{name} is gone from {package} {version} (removed in {removed}), so importing it is an ImportError; {what}"
)
_CALLED = (
    "{module}.{name} is gone from {package} {version} (removed in {removed}), so this line is an AttributeError; {what}"
)
_GONE = "{module}.{name} is not in the installed {package} {version}, so importing it is an ImportError; {what}"
_LATER = "{module}.{name} is not in {package} {version} yet (it came with {since}), so importing it fails; {what}"
_DEPRECATED = "{module}.{name} is deprecated in {package} {version}; {what}"


@check("QD123", needs=["packages", "script"], wants=["installed"], since="0.1")
def removed_name_imported(facts: Facts) -> Iterator[Finding]:
    """An import of a class or function that the installed version no longer has, or does not have yet.

    `from transformers import AutoModelForVision2Seq` is an ImportError in transformers 5, whatever the script does
    later, and takes the whole script down: an error. So are AdamW (gone in 4.50), HybridCache, is_torch_tpu_available,
    peft's prepare_model_for_int8_training, TRL's DataCollatorForCompletionOnlyLM and others (each looked up in the
    wheels; the transformers ones were run on 5.23).

    A name that no table knows is looked for in the installed source of transformers, peft, TRL and accelerate, submodules
    too: of 352 names that public scripts import, each that was not found there was an ImportError indeed (5.23). Where
    only the list of transformers' public names is at hand, a class that is not in it is a warning.

    An import inside a function fails only when that runs: a warning. One inside a try that catches it is silent.

    Fix: the successor, at the import and at each use that the script makes by that name. It is safe where the two are
    the same thing; torch's AdamW is not (its default weight decay is 0.01, not 0).
    """
    script = facts.script
    for item in script.imports:
        if item.guarded or not item.name:
            continue
        change = _change(item.module, item.name)
        state = None if change is None or _still_there(facts, change) else state_of(facts, change, None)
        if change is not None and state is not None:
            template = _REMOVED if state == "removed" else _DEPRECATED
            yield _finding(facts, script, item, change, template)
            continue
        later = _later(facts, item)
        if later is not None:
            yield _finding(facts, script, item, later, _LATER)
        elif change is None and _too_early(facts, item):
            yield _too_new(facts, item)
        elif change is None and _certainly_missing(facts, item):
            yield _missing(facts, item)
        elif change is None and item.module == "transformers":
            yield from _not_exported(facts, item)
    yield from _attributes(facts, script)


def _too_early(facts: Facts, item: Import) -> bool:
    """Whether a model class is imported that came later, where the installed source was not read."""
    family = BY_CLASS.get(item.name)
    if family is None or item.module != "transformers" or not isinstance(facts.state("installed"), Unknown):
        return False
    version = facts.version("transformers")
    return version is not None and not at_least(version, family.minimum)


def _too_new(facts: Facts, item: Import) -> Finding:
    since = BY_CLASS[item.name].minimum
    wanted = f"transformers>={since}"
    return Finding(
        _LATER,
        evidence={
            "module": item.module,
            "name": item.name,
            "package": "transformers",
            "version": str(facts.version("transformers")),
            "since": since,
            "what": f"install {wanted}",
        },
        severity="warning" if item.nested else "error",
        site=item.site,
        fixes=(PipRequirement(wanted),),
    )


def _certainly_missing(facts: Facts, item: Import) -> bool:
    """Whether the name was looked for in the installed source and is not there in any way that can be written."""
    installed = facts.state("installed")
    path = f"{item.module}.{item.name}"
    if isinstance(installed, Unknown) or installed.signatures.get(path, ...) is not None:
        return False
    # A package of which nothing was found is a stump, and says nothing of its names.
    package = f"{path.partition('.')[0]}."
    return any(name.startswith(package) and found is not None for name, found in installed.signatures.items())


def _missing(facts: Facts, item: Import) -> Finding:
    installed = facts.installed
    near, _ = nearest(item.name, installed.classes) if item.module == "transformers" else ("", False)
    package = item.module.partition(".")[0]
    return Finding(
        _GONE,
        evidence={
            "module": item.module,
            "name": item.name,
            "package": package,
            "version": str(facts.version(package)),
            "what": f"{near} is the nearest name" if near else "look up which version had it, and what took its place",
        },
        severity="warning" if item.nested else "error",
        site=item.site,
        fixes=(Advice(f"import {near} if that is meant"),) if near else (),
    )


def _not_exported(facts: Facts, item: Import) -> Iterator[Finding]:
    """A name that no table knows and that the installed transformers does not export either."""
    installed = facts.state("installed")
    names = () if isinstance(installed, Unknown) else installed.classes
    # A name in small letters may be a module, and those are not listed.
    if len(names) < _WHOLE or item.name in names or not item.name[:1].isupper():
        return
    near, _ = nearest(item.name, names)
    yield Finding(
        "transformers {version} does not export {name}, so importing it should be an ImportError; {what}",
        evidence={
            "version": str(facts.version("transformers")),
            "name": item.name,
            "what": f"{near} is the nearest name" if near else "see which version had it",
        },
        severity="warning",
        site=item.site,
        fixes=(Advice(f"import {near} if that is meant"),) if near else (),
    )


def _finding(facts: Facts, script: Script, item: Import, change: Change, template: str) -> Finding:
    late = template == _LATER
    new = change.name if late else new_name(facts, change)
    fixes = _fixes(script, item, change, new, safe=change.keeps)
    what = fixes[0].title if fixes else change.advice or "nothing takes its place"
    severity: Severity = "info" if template == _DEPRECATED else "warning" if item.nested else "error"
    return Finding(
        template,
        evidence={
            "module": item.module,
            "name": item.name,
            "package": change.package,
            "version": str(facts.version(change.package)),
            "removed": change.removed,
            "since": change.since,
            "what": f"{what} ({change.effect})" if change.effect else what,
        },
        severity=severity,
        site=item.site,
        fixes=fixes,
    )


def _change(module: str, name: str) -> Change | None:
    for change in changes("name"):
        if change.name == name and module == (change.module_of or change.package):
            return change
    return None


def _still_there(facts: Facts, change: Change) -> bool:
    """Whether the installed transformers lists the name, whatever the table says."""
    installed = facts.state("installed")
    return change.package == "transformers" and not isinstance(installed, Unknown) and change.name in installed.classes


def _later(facts: Facts, item: Import) -> Change | None:
    """The row whose new name is imported, where the installed version only has the old one."""
    for change in changes("name"):
        if change.new == item.name and item.module == change.package and change.since and not change.module:
            version = facts.version(change.package)
            if version is not None and not at_least(version, change.since):
                return change
    return None


def _fixes(script: Script, item: Import, change: Change, new: str, *, safe: bool) -> tuple[Fix, ...]:
    advice = (Advice(change.advice),) if change.advice else ()
    if not new:
        return advice
    module = change.module or item.module
    site = item.site
    if change.module:
        text = f"from {module} import {new}" + (f" as {_alias(item)}" if _alias(item) else "")
        return (Advice(f"write `{text}`"), *advice)
    if site is None or site.start < 0 or not script.sha256 or script.kind == "config":
        return (Advice(f"import {new} from {module} instead"), *advice)
    uses = _uses(script, item)
    # Where a use cannot be placed, the new name is imported under the old one: ugly, and always right.
    old = _alias(item) or ("" if uses is not None else item.name)
    edits = [Edit(site.start, site.end, f"{new} as {old}" if old else new)]
    edits += [Edit(start, start + len(item.name), new) for start in uses or ()]
    edit = SourceEdit(
        script.path,
        script.sha256,
        tuple(sorted(edits, key=lambda e: e.start)),
        what=f"use {new} in place of {item.name}",
        cell=site.cell,
        applicability="safe" if safe else "unsafe",
    )
    return (edit, *advice)


def _alias(item: Import) -> str:
    """The name that `as` gives, or ""."""
    return "" if item.alias == item.name else item.alias


def _uses(script: Script, item: Import) -> list[int] | None:
    """The bytes where the imported name starts a call; None where not every use of it is such a call."""
    if _alias(item):
        return []
    path = f"{item.module}.{item.name}"
    found = set()
    for call in script.calls:
        site = call.site
        if site is None or (call.function != path and not call.function.startswith(f"{path}.")):
            continue
        # The call is written with this very name, and not with a variable that holds the class.
        written = site.spans.get("()", (0, 0))[0] - 1 - site.start
        if written != len(call.function) - len(item.module) - 1 or item.site is None or site.cell != item.site.cell:
            return None
        found.add(site.start)
    return sorted(found) if len(found) == item.used else None


def _attributes(facts: Facts, script: Script) -> Iterator[Finding]:
    """Calls through the module: `transformers.AutoModelForVision2Seq.from_pretrained(...)`."""
    imported = {f"{i.module}.{i.name}" for i in script.imports if i.name}
    done = set()
    for call in script.calls:
        for change in changes("name"):
            module = change.module_of or change.package
            path = f"{module}.{change.name}"
            if path in imported or path in done or not (f"{call.function}.").startswith(f"{path}."):
                continue
            if call.guarded or _still_there(facts, change) or state_of(facts, change, None) != "removed":
                continue
            done.add(path)
            what = f"use {change.new}" if change.new else change.advice or "nothing takes its place"
            yield Finding(
                _CALLED,
                evidence={
                    "module": module,
                    "name": change.name,
                    "package": change.package,
                    "version": str(facts.version(change.package)),
                    "removed": change.removed,
                    "what": what,
                },
                severity="error",
                site=call.site,
                fixes=(Advice(what),) if change.new or change.advice else (),
            )


CHECKS: tuple[Check, ...] = (removed_name_imported,)
