"""Checks: the decorator that makes one, and the set of those that are installed.

A check reaches the doctor through the entry-point group `qlora_doctor.checks`, ours like anyone's; the entry point
names a sequence of `Check`. The decorator is exported from here only.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from qlora_doctor.errors import RegistryError, UsageError
from qlora_doctor.facts import PARTS
from qlora_doctor.finding import Finding, Outcome

GROUP = "qlora_doctor.checks"
Judges = Literal["facts", "load", "train", "requests"]
_SECOND = {"LoadRequest": "load", "TrainRequest": "train", "Requests": "requests"}
CheckFunction: TypeAlias = Callable[..., Iterable[Finding]]
_CODE = re.compile(r"[A-Z]{2,8}\d{3}\Z")


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `judges` follows from the annotation of the function's second parameter."""

    code: str
    name: str
    function: CheckFunction
    needs: tuple[str, ...]
    judges: Judges
    since: str
    requires: tuple[str, ...]
    doc: str
    distribution: str = ""
    wants: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())

    @property
    def per_script(self) -> bool:
        """Whether it judges each script on its own (it needs `script`)."""
        return "script" in self.needs


def check(
    code: str,
    *,
    needs: Sequence[str] = (),
    since: str,
    requires: Sequence[str] = (),
    wants: Sequence[str] = (),
) -> Callable[[CheckFunction], Check]:
    """Makes a check of a function `(facts)` or `(facts, request)` that yields findings.

    `needs` names parts of `Facts`: where one is unknown the check is not called and its outcome is `unknown`.
    `wants` names parts that are gathered for it too, but that it can do without (it reads them with `facts.state`).
    `requires` names codes: where one of them found something, this check is skipped. The second parameter's
    annotation says what is judged: `LoadRequest`, `TrainRequest` (once for each) or `Requests` (once, all together).
    The docstring is the page that `explain` and the docs show.

    Raises:
        RegistryError: no docstring, a code of another shape, a fact that does not exist.
    """

    def make(function: CheckFunction) -> Check:
        where = f"{function.__module__}.{function.__qualname__}"
        if not _CODE.match(code):
            raise RegistryError(f"{where}: {code!r} is no code; write two to eight capitals and three digits (QD101)")
        if not (function.__doc__ or "").strip():
            raise RegistryError(f"{where}: a check needs a docstring; it is the page that `explain {code}` shows")
        unknown = sorted({*needs, *wants} - set(PARTS))
        if unknown:
            raise RegistryError(f"{where}: needs {', '.join(unknown)}, which Facts does not have")
        return Check(
            code=code,
            name=function.__name__.replace("_", "-"),
            function=function,
            needs=tuple(needs),
            judges=_judges(function, where),
            since=since,
            requires=tuple(requires),
            doc=inspect.cleandoc(function.__doc__ or ""),
            wants=tuple(wants),
        )

    return make


def _judges(function: CheckFunction, where: str) -> Judges:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    if len(names) == 1:
        return "facts"
    annotation = function.__annotations__.get(names[1]) if len(names) == 2 else None
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    judges = _SECOND.get(text.rpartition(".")[2])
    if judges is None:
        raise RegistryError(f"{where}: the parameters are (facts) or (facts, request: {' | '.join(_SECOND)})")
    assert judges in get_args(Judges)
    return judges  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Installed:
    """The checks of every plug-in, by code, and a crashed outcome for each plug-in that does not load."""

    checks: tuple[Check, ...]
    broken: tuple[Outcome, ...] = ()

    def find(self, word: str) -> Check:
        """The check with this code or name.

        Raises:
            UsageError: there is none; the nearest ones are named.
        """
        for c in self.checks:
            if word.upper() == c.code or word.lower() == c.name:
                return c
        raise UsageError(_no_such(word, self.checks))


def installed_checks() -> Installed:
    """All installed checks, in the order of their codes.

    Raises:
        RegistryError: none at all (an empty set would let everything pass), or one code twice.
    """
    checks: dict[str, Check] = {}
    broken = []
    for name, target, distribution in sorted(entry_points(GROUP)):
        try:
            found = _load(target)
        except Exception as error:  # noqa: BLE001 - a third party's module may raise anything; it becomes a crashed outcome
            reason = f"entry point {name} = {target}: {type(error).__name__}: {error}"
            broken.append(Outcome(name, name, "crashed", reason, distribution))
            continue
        for c in found:
            if c.code in checks:
                raise RegistryError(
                    f"the code {c.code} is used twice: by {checks[c.code].distribution} and by {distribution}; "
                    "uninstall one of them"
                )
            checks[c.code] = Check(
                **{f: getattr(c, f) for f in Check.__dataclass_fields__} | {"distribution": distribution}
            )
    if not checks and not broken:
        raise RegistryError(
            f"no checks are installed: the entry-point group {GROUP!r} is empty. "
            "Reinstall the package (pip install --force-reinstall --no-deps qlora-doctor)"
        )
    return Installed(tuple(checks[code] for code in sorted(checks)), tuple(broken))


def _load(target: str) -> Sequence[Check]:
    module, _, attribute = target.partition(":")
    value: Any = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        value = getattr(value, part)
    checks = tuple(value)
    wrong = [c for c in checks if not isinstance(c, Check)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} is not a Check; decorate it with @qlora_doctor.registry.check")
    return checks


def entry_points(group: str) -> Iterator[tuple[str, str, str]]:
    """`(name, target, distribution)` of one group, first on sys.path first.

    Reads the `entry_points.txt` files itself: importlib.metadata reads those of every group and costs a tenth of a
    second in an environment of 60 distributions.
    """
    seen = set()
    for folder in dict.fromkeys(sys.path):
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for info in names:
            if not info.endswith((".dist-info", ".egg-info")):
                continue
            distribution = info.rpartition(".")[0].partition("-")[0].replace("_", "-").lower()
            try:
                with open(os.path.join(folder, info, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            if distribution in seen or group not in text:
                continue
            seen.add(distribution)
            section = ""
            for raw in text.splitlines():
                line = raw.strip()
                if line.startswith("["):
                    section = line.strip("[] ")
                elif section == group and "=" in line and not line.startswith(("#", ";")):
                    name, _, target = line.partition("=")
                    yield name.strip(), target.partition("[")[0].strip(), distribution


def choose(checks: Sequence[Check], select: Iterable[str] = (), ignore: Iterable[str] = ()) -> tuple[Check, ...]:
    """The checks whose code, code prefix (`QD1`) or name is in `select` (empty: all) and not in `ignore`.

    Raises:
        UsageError: a word that matches no check, with the nearest ones.
    """
    select, ignore = list(select), list(ignore)
    for word in (*select, *ignore):
        if not any(matches(c, word) for c in checks):
            raise UsageError(_no_such(word, checks))
    return tuple(
        c
        for c in checks
        if (not select or any(matches(c, w) for w in select)) and not any(matches(c, w) for w in ignore)
    )


def matches(c: Check, word: str) -> bool:
    """Whether `word` is the code, a prefix of it, or the name of a check."""
    return word.lower() == c.name or (word != "" and c.code.startswith(word.upper()))


def _codes_like(word: str, checks: Sequence[Check]) -> list[str]:
    """Up to three codes that begin as `word` does, at least up to the digit of the family."""
    shared = {c.code: max(n for n in range(len(c.code) + 1) if word.startswith(c.code[:n])) for c in checks}
    longest = max(shared.values(), default=0)
    family = len(re.sub(r"\d+\Z", "", checks[0].code)) + 1 if checks else 0
    return [code for code, length in shared.items() if length == longest >= family][:3]


def _no_such(word: str, checks: Sequence[Check]) -> str:
    import difflib

    near = [*_codes_like(word.upper(), checks), *difflib.get_close_matches(word.lower(), [c.name for c in checks], 3)]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`qlora-doctor list` shows them all."
    return f"no check has the code or name {word!r}; {hint}"
