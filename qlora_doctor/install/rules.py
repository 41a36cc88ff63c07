"""Why a release of one package does not go with a machine, a build of torch and the releases beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qlora_doctor.facts import canonical
from qlora_doctor.install.builds import Build
from qlora_doctor.install.machine import Machine
from qlora_doctor.install.machine import dotted as sms_text
from qlora_doctor.tables import rows
from qlora_doctor.tables.builds import bitsandbytes_codes, dotted, has_library, numbers, serves
from qlora_doctor.tables.versions import leading, older, satisfies


def releases(package: str) -> Iterator[Mapping[str, object]]:
    """The releases of a package that may be chosen, newest first."""
    return (row for row in rows("install.toml", "release") if row["package"] == package)


def refused(machine: Machine, build: Build, row: Mapping[str, object], have: Mapping[str, str], strict: bool) -> str:
    """Why a release does not go with what is chosen, or ""."""
    package, version = str(row["package"]), str(row["version"])
    if machine.python and not satisfies(machine.python, str(row["python"])):
        return f"it asks for Python {row['python']}"
    with_it = {**have, package: version}
    why = _own_needs(with_it) or _floors(with_it) or _pairs(machine, build, with_it, strict)
    if why or package != "bitsandbytes":
        return why
    return _bitsandbytes(machine, build, version)


def _own_needs(have: Mapping[str, str]) -> str:
    """A requirement of the releases that the set does not satisfy, as their metadata states it."""
    for row in rows("install.toml", "release"):
        if have.get(row["package"]) != row["version"]:
            continue
        for line in row.get("needs", ()):
            name = line.rstrip("0123456789.,<>=!~ ")
            if name in have and satisfies(have[name], line[len(name) :]) is False:
                return f"{row['package']} {row['version']} asks for {line}"
    return ""


def transformers_row(version: str) -> dict[str, str]:
    """All that the matrix knows of a transformers."""
    values: dict[str, str] = {}
    for row in rows("matrix.toml", "transformers"):
        if older(version, row["from"]):
            break
        values.update(row)
    return values


def _floors(have: Mapping[str, str]) -> str:
    """A floor or range of the chosen transformers, or of the chosen bitsandbytes, that the set does not keep."""
    if "transformers" in have:
        known = transformers_row(have["transformers"])
        for name in ("torch", "accelerate", "peft", "bitsandbytes"):
            if name in known and name in have and older(have[name], known[name]):
                return f"transformers {have['transformers']} asks for {name} {known[name]} or newer"
        hub = known.get("huggingface_hub", "")
        if "huggingface-hub" in have and satisfies(have["huggingface-hub"], hub) is False:
            return f"transformers {have['transformers']} asks for huggingface-hub{hub}"
    for row in rows("matrix.toml", "bitsandbytes"):
        if have.get("bitsandbytes") == row["version"] and satisfies(have["torch"], row.get("torch", "")) is False:
            return f"bitsandbytes {row['version']} asks for torch{row['torch']}"
    return ""


def _pairs(machine: Machine, build: Build, have: Mapping[str, str], strict: bool) -> str:
    """A known-bad pair in the set; without `strict` the harmless ones are let pass."""
    have = {**have, **triton_of(machine, build)}
    for row in rows("matrix.toml", "bad_pair"):
        left, right = have.get(canonical(row["left"])), have.get(canonical(row["right"]))
        if left is None or right is None or row["right_range"] == "absent":
            continue
        if row.get("otherwise") == "info" and not strict:
            continue
        if satisfies(left, row["left_range"]) and satisfies(right, row["right_range"]):
            return f"{row['left']} {left} with {row['right']} {right}: {row['effect']}"
    return ""


def triton_of(machine: Machine, build: Build) -> dict[str, str]:
    """The triton that a build of torch brings on Linux; nothing for the CPU builds and elsewhere."""
    if machine.system != "Linux" or build.kind != "cuda":
        return {}
    row = next((r for r in rows("install.toml", "torch") if r["minor"] == build.torch), None)
    return {} if row is None else {"triton": str(row["triton"])}


def _bitsandbytes(machine: Machine, build: Build, version: str) -> str:
    """Why a bitsandbytes has nothing for this platform, build or GPU, or ""."""
    place = (machine.system, machine.machine)
    wheel = next((r for r in rows("install.toml", "bitsandbytes_wheel") if (r["system"], r["machine"]) == place), None)
    if wheel is None or older(version, wheel["from"]):
        return f"no wheel of it is for {machine.system} on {machine.machine}"
    if machine.glibc and numbers(machine.glibc) < numbers(wheel.get("glibc", "0")):
        return f"its wheel needs glibc {wheel['glibc']} or newer"
    if machine.macos and leading(machine.macos) < leading(wheel.get("macos", "0")):
        return f"its wheel needs macOS {wheel['macos']} or newer"
    if build.kind == "cuda":
        return _cuda_library(machine, build, version)
    served = next((r for r in rows("cuda.toml", "bnb_backend") if r["backend"] == build.kind), None)
    if served is not None and older(version, served["full"]):
        return f"on {served['name']} it works from {served['full']} on"
    wanted = next(
        (
            r["library"]
            for r in rows("install.toml", "accelerator_build")
            if (r["minor"], r["label"]) == (build.torch, build.tag)
        ),
        "",
    )
    if wanted and wanted not in libraries_of(version):
        return f"it has no {wanted} library"
    return _rocm_code(machine, wanted, version) if build.kind == "rocm" else ""


def _rocm_code(machine: Machine, library: str, version: str) -> str:
    """Why the ROCm library of a bitsandbytes does not run on the AMD GPUs here, or ""; kinds that are not known pass."""
    for row in rows("cuda.toml", "bnb_rocm_arch"):
        if satisfies(version, f">={row['from']},<={row['to']}") and library in row["libraries"].split():
            kinds = {g.arch.partition(":")[0] for g in machine.gpus or () if g.vendor == "amd" and g.arch}
            lacking = sorted(kinds - set(row["kinds"].split()))
            return f"its {library} library has no code for {', '.join(lacking)}" if lacking else ""
    return ""


def _cuda_library(machine: Machine, build: Build, version: str) -> str:
    libraries = libraries_of(version)
    if not has_library(libraries, version, build.cuda, None):
        return f"it has no library for CUDA {build.cuda} (it has {', '.join(dotted(libraries))})"
    codes = bitsandbytes_codes(version, build.cuda) if machine.machine == "x86_64" else ()
    lacking = [sm for sm in machine.capabilities if codes and not serves(codes, sm, build.cuda)]
    return f"its CUDA {build.cuda} library has no code for {sms_text(lacking[:1])}" if lacking else ""


def libraries_of(version: str) -> tuple[str, ...]:
    """The library tags of the Linux wheel of a bitsandbytes: `cpu`, `cuda126`, `rocm72`."""
    cuda = next((r["cuda"] for r in rows("matrix.toml", "bitsandbytes") if r["version"] == version), "")
    other = next((r["libraries"] for r in rows("install.toml", "bitsandbytes_library") if r["version"] == version), "")
    return ("cpu", *(f"cuda{tag}" for tag in cuda.split()), *other.split())
