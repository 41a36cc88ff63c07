"""The environment as rows for a reader: the few lines that decide first, the packages apart."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_doctor.facts import Driver, Facts, Host, Interpreter, Packages, TorchBuild, Unknown, canonical
from qlora_doctor.report.memory import gib

STACK = ("transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets", "huggingface-hub", "tokenizers")


def fact_rows(facts: Facts) -> tuple[tuple[str, str], ...]:
    """What decides: Python, torch and its CUDA, the stack, the GPUs, the driver, the machine, the variables."""
    return tuple(_rows(facts))


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    interpreter, packages, torch = facts.state("interpreter"), facts.state("packages"), facts.state("torch")
    if isinstance(interpreter, Interpreter):
        yield "Python", " ".join(filter(None, (interpreter.version, interpreter.executable)))
    if isinstance(torch, TorchBuild):
        kind = {"cuda": f"CUDA {torch.cuda}", "rocm": f"ROCm {torch.hip}", "cpu": "CPU build"}
        yield "torch", f"{torch.version} ({kind.get(torch.kind, torch.kind)})"
    if isinstance(packages, Packages):
        for name in STACK:
            found = packages.find(name)
            if found is not None:
                yield found.name, found.version
    gpus, driver, host = facts.state("gpus"), facts.state("driver"), facts.state("host")
    if not isinstance(gpus, Unknown):
        for gpu in gpus:
            memory = f", {gib(gpu.memory_total)}" if gpu.memory_total else ""
            yield "GPU", f"{gpu.name}{memory}" + (f", sm {gpu.capability}" if gpu.capability else "")
        if not gpus:
            yield "GPU", "none"
    if isinstance(driver, Driver):
        yield "driver", driver.version
    if isinstance(host, Host):
        memory = f", {gib(host.memory_total)} of memory" if host.memory_total else ""
        yield "machine", f"{host.distribution or host.system} {host.machine}, {host.libc or host.release}{memory}"
    environ = facts.state("environ")
    if not isinstance(environ, Unknown):
        yield from ((name, value) for name, value in sorted(environ.items()))


def package_rows(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Every installed distribution and its version, by name."""
    packages = facts.state("packages")
    if not isinstance(packages, Packages):
        return ()
    return tuple(sorted(((d.name, d.version) for d in packages.distributions), key=lambda row: canonical(row[0])))
