"""What a build of torch or bitsandbytes runs on: drivers, CUDA versions and GPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Driver, TorchBuild
from qlora_doctor.tables import rows
from qlora_doctor.tables.versions import leading, minor, satisfies


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a driver or CUDA version: `550.120` as (550, 120).

    Raises:
        UnknownFact: it starts with no number.
    """
    found = leading(version)
    if not found:
        raise UnknownFact("version", f"{version!r} is not one of a driver or of CUDA")
    return found


def driver_minimum(cuda: str, *, windows: bool) -> str:
    """The oldest driver for a CUDA version, by minor-version compatibility.

    Raises:
        UnknownFact: this CUDA major is newer than the table.
    """
    major = cuda.partition(".")[0]
    for row in rows("cuda.toml", "driver_minimum"):
        if row["cuda"] == major:
            return str(row["windows" if windows else "linux"])
    raise UnknownFact("driver", f"CUDA {cuda} is not in the table of this doctor; update qlora-doctor")


def too_old(driver: Driver, cuda: str, *, windows: bool) -> str:
    """The oldest driver that would do, where this one does not; "" where it does."""
    if driver.cuda and numbers(driver.cuda)[0] >= numbers(cuda)[0]:
        return ""
    minimum = driver_minimum(cuda, windows=windows)
    return minimum if numbers(driver.version) < numbers(minimum) else ""


class ArchRow(NamedTuple):
    """The compute capabilities in a torch build; a `+` marks code that newer GPUs can compile for themselves."""

    codes: tuple[str, ...]
    verified: bool


def arch_row(torch: TorchBuild, machine: str) -> ArchRow:
    """What a torch build carries code for.

    Raises:
        UnknownFact: it is a build of someone's own, or newer than the table.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+(\.post\d+)?(\+cu\d+)?", torch.version):
        raise UnknownFact("architectures of torch", f"{torch.version} is a build of its own; its list is not known")
    row = _arch(minor(torch.version), torch.cuda or "", machine)
    if row is None:
        raise UnknownFact("architectures of torch", f"torch {torch.version} for CUDA {torch.cuda} is not in the table")
    return row


def _arch(minor: str, cuda: str, machine: str) -> ArchRow | None:
    platform = "aarch64" if machine in ("aarch64", "arm64") else "x86_64"
    wanted = numbers(minor)
    for row in rows("cuda.toml", "torch_arch"):
        first, _, last = row["torch"].partition("-")
        known = row["cuda"] == cuda and row.get("platform", "x86_64") == platform
        if known and numbers(first) <= wanted <= numbers(last or first):
            return ArchRow(tuple(row["sm"].split()), row.get("verified", True))
    return None


# GPUs of boards and of a renamed capability, which take code made for exactly them.
_APART = {(5, 3), (6, 2), (7, 2), (10, 1)}


def serves(codes: Sequence[str], device: tuple[int, int], cuda: str) -> bool:
    """Whether one of the codes runs on a device (the rule in torch/cuda/__init__.py of 2.14)."""
    for text in codes:
        code = numbers(text)
        if code == device or (device == (10, 1) and code == (11, 0)):
            return True
        if text.endswith("+") and code <= device:
            return True
        if code[0] != device[0] or code[1] > device[1] or device in _APART or code == (6, 1):
            continue
        if device == (8, 7) and numbers(cuda) < (13, 2):
            continue
        return True
    return False


def codes_of(minor: str, cuda: str, machine: str) -> tuple[str, ...]:
    """The compute capabilities in a build of torch; empty where no verified row says it.

    Code that a GPU must first compile for itself is no recommendation, so the `+` is left out.
    """
    row = _arch(minor, cuda, machine)
    return tuple(c.rstrip("+") for c in row.codes) if row is not None and row.verified else ()


def wheel_libraries(version: str) -> tuple[str, ...]:
    """The CUDA libraries in the Linux wheel of a bitsandbytes, by the table.

    Raises:
        UnknownFact: the version is older or newer than the table.
    """
    last = None
    for row in rows("matrix.toml", "bitsandbytes"):
        if satisfies(version, f">={row['version']}"):
            last = row
    if last is None or not last["cuda"]:
        raise UnknownFact("libraries of bitsandbytes", f"those of {version} are not known")
    return tuple(f"cuda{v}" for v in last["cuda"].split())


def dotted(libraries: Sequence[str]) -> list[str]:
    """`cuda126` as 12.6, each version once."""
    found = dict.fromkeys(m[1] for m in (re.match(r"cuda(\d+)", tag) for tag in libraries) if m is not None)
    return [f"{v[:2]}.{v[2:]}" for v in sorted(found)]


def has_library(
    libraries: Sequence[str], version: str, cuda: str, override: str | None, *, cublaslt: bool = True
) -> bool:
    """Whether this bitsandbytes finds a library for torch's CUDA version.

    `cublaslt` is False for a GPU before Turing, for which releases before 0.45 have libraries of their own.
    """
    suffix = "_nocublaslt" if not cublaslt and any(t.endswith("_nocublaslt") for t in libraries) else ""
    if override is not None:
        return f"cuda{override}{suffix}" in libraries
    wanted = cuda.replace(".", "")
    if f"cuda{wanted}{suffix}" in libraries:
        return True
    return leading(version) >= (0, 50) and any(t.startswith(f"cuda{wanted[:2]}") for t in libraries)


def bitsandbytes_for(torch: TorchBuild, newer_than: str, sm: tuple[int, int] | None = None) -> str:
    """The first bitsandbytes after `newer_than` with a library for this torch (and code for this GPU); "" for none."""
    for row in rows("matrix.toml", "bitsandbytes"):
        version = row["version"]
        libraries = [f"cuda{v}" for v in row["cuda"].split()]
        if not satisfies(version, f">{newer_than.partition('+')[0]}"):
            continue
        if satisfies(torch.version, row.get("torch", "")) is False:
            continue
        if not has_library(libraries, version, torch.cuda or "", None):
            continue
        codes = bitsandbytes_codes(version, torch.cuda or "")
        if sm is None or not codes or serves(codes, sm, torch.cuda or ""):
            return str(version)
    return ""


def bitsandbytes_codes(version: str, cuda: str) -> tuple[str, ...]:
    """The compute capabilities in the library that serves a CUDA version; empty where that is not known."""
    if not re.match(r"\d+\.\d+", cuda):
        return ()
    for row in rows("cuda.toml", "bnb_arch"):
        known = satisfies(version, f">={row['from']},<={row['to']}")
        if known and numbers(row["cuda_from"]) <= numbers(cuda) <= numbers(row["cuda_to"]):
            return tuple(row["sm"].split())
    return ()
