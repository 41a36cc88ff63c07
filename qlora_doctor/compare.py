"""What differs between saved facts: works here, fails there; or nodes of a cluster that drifted apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_doctor.facts import Facts, Unknown, canonical

ABSENT = "-"
"""What stands for a thing that one of the machines does not have."""

# What breaks a run first: a row's first match says how suspicious a difference is, 0 the most.
_RANKS = (
    (0, r"driver|gpus|gpu \d+ (name|capability)|torch|shadow |duplicate |leftover |package (torch|bitsandbytes)$"),
    (
        1,
        r"bitsandbytes|package (transformers|peft|accelerate|trl)$|host (system|machine|wsl)|gpu \d+ (mig|compute mode)",
    ),
    (2, r"package (triton|flash-attn|xformers|deepspeed|tokenizers|safetensors|huggingface-hub|datasets|numpy)$"),
    (2, r"package (torchvision|nvidia-.+)$|environ (CUDA|BNB|LD_|NVIDIA|NCCL|PYTORCH)|gpu \d+ memory$"),
    (2, r"python|without metadata|without package|broken"),
    (3, r"host (libc|container|cpu flags|memory limit)|environ |hub |live |cuda "),
    (4, r"package |origin of |interpreter |host (distribution|memory|shm)|.* unknown$"),
    (5, r""),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same everywhere. `values` has one entry for each machine, `-` where it is not there.

    `rank` is 0 for what breaks a run first. `odd` is the number of the one machine that differs from all others, where
    there are at least three; the first is 0.
    """

    what: str
    values: tuple[str, ...]
    rank: int
    odd: int | None = None


def compare(machines: Sequence[Facts]) -> tuple[Difference, ...]:
    """The differences between machines, most suspicious first: what breaks runs, then the one that stands alone."""
    rows = [dict(described(facts)) for facts in machines]
    unread = [{name for name in _parts(facts) if isinstance(facts.state(name), Unknown)} for facts in machines]
    found = []
    for what in dict.fromkeys(key for row in rows for key in row):
        part = _part_of(what)
        # What one machine was not asked for is no difference.
        values = tuple("?" if part in gaps else row.get(what, ABSENT) for row, gaps in zip(rows, unread, strict=True))
        # The row `gpus` has said already that there are fewer.
        fewer = what.startswith("gpu ") and ABSENT in values
        told = re.fullmatch(r"(torch|bitsandbytes) version", what) and values == _of(rows, f"package {part}")
        if len(set(values) - {"?"}) > 1 and not fewer and not told:
            found.append(Difference(what, values, _rank(what), _odd(values)))
    return tuple(sorted(found, key=lambda d: (d.rank, -_distance(d.values), d.odd is None, d.what)))


def _of(rows: Sequence[Mapping[str, str]], what: str) -> tuple[str, ...]:
    return tuple(row.get(what, ABSENT) for row in rows)


def _rank(what: str) -> int:
    return next(rank for rank, pattern in _RANKS if re.match(pattern, what))


def _odd(values: tuple[str, ...]) -> int | None:
    counts = Counter(values)
    if len(values) < 3 or len(counts) != 2:
        return None
    return next((values.index(value) for value, count in counts.items() if count == 1), None)


def _distance(values: tuple[str, ...]) -> int:
    """3 where one has it and another has not, 2 for another major version, 1 for a minor one, else 0."""
    known = [v for v in values if v != "?"]
    if ABSENT in known:
        return 3
    numbers = [tuple(map(int, re.findall(r"\d+", v.partition("+")[0])[:2])) for v in known]
    if not all(numbers):
        return 0
    return 2 if len({n[0] for n in numbers}) > 1 else 1 if len(set(numbers)) > 1 else 0


_PART_OF = {
    "package": "packages", "origin": "packages", "duplicate": "packages", "leftover": "packages", "without": "packages",
    "broken": "packages", "gpu": "gpus", "cuda": "native", "python": "interpreter", "shadow": "shadows",
}  # fmt: skip


def _part_of(what: str) -> str:
    word = what.partition(" ")[0]
    return "" if what.endswith(" unknown") else _PART_OF.get(word, word)


def _parts(facts: Facts) -> Iterator[str]:
    yield from (name for name in Facts.__dataclass_fields__ if name not in ("script", "extra", "installed", "disks"))


def described(facts: Facts) -> Iterator[tuple[str, str]]:
    """Everything in a machine's facts that another machine may have otherwise, as `(what, value)`.

    Left out is what differs between any two machines, or from one minute to the next: paths, free memory, ids.
    """
    for name in _parts(facts):
        value = facts.state(name)
        if isinstance(value, Unknown):
            if not value.skipped:
                yield f"{name} unknown", value.reason
        else:
            yield from _DESCRIBE.get(name, _fields_of(name))(value)


def _fields_of(name: str) -> Any:
    def describe(value: Any) -> Iterator[tuple[str, str]]:
        if value is None:
            yield name, "none"
            return
        for field in type(value).__dataclass_fields__:
            if field not in _VOLATILE:
                yield f"{name} {field.replace('_', ' ')}", _text(getattr(value, field))

    return describe


_VOLATILE = frozenset(
    (
        "executable",
        "prefix",
        "base_prefix",
        "source",
        "memory_available",
        "shm_free",
        "seconds",
        "cached",
        "asked",
        "detail",
    )
)


def _interpreter(value: Any) -> Iterator[tuple[str, str]]:
    yield "python", value.version
    for field in ("implementation", "bits", "venv", "conda", "user_site"):
        yield f"interpreter {field.replace('_', ' ')}", _text(getattr(value, field))


def _packages(value: Any) -> Iterator[tuple[str, str]]:
    seen = set()
    for d in value.distributions:
        name = canonical(d.name)
        if name not in seen:
            seen.add(name)
            yield f"package {name}", d.version
            if d.origin:
                yield f"origin of {name}", d.origin
    for name, copies in value.duplicates.items():
        yield f"duplicate {name}", str(len(copies) + 1)
    for word, paths in (
        ("leftover", value.leftovers),
        ("without metadata", value.without_metadata),
        ("without package", value.without_package),
        ("broken", value.broken),
    ):
        for path in paths:
            yield f"{word} {re.split(r'[/]|' + chr(92) * 2, path)[-1]}", "yes"


def _shadows(value: Any) -> Iterator[tuple[str, str]]:
    for shadow in value:
        yield f"shadow {shadow.module}", shadow.by


def _gpus(value: Any) -> Iterator[tuple[str, str]]:
    yield "gpus", str(len(value))
    for number, gpu in enumerate(value):
        yield f"gpu {number} name", gpu.name
        yield f"gpu {number} capability", _text(gpu.capability)
        # Cards of one kind differ by some MB of reserved memory.
        yield f"gpu {number} memory", "-" if gpu.memory_total is None else f"{gpu.memory_total / 2**30:.0f} GB"
        yield f"gpu {number} mig", _text(gpu.mig)
        yield f"gpu {number} compute mode", gpu.compute_mode or "default"


def _environ(value: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    ranks = ("RANK", "LOCAL_RANK", "MASTER_PORT", "TMPDIR", "CONDA_PROMPT_MODIFIER")
    for name, text in value.items():
        if name not in ranks:
            yield f"environ {name}", text or '""'


def _live(value: Any) -> Iterator[tuple[str, str]]:
    for probe in value:
        yield f"live {probe.name}", probe.outcome


def _native(value: Any) -> Iterator[tuple[str, str]]:
    taken = next(iter(value.libcuda), None)
    yield "cuda libcuda", ABSENT if taken is None else f"{taken.version or 'unversioned'} ({taken.kind})"
    yield "cuda toolkits", " ".join(sorted(t.version or t.path for t in value.toolkits)) or ABSENT
    yield "cuda nvcc", value.nvcc or ABSENT
    for library in value.on_path:
        yield f"cuda LD_LIBRARY_PATH {library.name}", library.version
    for name, version in value.provided.items():
        yield f"cuda libstdc++ {name}", version


_DESCRIBE: Mapping[str, Any] = {
    "interpreter": _interpreter,
    "packages": _packages,
    "shadows": _shadows,
    "gpus": _gpus,
    "environ": _environ,
    "live": _live,
    "native": _native,
}


def _text(value: Any) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 1 << 30:
        return f"{value / 2**30:.0f} GB"
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or ABSENT
    return str(value)
