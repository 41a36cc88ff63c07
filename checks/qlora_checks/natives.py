"""QD420 to QD428: the libraries of the driver, of CUDA and of the system that the wheels meet."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import builds, stack
from qlora_checks.cuda_wheels import shared_pairs
from qlora_checks.requirements import leading, minor
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Binary, Facts, Library, TorchBuild, Unknown, canonical
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

_RUN = ("load", "training")
_OFF = "not on the loader's path"


def _taken(facts: Facts) -> Library | None:
    """The copy of libcuda that the loader takes."""
    return next((c for c in facts.native.libcuda if c.by != _OFF), None)


@check("QD420", needs=["native"], since="0.1")
def stub_of_libcuda_taken(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """LD_LIBRARY_PATH leads to the stub of libcuda, which is there for linking and cannot run anything.

    The toolkit has it in `lib64/stubs`. With it in front, CUDA says "CUDA driver is a stub library" (error 34), and torch
    sees no GPU.

    Fix: take the `stubs` folder out of LD_LIBRARY_PATH.

    Source: NVIDIA CUDA driver API, CUDA_ERROR_STUB_LIBRARY.
    """
    taken = _taken(facts)
    if taken is None or taken.kind != "stub":
        return
    yield Finding(
        "the loader takes the stub {path} for the driver's libcuda, found by {by}: torch sees no GPU ('CUDA driver is a stub"
        " library'). Take that folder out of LD_LIBRARY_PATH.",
        {"path": taken.path, "by": taken.by},
        severity=stack.severity(requests, _RUN),
        fixes=(Advice("take the stubs folder out of LD_LIBRARY_PATH"),),
    )


@check("QD421", needs=["native", "torch", "gpus", "host"], wants=["environ"], since="0.1")
def driver_not_handed_in(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A container or WSL in which the driver's libcuda is not there, although it should be.

    The NVIDIA runtime puts libcuda into a container at its start. Without `--gpus all` it is not there; with
    NVIDIA_DRIVER_CAPABILITIES=utility only nvidia-smi is, so a GPU is seen and cannot be used. Under WSL the Windows
    driver brings libcuda to /usr/lib/wsl/lib, which must be on the loader's path.

    It does not apply to containers that were not made for a GPU (no NVIDIA_VISIBLE_DEVICES), and to CPU builds of torch.

    Fix: `docker run --gpus all`, the capability `compute`, or a newer Windows driver.

    Source: NVIDIA container toolkit; CUDA on WSL user guide.
    """
    torch, host = facts.torch, facts.host
    if torch is None or torch.cuda is None or _taken(facts) is not None or host.system != "Linux":
        return
    state = facts.state("environ")
    environ = {} if isinstance(state, Unknown) else state
    seen = bool(builds.nvidia(facts))
    asked = environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if seen and host.wsl:
        problem = "the loader does not find libcuda.so.1 under WSL"
        remedy = "Add /usr/lib/wsl/lib to the loader's path (ldconfig), or install a newer Windows driver"
    elif seen and host.container:
        listed = environ.get("NVIDIA_DRIVER_CAPABILITIES", "not set")
        problem = f"the container has nvidia-smi and not libcuda.so.1 (NVIDIA_DRIVER_CAPABILITIES={listed})"
        remedy = "Start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    elif not seen and host.container and asked not in ("", "void", "none"):
        problem = f"the container asks for GPUs (NVIDIA_VISIBLE_DEVICES={asked}) and got no driver"
        remedy = "Start it with the NVIDIA runtime: docker run --gpus all"
    else:
        return
    yield Finding(
        "{problem}: torch {torch} sees no GPU. {remedy}.",
        {"problem": problem, "torch": torch.version, "remedy": remedy},
        severity=stack.severity(requests, _RUN),
        fixes=(Advice(remedy),),
    )


@check("QD422", needs=["native", "driver"], since="0.1")
def libcuda_of_another_driver(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The libcuda that the loader takes is of another version than the driver that runs.

    After an update of the driver the old module runs until the restart; or a container image, or a conda package, has
    a libcuda of its own. CUDA then says "system has unsupported display driver / cuda driver combination" (803).

    It does not apply to compatibility packages, which are meant to differ, to WSL, nor where a version is not known.

    Fix: restart, or take the other copy away.

    Source: NVIDIA CUDA driver API, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH.
    """
    taken, driver = _taken(facts), facts.driver
    if taken is None or driver is None or taken.kind != "driver" or len(leading(taken.version)) < 2:
        return
    if leading(taken.version) == leading(driver.version):
        return
    yield Finding(
        "libcuda is of driver {library} ({path}), and driver {driver} runs: CUDA refuses the pair. Restart the machine, or take"
        " the other copy of libcuda away.",
        {"library": taken.version, "path": taken.path, "driver": driver.version},
        fixes=(Advice("restart the machine, or take the other copy of libcuda away"),),
    )


@check("QD423", needs=["native", "gpus"], since="0.1")
def compatibility_package_on_geforce(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """NVIDIA's forward-compatibility package (cuda-compat) is in use on a GeForce card, which it does not serve.

    It lets an old driver run a newer CUDA on data-centre GPUs. On others CUDA stops with "forward compatibility was
    attempted on non supported HW" (804). Images of NVIDIA put it on LD_LIBRARY_PATH.

    A warning, as some RTX boards are served and the list is NVIDIA's.

    Fix: take /usr/local/cuda/compat out of LD_LIBRARY_PATH; a newer driver, or a torch for the CUDA of the driver.

    Source: NVIDIA CUDA compatibility guide, forward compatibility.
    """
    taken = _taken(facts)
    card = next((g for g in builds.nvidia(facts) if "geforce" in g.name.lower()), None)
    if taken is None or taken.kind != "compat" or card is None:
        return
    yield Finding(
        "the loader takes {path} of the forward-compatibility package, which does not serve {gpu}: CUDA stops with error 804."
        " Take that folder out of LD_LIBRARY_PATH, and update the driver if torch needs a newer one.",
        {"path": taken.path, "gpu": card.name},
        fixes=(Advice("take the compat folder out of LD_LIBRARY_PATH"),),
    )


# Their own versions follow CUDA's; those of cuSPARSE, cuSOLVER and cuDNN do not.
_FOLLOW = ("libcudart", "libcublas", "libcublasLt", "libnvJitLink")


@check("QD424", needs=["native", "torch"], wants=["environ"], since="0.1")
def older_cuda_libraries_in_front(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """LD_LIBRARY_PATH holds CUDA libraries older than those that torch was built with.

    torch brings its own, and some of them look for each other through the loader, which asks LD_LIBRARY_PATH first: "undefined
    symbol: __nvJitLinkComplete_12_4" at `import torch` is that, and so are wrong or slow kernels.

    It does not apply to another CUDA major (another file name), to newer copies, and to CPU builds of torch. A
    warning for libnvJitLink, which is known to break the import; an info for the others.

    Fix: unset LD_LIBRARY_PATH for the run.

    Source: the dynamic linker's manual (ld.so); pytorch/pytorch#111469.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None:
        return
    built = builds.numbers(torch.cuda)[:2]
    older = [
        c
        for c in facts.native.on_path
        if c.name in _FOLLOW and len(leading(c.version)) >= 2 and leading(c.version)[0] == built[0]
        if leading(c.version)[:2] < built
    ]
    if not older:
        return
    yield Finding(
        "LD_LIBRARY_PATH puts {libraries} in front of those that torch {torch} brings for CUDA {cuda}. Unset LD_LIBRARY_PATH for"
        " this run.",
        {
            "libraries": [f"{c.name} {c.version} ({c.path.rpartition('/')[0]})" for c in older],
            "torch": torch.version,
            "cuda": torch.cuda,
        },
        severity="warning" if any(c.name == "libnvJitLink" for c in older) else "info",
        fixes=(EnvVar("LD_LIBRARY_PATH", None),),
    )


@check("QD425", needs=["native", "host"], wants=["torch"], since="0.1")
def system_older_than_the_binaries(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An installed binary asks for a newer glibc or libstdc++ than this system has.

    pip checks glibc by the name of the wheel; conda, copied environments and `--platform` do not. The import then fails with
    "version `GLIBC_2.28' not found" or "`GLIBCXX_3.4.30' not found". The floors are read from the files themselves.

    It does not apply to libraries of bitsandbytes for other accelerators than this torch's.

    Fix: an older build of that package, a newer system (a container), or for libstdc++ the one that conda brings.

    Source: the version needs (SHT_GNU_verneed) of the ELF files, and the versions that libstdc++ offers.
    """
    host = facts.host
    if host.system != "Linux":
        return
    have = dict(facts.native.provided)
    if host.libc.startswith("glibc "):
        have["GLIBC"] = host.libc.partition(" ")[2]
    worst: dict[str, dict[str, str]] = {}
    for binary in facts.native.binaries:
        for what, floor in binary.floors.items() if _concerns(binary, facts) else ():
            asked = worst.setdefault(binary.module, {})
            if what in have and leading(floor) > max(leading(have[what]), leading(asked.get(what, ""))):
                asked[what] = floor
    for module, asked in sorted(worst.items()):
        if not asked:
            continue
        remedy = f"Use a newer system (a container), or an older {module}"
        if "GLIBC" not in asked:
            remedy += "; in a conda environment, conda install libstdcxx-ng"
        yield Finding(
            "{module} asks for {asked}, and this system has {have}: it cannot be loaded. {remedy}.",
            {
                "module": module,
                "asked": [f"{what}_{asked[what]}" for what in sorted(asked)],
                "have": [f"{what} {have[what]}" for what in sorted(asked)],
                "remedy": remedy,
            },
            severity=stack.severity(requests, (f"import:{module}",)),
            fixes=(Advice(remedy),),
        )


def _concerns(binary: Binary, facts: Facts) -> bool:
    """Whether an import would load it; bitsandbytes has a library for each accelerator and takes one."""
    if binary.module != "bitsandbytes":
        return True
    tag = binary.file.removeprefix("libbitsandbytes_").partition(".")[0]
    torch = facts.state("torch")
    if not isinstance(torch, TorchBuild) or torch.kind == "cpu":
        return tag == "cpu"
    return tag.startswith(
        {"cuda": "cuda" + (torch.cuda or "").partition(".")[0], "rocm": "rocm"}.get(torch.kind, "xpu")
    )


_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


@check("QD426", needs=["native", "host"], since="0.1")
def binary_for_another_processor(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An installed package holds compiled code for another kind of processor than this machine's.

    An environment that was copied from an x86 machine to an ARM one (GH200, Jetson), or the other way round: the import
    fails with "cannot open shared object file" or "wrong ELF class".

    Fix: install the package again, on this machine.

    Source: the ELF header of the file.
    """
    machine = _SAME.get(facts.host.machine.lower(), facts.host.machine.lower())
    others = sorted({(b.machine, b.module) for b in facts.native.binaries if b.machine not in ("", machine)})
    if not others:
        return
    modules = [module for _, module in others]
    yield Finding(
        "{modules} hold(s) code for {theirs}, and this machine is {ours}: it cannot be loaded. Install again, on this machine.",
        {"modules": modules, "theirs": others[0][0], "ours": machine},
        severity=stack.severity(requests, tuple(f"import:{module}" for module in modules)),
        fixes=(Advice(f"install {', '.join(modules)} again, on this machine"),),
    )


@check("QD427", needs=["packages", "torch"], wants=["native"], since="0.1")
def flash_attn_of_another_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """flash-attn was built for another torch or another CUDA than the installed ones.

    Its wheels are made for one torch minor version and one CUDA major, and say so in the version
    (`2.7.4.post1+cu12torch2.6cxx11abiFALSE`) and in the libraries that they link. With another torch the import fails
    with an undefined symbol; transformers imports it wherever it is installed.

    It does not apply where neither the version nor the file tells. xformers names its torch in its metadata (QD436), and
    torch its triton (QD007).

    An error where the run asks for flash_attention_2, else a warning.

    Fix: the wheel for this torch, or none at all.

    Source: names of the wheels of flash-attention; the ELF header of its library.
    """
    distribution = stack.by_name(facts.packages).get("flash-attn")
    torch = facts.torch
    if distribution is None or torch is None:
        return
    local = distribution.version.partition("+")[2]
    tag = re.search(r"torch(\d+\.\d+)", local)
    cuda = re.search(r"cu(\d{2})", local)
    state = facts.state("native")
    linked = _linked_cuda(() if isinstance(state, Unknown) else state.binaries)
    built = linked or (cuda[1] if cuda else "")
    if tag is not None and tag[1] != minor(torch.version):
        problem = f"was built for torch {tag[1]}"
    elif built and torch.cuda is not None and built != torch.cuda.partition(".")[0]:
        problem = f"was built for CUDA {built}"
    elif tag is None and not built:
        raise UnknownFact("torch of flash-attn", f"{distribution.version} does not say which torch it was built for")
    else:
        return
    asked = any(r.call.seen("attn_implementation") == "flash_attention_2" for r in requests.loads)
    remedy = f"Install the flash-attn wheel for torch {minor(torch.version)}, or uninstall it"
    yield Finding(
        "flash-attn {version} {problem}, and torch is {torch} (CUDA {cuda}): importing it fails. {remedy}.",
        {
            "version": distribution.version,
            "problem": problem,
            "torch": torch.version,
            "cuda": torch.cuda or "none",
            "remedy": remedy,
        },
        severity="error" if asked else "warning",
        fixes=(PipRequirement("flash-attn", remove=True), Advice(remedy)),
    )


def _linked_cuda(binaries: tuple[Binary, ...]) -> str:
    """The CUDA major that flash-attn's library links."""
    for binary in binaries:
        for link in binary.links if binary.module == "flash_attn" else ():
            match = re.match(r"libcudart\.so\.(\d+)", link)
            if match:
                return match[1]
    return ""


@check("QD428", needs=["packages", "torch"], since="0.1")
def cuda_wheels_of_another_major(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """NVIDIA's wheels of another CUDA major lie beside those that torch uses.

    An upgrade of torch leaves the old ones (`nvidia-cublas-cu11`, some 3 GB). They do no harm by themselves; what puts
    their folders on LD_LIBRARY_PATH does.

    An info. It does not apply to CPU builds of torch, to what another installed package asks for, nor to those that share a
    file with the wheel that torch needs: uninstalling them would take it away, and QD440 says what to do.

    Fix: uninstall them.

    Source: names of the wheels.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None:
        return
    major = torch.cuda.partition(".")[0]
    names = stack.by_name(facts.packages)
    asked = {
        re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0].lower().replace("_", "-")
        for d in names.values()
        for line in d.requires
        if line.lower().startswith("nvidia")
    }
    asked |= {canonical(d.name) for _, others in shared_pairs(facts) for d in others}
    left = sorted(
        n for n in names if re.fullmatch(r"nvidia-.+-cu\d{2}", n) and not n.endswith("cu" + major) and n not in asked
    )
    if left:
        yield Finding(
            "{count} NVIDIA wheel(s) of another CUDA than torch's {cuda} are installed ({names}); nothing asks for them."
            " Uninstall them to save gigabytes.",
            {"count": len(left), "cuda": torch.cuda, "names": left},
            severity="info",
            fixes=tuple(PipRequirement(name, remove=True) for name in left),
        )


CHECKS: tuple[Check, ...] = (
    stub_of_libcuda_taken,
    driver_not_handed_in,
    libcuda_of_another_driver,
    compatibility_package_on_geforce,
    older_cuda_libraries_in_front,
    system_older_than_the_binaries,
    binary_for_another_processor,
    flash_attn_of_another_torch,
    cuda_wheels_of_another_major,
)
