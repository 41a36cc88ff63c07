"""QD403, QD404 and QD409: the native library of bitsandbytes, and what it was built for."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks import builds, stack
from qlora_checks.requirements import leading
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, EnvVar, Fix, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


@check("QD403", needs=["packages", "torch"], wants=["bitsandbytes", "gpus", "environ"], since="0.1")
def bitsandbytes_without_the_cuda_of_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """bitsandbytes ships no library for the CUDA version of the installed torch.

    It loads a library named after torch's CUDA version, `libbitsandbytes_cuda126.so`. Up to 0.49 the version must
    match exactly; from 0.50 on another minor version of the same major is taken. Where none fits, bitsandbytes can
    still be imported, and the first quantised layer fails ("Configured CUDA binary not found", or an undefined symbol
    before 0.43). `BNB_CUDA_VERSION` overrides the choice, without any fallback.

    It does not apply to CPU, ROCm and XPU builds of torch, nor where there is no GPU.

    Fix: the first bitsandbytes that has the library and accepts the installed torch; or unset `BNB_CUDA_VERSION`.

    Source: `get_cuda_bnb_library_path` of bitsandbytes 0.50.2; the file lists of thirteen wheels.
    """
    torch, version = facts.torch, stack.installed(facts, "bitsandbytes")
    gpus = facts.state("gpus")
    if torch is None or torch.cuda is None or version is None or gpus == ():
        return
    libraries = _libraries(facts, version)
    override = _override(facts, version)
    old = not isinstance(gpus, Unknown) and any(g.sm is not None and g.sm < (7, 5) for g in gpus)
    if builds.has_library(libraries, version, torch.cuda, override, cublaslt=not old):
        return
    found: Severity = stack.severity(requests, ("quantized",))
    evidence = {
        "version": version,
        "cuda": torch.cuda,
        "libraries": builds.dotted(libraries) or ["none"],
        "torch": torch.version,
    }
    if override is not None:
        yield Finding(
            "BNB_CUDA_VERSION={override} makes bitsandbytes {version} look for a library that it does not ship (it has CUDA"
            " {libraries}; torch is a CUDA {cuda} build). Unset it.",
            {**evidence, "override": override},
            severity=found,
            fixes=(EnvVar("BNB_CUDA_VERSION", None),),
        )
        return
    better = builds.bitsandbytes_for(torch, newer_than=version)
    fixes: tuple[Fix, ...] = (PipRequirement(stack.requirement(facts, "bitsandbytes", better)),) if better else ()
    yield Finding(
        "bitsandbytes {version} has no library for CUDA {cuda}, which torch {torch} was built with (it has {libraries}):"
        " the first quantised layer fails. Install {requirement}.",
        {**evidence, "requirement": f"bitsandbytes>={better}" if better else "a torch built for one of these"},
        severity=found if not isinstance(gpus, Unknown) else "warning",
        fixes=fixes or (Advice("install a torch that is built for one of these CUDA versions"),),
    )


def _libraries(facts: Facts, version: str) -> tuple[str, ...]:
    """The library tags in the folder; of the table where another version is asked about than lies there."""
    state = facts.state("bitsandbytes")
    # Before an install that is only planned the folder cannot be read yet; that it could not be read is no such excuse.
    build = None if isinstance(state, Unknown) and state.skipped else facts.bitsandbytes
    if build is not None and build.version == version:
        if not build.libraries:
            raise UnknownFact("bitsandbytes", "its folder shows no native library; it may be a source checkout")
        return build.libraries
    return builds.wheel_libraries(version)


def _override(facts: Facts, version: str) -> str | None:
    environ = facts.state("environ")
    value = None if isinstance(environ, Unknown) else environ.get("BNB_CUDA_VERSION")
    # Until 0.49 an empty string counted as unset; 0.50 asks for digits.
    return None if value == "" and leading(version) < (0, 50) else value


@check(
    "QD404", needs=["packages", "torch", "gpus"], wants=["host", "environ"], since="0.1", requires=["QD402", "QD403"]
)
def gpu_without_code_in_bitsandbytes(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The bitsandbytes library carries no code for this GPU, although torch does.

    bitsandbytes has its own list of compute capabilities for each CUDA version. The CUDA 12.8 library of 0.46 had
    none for the V100; 0.48 and newer have none for Maxwell (GTX 900); libraries before CUDA 12.8 have none for
    Blackwell.

    It does not apply where the version or platform is not in the table (aarch64, own builds).

    Fix: the nearest bitsandbytes whose library has it, where there is one.

    Source: build-cuda.sh of bitsandbytes at the release tags.
    """
    torch, version = facts.torch, stack.installed(facts, "bitsandbytes")
    if torch is None or torch.cuda is None or version is None or builds.machine(facts) not in ("x86_64", "amd64"):
        return
    for sm, gpu in builds.by_capability(facts).items():
        codes = builds.bitsandbytes_codes(version, torch.cuda)
        if not codes or builds.serves(codes, sm, torch.cuda):
            continue
        better = builds.bitsandbytes_for(torch, newer_than=version, sm=sm)
        yield Finding(
            "{gpu} has compute capability {capability}, and the CUDA {cuda} library of bitsandbytes {version} carries code"
            " for {codes} only. {remedy}.",
            {
                "gpu": gpu.name,
                "capability": gpu.capability,
                "cuda": torch.cuda,
                "version": version,
                "codes": list(codes),
                "remedy": f"Install bitsandbytes>={better}"
                if better
                else "Use a torch of another CUDA version, or another GPU",
            },
            severity=stack.severity(requests, ("quantized",)),
            fixes=(PipRequirement(stack.requirement(facts, "bitsandbytes", better)),)
            if better
            else (Advice("use a torch of another CUDA version, or another GPU"),),
        )


# The first wheel for a system and machine, as far as wheels were opened.
_FIRST_WHEEL = {
    ("Windows", "amd64"): "0.43.0",
    ("Windows", "arm64"): "0.50.2",
    ("Linux", "aarch64"): "0.46.1",
    ("Darwin", "arm64"): "0.49.2",
}


@check("QD409", needs=["packages", "host"], since="0.1", requires=["QD015"])
def bitsandbytes_of_another_system(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A bitsandbytes below 0.43 on Windows, macOS or an ARM machine: its libraries are for Linux on x86-64.

    Until 0.42 there was one wheel for "any" platform, so pip installs it everywhere, and nothing in it can be loaded
    outside Linux on x86-64 ("CUDA Setup failed", "DLL load failed").

    It does not apply to builds of your own and installs from files.

    An error where the run quantises or imports bitsandbytes, else a warning.

    Fix: the first version with a wheel for this system.

    Source: the file lists of the wheels of 0.39.1 to 0.50.2.
    """
    distribution = stack.by_name(facts.packages).get("bitsandbytes")
    system = (facts.host.system, facts.host.machine.lower())
    if distribution is None or distribution.origin or (system[0] == "Linux" and system[1] != "aarch64"):
        return
    first = _FIRST_WHEEL.get(system)
    if first is None or leading(distribution.version) >= (0, 43):
        return
    wanted = stack.requirement(facts, "bitsandbytes", first)
    yield Finding(
        "bitsandbytes {version} holds libraries for Linux on x86-64 only, and this is {system} on {machine}: none can be"
        " loaded. Install {requirement}.",
        {"version": distribution.version, "system": system[0], "machine": system[1], "requirement": wanted},
        severity=stack.severity(requests, ("import:bitsandbytes",)),
        fixes=(PipRequirement(wanted),),
    )


CHECKS: tuple[Check, ...] = (
    bitsandbytes_without_the_cuda_of_torch,
    gpu_without_code_in_bitsandbytes,
    bitsandbytes_of_another_system,
)
