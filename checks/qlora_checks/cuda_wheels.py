"""QD433, QD434 and QD440: NVIDIA's wheels and libraries that torch loads, and what lies in their way."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import stack
from qlora_checks.requirements import environment, leading, needs, satisfies
from qlora_doctor.facts import Distribution, Facts, canonical
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

# Wheels of every CUDA major put these into the same file: nvidia/nccl/lib/libnccl.so.2, libcudnn.so.9, libcurand.so.10,
# libcusolver.so.11, libnvToolsExt.so.1, libcusparseLt.so.0. The one that was installed last is the one that is there.
SHARED = ("nccl", "cudnn", "curand", "cusolver", "nvtx", "cusparselt")


def family(name: str) -> str:
    """`nccl` of `nvidia-nccl-cu12`, of `nvidia-nccl` as well; "" for what is no wheel of NVIDIA."""
    match = re.fullmatch(r"nvidia-(.+?)(?:-cu\d{2})?", name)
    return match[1] if match else ""


def asked_by_torch(facts: Facts) -> dict[str, str]:
    """NVIDIA's wheels that the installed torch asks for here: canonical name to specifier."""
    torch = stack.by_name(facts.packages).get("torch")
    if torch is None:
        return {}
    return {n.name: n.specifier for n in needs(torch.requires, environment(facts)) if n.name.startswith("nvidia-")}


@check("QD433", needs=["native", "torch", "packages", "interpreter"], wants=["host"], since="0.1")
def older_nccl_or_cudnn_in_front(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """LD_LIBRARY_PATH holds a libnccl or libcudnn that is older than the one that torch was built with.

    torch links libnccl.so.2, and every NCCL since 2.0 has that name, so the loader takes the first that it finds. With
    an older one `import torch` fails: "libtorch_cuda.so: undefined symbol: ncclCommRegister" (or ncclMemFree,
    ncclCommWindowRegister). With an older cuDNN of the same major version the first convolution, as the vision towers
    have, fails: "cuDNN version incompatibility: PyTorch was compiled against ...".

    It does not apply to CPU builds of torch, to newer copies, and where the version of the copy, or of torch's own, is
    not known.

    NCCL: an error for a run that imports torch, else a warning. cuDNN: a warning.

    Fix: unset LD_LIBRARY_PATH for the run, or take that folder out of it.

    Source: pytorch/pytorch#119072 and #119932; `torch/backends/cudnn/__init__.py`; the requirements of the installed
    torch.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None:
        return
    for library, effect in (
        ("nccl", "importing torch fails with an undefined symbol"),
        ("cudnn", "the first convolution fails with 'cuDNN version incompatibility'"),
    ):
        own = _own(facts, library)[:2]
        copies = [(c, leading(c.version)[:2]) for c in facts.native.on_path if c.name == f"lib{library}"]
        older = [c for c, have in copies if len(have) == len(own) == 2 and have[0] == own[0] and have < own]
        if older:
            yield Finding(
                "LD_LIBRARY_PATH puts lib{library} {version} ({path}) in front of the {own} that torch {torch} was built with:"
                " {effect}. Unset LD_LIBRARY_PATH for this run.",
                {
                    "library": library,
                    "version": older[0].version,
                    "path": older[0].path,
                    "own": ".".join(map(str, own)),
                    "torch": torch.version,
                    "effect": effect,
                },
                severity=stack.severity(requests, ("import:torch",)) if library == "nccl" else "warning",
                fixes=(EnvVar("LD_LIBRARY_PATH", None),),
            )


def _own(facts: Facts, library: str) -> tuple[int, ...]:
    """The version that torch asks for, else that of the wheel that is installed."""
    for name, specifier in asked_by_torch(facts).items():
        exact = re.fullmatch(r"==\s*([\d.]+)", specifier)
        if family(name) == library and exact:
            return leading(exact[1])
    wheels = [d for n, d in stack.by_name(facts.packages).items() if family(n) == library]
    return leading(wheels[0].version) if len(wheels) == 1 else ()


@check("QD434", needs=["packages", "torch", "interpreter"], wants=["host", "native"], since="0.1")
def cuda_wheels_that_torch_did_not_ask_for(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """NVIDIA's wheels are absent, or of other versions than the installed torch names.

    The CUDA build of torch holds no cuBLAS, cuDNN or NCCL: it asks for NVIDIA's wheels by exact version. Another
    package (tensorflow, cupy, jax, vllm) that was installed later moves them, and `pip install --no-deps torch` leaves
    them out. Without one, `import torch` fails with "libcudnn.so.9: cannot open shared object file"; with another
    version it mostly works, and sometimes fails with an undefined symbol or "cuDNN version incompatibility".

    It does not apply to torch of conda, which has its libraries from conda, nor where LD_LIBRARY_PATH leads to CUDA
    libraries, which may stand in for what is absent.

    Absent: an error for a run that imports torch, else a warning. Another version: a warning.

    Fix: the versions that torch names.

    Source: Requires-Dist of the installed torch.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None:
        return
    index = stack.by_name(facts.packages)
    if "torch" not in index or index["torch"].installer == "conda":
        return
    native = facts.state("native")
    stand_in = bool(getattr(native, "on_path", ()))
    absent, other = [], []
    for name, specifier in sorted(asked_by_torch(facts).items()):
        have = index.get(name)
        if have is None:
            absent.append(name + specifier)
        elif satisfies(have.version, specifier) is False:
            other.append((have, name + specifier))
    if absent and not stand_in:
        yield _finding(facts, absent, "not there", f"{', '.join(absent)} {_are(absent)} not installed", requests)
    if other:
        moved = [f"{d.name} {d.version}" for d, _ in other]
        yield _finding(
            facts, [wanted for _, wanted in other], "moved", f"{', '.join(moved)} {_are(moved)} installed", None
        )


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _finding(facts: Facts, wanted: list[str], kind: str, found: str, requests: Requests | None) -> Finding:
    effect = "import torch fails" if kind == "not there" else "importing torch, or the first use of it, may fail"
    return Finding(
        "torch {torch} asks for {wanted}, and {found}: {effect}. Install {wanted}.",
        {
            "torch": stack.installed(facts, "torch"),
            "wanted": ", ".join(wanted),
            "found": found,
            "effect": effect,
        },
        severity=stack.severity(requests, ("import:torch",)) if requests is not None else "warning",
        fixes=tuple(PipRequirement(requirement) for requirement in wanted),
    )


@check("QD440", needs=["packages", "torch"], since="0.1")
def cuda_wheels_that_overwrite_each_other(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Two wheels of NVIDIA, for two CUDA majors, put their library into the same file.

    `nvidia-nccl-cu11` and `nvidia-nccl-cu12` both install nvidia/nccl/lib/libnccl.so.2; so do those of cuDNN, cuRAND,
    cuSOLVER, NVTX and cuSPARSELt. Which one lies there depends on which was installed last: with the wrong one `import
    torch` fails with "undefined symbol: ncclMemFree" and the like. Uninstalling one of the two takes the file away from
    the other as well.

    A warning; an info where the sizes of the files say that those of torch's own wheels are there, as after an upgrade
    of torch. It does not apply to CPU builds of torch, nor to two majors of cuDNN.

    Fix: uninstall the one that torch did not ask for, then install the other one again (`--force-reinstall --no-deps`).

    Source: rwth-i6/returnn#1802 for NCCL; for the others the names of their folders and files, not compared wheel by wheel.
    Where the wheels' RECORDs name the same file, its size says whose it is.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None:
        return
    pairs = shared_pairs(facts)
    if not pairs:
        return
    own = {canonical(wheel.name) for wheel, _ in pairs}
    lying = dict(facts.packages.contested)
    sound = bool(lying) and all(lying.values()) and set(lying.values()) <= own
    wrong = sorted(set(lying.values()) - own - {""})
    state = "those of torch's own are there now" if sound else f"those of {', '.join(wrong)} are there" if wrong else ""
    commands = [
        "pip uninstall -y " + " ".join(sorted(other.name for _, others in pairs for other in others)),
        "pip install --force-reinstall --no-deps " + " ".join(f"{wheel.name}=={wheel.version}" for wheel, _ in pairs),
    ]
    names = [f"{wheel.name} and {', '.join(d.name for d in others)}" for wheel, others in pairs]
    yield Finding(
        "{pairs} put their libraries into the same files; {state}. Uninstall those that are not for CUDA {major}, then install"
        " the others again, as uninstalling takes the files away: {commands}",
        {
            "pairs": names,
            "state": state or "which are there depends on what was installed last",
            "torch": torch.version,
            "major": torch.cuda.partition(".")[0],
            "commands": " && ".join(commands),
        },
        severity="info" if sound else "warning",
        fixes=(Advice("leave one wheel for each library", " && ".join(commands)),),
    )


def shared_pairs(facts: Facts) -> list[tuple[Distribution, list[Distribution]]]:
    """For each shared library the wheel for torch's CUDA major, and those for others beside it."""
    torch = facts.torch
    major = (torch.cuda if torch is not None and torch.cuda else "").partition(".")[0]
    found: dict[str, list[Distribution]] = {}
    for name, distribution in stack.by_name(facts.packages).items():
        if family(name) in SHARED:
            found.setdefault(family(name), []).append(distribution)
    pairs = []
    for kind, wheels in sorted(found.items()):
        own = [d for d in wheels if canonical(d.name).endswith("cu" + major)]
        others = [d for d in wheels if d not in own and re.search(r"-cu\d\d$", canonical(d.name))]
        if own and kind == "cudnn":  # its major is in the name of the file
            others = [d for d in others if leading(d.version)[:1] == leading(own[0].version)[:1]]
        if len(own) == 1 and others:
            pairs.append((own[0], others))
    return pairs


CHECKS: tuple[Check, ...] = (
    older_nccl_or_cudnn_in_front,
    cuda_wheels_that_torch_did_not_ask_for,
    cuda_wheels_that_overwrite_each_other,
)
