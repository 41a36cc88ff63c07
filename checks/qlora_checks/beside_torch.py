"""QD018 and QD020: packages that are bound to the torch they were built for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import stack
from qlora_checks.requirements import minor, satisfies
from qlora_doctor.facts import Distribution, Facts, Unknown, canonical
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


@check("QD018", needs=["packages"], wants=["host"], since="0.1")
def numpy_2_with_an_old_torch(facts: Facts) -> Iterator[Finding]:
    """numpy 2 beside a torch that was built for numpy 1.

    torch before 2.3 (on Windows before 2.4.1) still imports, with a long warning about modules compiled for NumPy 1.x;
    then every conversion between the two fails with "Numpy is not available" or "Could not infer dtype": image
    processors, data loading and evaluation go through it.

    Fix: numpy below 2, which is smaller than another torch. bitsandbytes is not concerned: it has no compiled numpy code.

    Source: pytorch/pytorch#107302 (2.3.0 works on Linux), #131668 (Windows wheels of 2.4.0 do not).
    """
    numpy, torch = stack.installed(facts, "numpy"), stack.installed(facts, "torch")
    host = facts.state("host")
    windows = not isinstance(host, Unknown) and host.system == "Windows"
    first = "2.4.1" if windows else "2.3"
    if numpy is None or torch is None or not satisfies(numpy, ">=2") or not satisfies(torch, f"<{first}"):
        return
    yield Finding(
        "torch {torch} was built for numpy 1, and numpy {numpy} is installed: conversions between the two fail (Numpy is"
        " not available). Install numpy<2, or torch>={first}.",
        {"torch": torch, "numpy": numpy, "first": first},
        fixes=(PipRequirement("numpy>=1.26.4,<2"),),
    )


@check("QD020", needs=["packages"], since="0.1")
def torchvision_of_another_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """torchvision or torchaudio was built for another torch than the installed one.

    They are bound to one torch minor version. With another one `import torchvision` fails ("operator torchvision::nms
    does not exist", undefined symbol), and transformers, which imports torchvision wherever it is installed, then
    cannot import its model classes. Two CUDA majors (cu118 and cu121) do not go together either.

    An error where the run loads a model or imports the package; an info where only the patch version differs.

    Fix: the pair of the installed torch (torch 2.N goes with torchvision 0.(15+N)); or uninstall it where nothing
    uses it.

    Source: Requires-Dist of torchvision and torchaudio; the table in the torchvision README up to 0.23.
    """
    torch = stack.by_name(facts.packages).get("torch")
    if torch is None:
        return
    for name, breaks in (("torchvision", ("load", "import:torchvision")), ("torchaudio", ("import:torchaudio",))):
        other = stack.by_name(facts.packages).get(name)
        if other is None:
            continue
        expected, named = _torch_of(other)
        cuda = _cuda_major(torch.version), _cuda_major(other.version)
        if expected and minor(expected) != minor(torch.version):
            severity: Severity = stack.severity(requests, breaks)
            problem = f"it was built for torch {expected}"
        elif all(cuda) and cuda[0] != cuda[1]:
            severity, problem = stack.severity(requests, breaks), "it was built for another CUDA major version"
        elif named and satisfies(torch.version, f"=={expected}") is False:
            severity, problem = "info", f"it names torch {expected}; the same minor version usually works"
        else:
            continue
        wanted = _pair(name, torch.version)
        yield Finding(
            "{package} {version} does not belong to torch {torch}: {problem}. Install {requirement}, in the same CUDA build.",
            {
                "package": name,
                "version": other.version,
                "torch": torch.version,
                "problem": problem,
                "requirement": wanted,
            },
            severity=severity,
            fixes=(PipRequirement(wanted),)
            if wanted != name
            else (Advice(f"install the {name} of torch {torch.version}"),),
        )


def _torch_of(distribution: Distribution) -> tuple[str, bool]:
    """The torch that a torchvision or torchaudio is for ("" unknown), and whether its metadata names it."""
    for line in distribution.requires:
        match = re.match(r"torch\s*\(?\s*==\s*([\d.]+)", line)
        if match:
            return match[1], True
    major, _, number = minor(distribution.version).partition(".")
    if canonical(distribution.name) == "torchvision":
        known = major == "0" and number.isdigit() and 15 <= int(number) <= 29
        return (f"2.{int(number) - 15}", False) if known else ("", False)
    known = major == "2" and number.isdigit() and int(number) <= 8
    return (f"2.{number}", False) if known else ("", False)


def _cuda_major(version: str) -> str:
    match = re.search(r"\+cu(\d\d)", version)
    return match[1] if match else ""


def _pair(name: str, torch: str) -> str:
    major, _, number = minor(torch).partition(".")
    if major != "2" or not number.isdigit():
        return name
    return f"torchvision==0.{15 + int(number)}.*" if name == "torchvision" else f"torchaudio==2.{number}.*"


CHECKS: tuple[Check, ...] = (numpy_2_with_an_old_torch, torchvision_of_another_torch)
