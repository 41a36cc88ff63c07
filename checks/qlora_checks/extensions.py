"""QD435 and QD436: packages with CUDA code of their own, and the torch or toolkit that they meet."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import stack
from qlora_checks.requirements import environment, minor, needs, satisfies
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


@check("QD435", needs=["packages", "native", "torch"], wants=["environ"], since="0.1")
def deepspeed_with_another_cuda_toolkit(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The CUDA toolkit here is of another major version than torch, and DeepSpeed compiles its optimizers with it.

    DeepSpeed builds its CPU and fused Adam when they are first used, with the nvcc of CUDA_HOME, and compares its
    version with torch's before: "Installed CUDA version 12.2 does not match the version torch was compiled with 11.7"
    (CUDAMismatchException). The same major version is accepted.

    It does not apply without deepspeed, without a toolkit (then DeepSpeed says so itself), to CPU builds of torch, nor
    where DS_SKIP_CUDA_CHECK=1 is set. ZeRO without offload and with a torch optimizer compiles nothing.

    A warning for a run whose settings name deepspeed, else an info.

    Fix: set CUDA_HOME to a toolkit of torch's CUDA; or a torch for the CUDA of the toolkit.

    Source: `assert_no_cuda_mismatch` in DeepSpeed's op_builder/builder.py; deepspeedai/DeepSpeed#3223 and #3436.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None or stack.installed(facts, "deepspeed") is None:
        return
    state = facts.state("environ")
    environ = {} if isinstance(state, Unknown) else state
    toolkit = _toolkit(facts, environ.get("CUDA_HOME") or environ.get("CUDA_PATH") or "")
    if not re.match(r"\d+", toolkit) or environ.get("DS_SKIP_CUDA_CHECK") == "1":
        return
    if toolkit.partition(".")[0] == torch.cuda.partition(".")[0]:
        return
    used = any(t.settings is not None and t.settings.seen("deepspeed") for t in requests.trains)
    remedy = f"Set CUDA_HOME to a toolkit of CUDA {torch.cuda.partition('.')[0]}"
    yield Finding(
        "the CUDA toolkit here is {toolkit}, and torch {torch} is built for CUDA {cuda}: DeepSpeed {deepspeed} refuses to compile"
        " its optimizers (CUDAMismatchException). {remedy}.",
        {
            "toolkit": toolkit,
            "torch": torch.version,
            "cuda": torch.cuda,
            "deepspeed": stack.installed(facts, "deepspeed"),
            "remedy": remedy,
        },
        severity="warning" if used else "info",
        fixes=(Advice(remedy),),
    )


def _toolkit(facts: Facts, home: str) -> str:
    """The version of the toolkit that torch takes to compile with: CUDA_HOME, then the nvcc on PATH, then /usr/local/cuda."""
    toolkits = {t.path.rstrip("/"): t.version for t in facts.native.toolkits}
    if home:
        return toolkits.get(home.rstrip("/"), "")
    return facts.native.nvcc or toolkits.get("/usr/local/cuda", "")


@check("QD436", needs=["packages", "interpreter"], wants=["host"], since="0.1")
def xformers_of_another_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """xformers was built for another torch than the installed one.

    Its wheels name one exact torch in their metadata, and hold code that is linked to it. With another one xformers is
    imported and says "xFormers can't load C++/CUDA extensions"; then the first memory-efficient attention fails with
    "No operator found". Unsloth and diffusers use it where it is installed.

    It does not apply to versions that name a range of torch.

    An error where the run imports xformers, a warning where it imports unsloth, else an info.

    Fix: the xformers of the installed torch, or none.

    Source: Requires-Dist of the xformers wheels; facebookresearch/xformers, `_cpp_lib.py`.
    """
    xformers, torch = stack.by_name(facts.packages).get("xformers"), stack.installed(facts, "torch")
    if xformers is None or torch is None:
        return
    asked = next((n.specifier for n in needs(xformers.requires, environment(facts)) if n.name == "torch"), "")
    exact = re.fullmatch(r"==\s*([\d.]+)", asked)
    if exact is None or satisfies(torch, asked) is not False or minor(exact[1]) == minor(torch):
        return
    taken = stack.paths(requests)
    remedy = f"Install the xformers of torch {minor(torch)}, or uninstall it"
    yield Finding(
        "xformers {version} was built for torch {built}, and torch is {torch}: its kernels cannot be loaded. {remedy}.",
        {"version": xformers.version, "built": exact[1], "torch": torch, "remedy": remedy},
        severity="error" if "import:xformers" in taken else "warning" if "import:unsloth" in taken else "info",
        fixes=(PipRequirement("xformers", remove=True), Advice(remedy)),
    )


CHECKS: tuple[Check, ...] = (deepspeed_with_another_cuda_toolkit, xformers_of_another_torch)
