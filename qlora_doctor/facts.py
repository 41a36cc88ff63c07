"""Facts: what is. Gathered by `qlora_doctor.gather`, read by checks, saved and replayed as JSON.

A part that nobody could read, or that nobody asked for, is `Unknown` with its reason. Reading such a part raises
`UnknownFact`, so a check never takes "unknown" for "fine". Inside a part, None means the same: use `known(...)`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qlora_doctor.errors import NewerSchema, UnknownFact, WireError
from qlora_doctor.source import Script
from qlora_doctor.wire import decoder, to_data

if TYPE_CHECKING:
    from packaging.version import Version

SCHEMA = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why a part is not there. `skipped`: it was not asked for (offline, not needed), which is nobody's failure."""

    reason: str
    skipped: bool = False


NOT_GATHERED = Unknown("not gathered", skipped=True)


def known(value: T | None, name: str, reason: str = "could not be read") -> T:
    """`value`, or the outcome `unknown` where it is None."""
    if value is None:
        raise UnknownFact(name, reason)
    return value


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that is judged. `version` is `3.11.7`; `conda` the environment's name; `venv` whether in one.

    `project_tool` is `uv`, `poetry`, `pdm`, `conda` or "" for the tool that manages this environment, where known.
    """

    version: str
    executable: str = ""
    prefix: str = ""
    base_prefix: str = ""
    implementation: str = "CPython"
    bits: int = 64
    venv: bool = False
    conda: str = ""
    externally_managed: bool = False
    user_site: bool = True
    pip: bool = True


@dataclass(frozen=True, slots=True)
class Host:
    """The machine. Memory in bytes; `system` is `Linux`, `Windows`, `Darwin`; `libc` is `glibc 2.36`.

    `wsl` is 0, 1 or 2; `container` is `docker`, `podman`, `kubernetes`, `colab`, `kaggle`, ... or "".
    `memory_limit` is the cgroup's limit. `shm_total` and `shm_free` are /dev/shm in bytes.
    """

    system: str = "Linux"
    machine: str = "x86_64"
    release: str = ""
    distribution: str = ""
    libc: str = ""
    wsl: int = 0
    container: str = ""
    cpu_count: int | None = None
    cpu_flags: tuple[str, ...] = ()
    memory_total: int | None = None
    memory_available: int | None = None
    memory_limit: int | None = None
    swap_total: int | None = None
    shm_total: int | None = None
    shm_free: int | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution, as its metadata states it. `name` is as written; compare `canonical(name)`.

    `requires` are the raw Requires-Dist lines. `origin` is "" for an index, else `editable`, `local` (a file or
    folder), `vcs` or `url`. `location` is the folder that holds it.
    """

    name: str
    version: str
    location: str = ""
    requires: tuple[str, ...] = ()
    requires_python: str = ""
    installer: str = ""
    origin: str = ""
    provides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Packages:
    """Every installed distribution, first on sys.path first, and what is wrong with the folders themselves.

    `duplicates` maps a canonical name to the locations of the copies that are shadowed. `leftovers` are folders such
    as `~orch` that an interrupted pip left. `without_metadata` are import packages of the stack that lie there with
    no dist-info (paths); `without_package` are distributions of the stack whose import package is gone. `broken`
    are dist-info folders whose METADATA cannot be read. `stray` are files such as `=0.44.0` in the project folder.
    """

    distributions: tuple[Distribution, ...] = ()
    duplicates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    without_metadata: tuple[str, ...] = ()
    without_package: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()

    def find(self, name: str) -> Distribution | None:
        """The distribution that an import would take, or None."""
        wanted = canonical(name)
        for distribution in self.distributions:
            if canonical(distribution.name) == wanted:
                return distribution
        return None


def canonical(name: str) -> str:
    """A distribution name as PEP 503 compares them."""
    out = name.lower().replace("_", "-").replace(".", "-")
    while "--" in out:
        out = out.replace("--", "-")
    return out


@dataclass(frozen=True, slots=True)
class Shadow:
    """`module` is found at `path` before the installed one at `hidden`. `by`: `script folder`, `cwd`, `PYTHONPATH`, `path`."""

    module: str
    path: str
    hidden: str
    by: str


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """torch as `torch/version.py` states it, never imported. `cuda` is `12.1`; None in a CPU build.

    `source` says what was read. `libraries` are the file names of torch/lib that a check may want.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    source: str = "torch/version.py"
    libraries: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`cuda`, `rocm`, `xpu` or `cpu`."""
        return "cuda" if self.cuda else "rocm" if self.hip else "xpu" if self.xpu else "cpu"


@dataclass(frozen=True, slots=True)
class BnbBuild:
    """bitsandbytes as its folder shows it. `libraries` are tags: `cpu`, `cuda121`, `cuda121_nocublaslt`, `rocm64`, `xpu`."""

    version: str
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver. `version` is `550.120`; `cuda` the newest CUDA that it serves (`12.4`); `source` who said so."""

    version: str
    cuda: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int
    name: str = ""
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `capability` is `8.6`; memory in bytes. `vendor`: `nvidia`, `amd`, `intel`, `apple`."""

    name: str
    capability: str | None = None
    memory_total: int | None = None
    memory_free: int | None = None
    vendor: str = "nvidia"
    index: int = 0
    uuid: str = ""
    mig: bool = False
    compute_mode: str = ""
    processes: tuple[GpuProcess, ...] = ()

    @property
    def sm(self) -> tuple[int, int] | None:
        """The capability as a pair, `(8, 6)`."""
        if self.capability is None:
            return None
        major, _, minor = self.capability.partition(".")
        return int(major), int(minor or 0)


@dataclass(frozen=True, slots=True)
class Disk:
    """Free and total bytes of the file system under `path`. `purpose`: `hf-cache`, `tmp`, `output`, `project`."""

    purpose: str
    path: str
    free: int | None = None
    total: int | None = None
    writable: bool | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a function or the fields of a dataclass, read from the installed source.

    `swallows`: it takes `**kwargs` and drops unknown names without a word. `open`: it takes `**kwargs` and passes
    them on, so an unknown name may be right. `source` is `package/file.py:line`.
    """

    parameters: tuple[str, ...]
    required: tuple[str, ...] = ()
    swallows: bool = False
    open: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class Installed:
    """What the installed packages say of themselves, read with `ast` from their source, never imported.

    `minimums` maps `transformers` to `{"accelerate": "1.1.0", "bitsandbytes": "0.46.1", "peft": "0.20.0"}`: floors
    enforced when the feature is used. `import_requirements` maps a package to requirement strings that are checked
    when it is imported. `model_types` are the architectures transformers knows; `classes` its public names.
    `signatures` maps an import path to a signature; a path that was looked for and does not exist maps to None.
    `lora_defaults` are the model types for which PEFT knows default target modules.
    """

    minimums: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    import_requirements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    signatures: Mapping[str, Signature | None] = field(default_factory=dict)
    lora_defaults: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hub:
    """The endpoint a download would use, and what one bounded request to it gave.

    `reachable` is None when it was not asked. `failure` is `dns`, `refused`, `reset`, `timeout`, `tls`, `proxy`,
    `http 503`, `not json` or "". `cached` names the repositories that lie in the local cache.
    """

    endpoint: str = "https://huggingface.co"
    source: str = "default"
    reachable: bool | None = None
    failure: str = ""
    detail: str = ""
    seconds: float | None = None
    cached: tuple[str, ...] = ()
    offline: bool = False


@dataclass(frozen=True)
class Facts:
    """All facts of one run. Each part is its class, or `Unknown`; reading an unknown part raises `UnknownFact`.

    `script` is the file that is being judged; it is read anew each time and never saved with the rest.
    `extra` holds third parties' facts under their own name.
    """

    interpreter: Interpreter = cast(Interpreter, NOT_GATHERED)
    host: Host = cast(Host, NOT_GATHERED)
    packages: Packages = cast(Packages, NOT_GATHERED)
    shadows: tuple[Shadow, ...] = cast("tuple[Shadow, ...]", NOT_GATHERED)
    torch: TorchBuild | None = cast("TorchBuild | None", NOT_GATHERED)
    bitsandbytes: BnbBuild | None = cast("BnbBuild | None", NOT_GATHERED)
    gpus: tuple[Gpu, ...] = cast("tuple[Gpu, ...]", NOT_GATHERED)
    driver: Driver | None = cast("Driver | None", NOT_GATHERED)
    disks: tuple[Disk, ...] = cast("tuple[Disk, ...]", NOT_GATHERED)
    environ: Mapping[str, str] = cast("Mapping[str, str]", NOT_GATHERED)
    installed: Installed = cast(Installed, NOT_GATHERED)
    hub: Hub = cast(Hub, NOT_GATHERED)
    script: Script = cast(Script, NOT_GATHERED)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value.__class__ is Unknown:
            raise UnknownFact(name, value.reason)
        return value

    def state(self, name: str) -> Any:
        """A part as it is stored: its value or `Unknown`. Never raises for a part that exists."""
        return object.__getattribute__(self, name)

    def but(self, **parts: Any) -> Facts:
        """A copy with some parts replaced (`dataclasses.replace` would trip over unknown parts)."""
        values = {f.name: self.state(f.name) for f in dataclasses.fields(self)}
        unexpected = set(parts) - set(values)
        if unexpected:
            raise TypeError(f"no such part of the facts: {', '.join(sorted(unexpected))}")
        return Facts(**{**values, **parts})

    def version(self, name: str) -> Version | None:
        """The installed version of a distribution, or None where it is not installed.

        Raises:
            UnknownFact: the packages could not be read, or this version is not one that PEP 440 knows.
        """
        from packaging.version import InvalidVersion, Version

        distribution = self.packages.find(name)
        if distribution is None:
            return None
        try:
            return Version(distribution.version)
        except InvalidVersion:
            raise UnknownFact(f"version of {name}", f"{distribution.version!r} is not a version") from None

    def to_wire(self) -> dict[str, Any]:
        data: dict[str, Any] = {"schema": SCHEMA}
        for f in dataclasses.fields(self):
            value = self.state(f.name)
            if f.name == "script" or value == NOT_GATHERED:
                continue
            if value.__class__ is Unknown:
                data[f.name] = {"unknown" if not value.skipped else "skipped": value.reason}
            elif f.name != "extra" or value:
                data[f.name] = to_data(value)
        return data

    @classmethod
    def from_wire(cls, data: Any, where: str = "$") -> Facts:
        """Raises WireError where the data is not facts, NewerSchema where a newer doctor wrote it."""
        if not isinstance(data, Mapping):
            raise WireError(where, "expected an object")
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise WireError(f"{where}.schema", "expected the number of the facts format")
        if schema > SCHEMA:
            raise NewerSchema(
                f"{where}.schema",
                f"these facts have format {schema}; this qlora-doctor reads up to {SCHEMA}: "
                "update it (pip install -U qlora-doctor)",
            )
        values: dict[str, Any] = {}
        fields = {f.name for f in dataclasses.fields(cls)} - {"script"}
        for key, value in data.items():
            if key == "schema":
                continue
            if key not in fields:
                raise WireError(where, f"unknown key {str(key)[:60]!r}")
            if isinstance(value, Mapping) and set(value) in ({"unknown"}, {"skipped"}):
                ((word, reason),) = value.items()
                values[key] = Unknown(str(reason), skipped=word == "skipped")
            else:
                values[key] = _parts()[key](value, f"{where}.{key}")
        return cls(**values)


@cache
def _parts() -> Mapping[str, Any]:
    hints = typing.get_type_hints(Facts)
    return {name: decoder(hint) for name, hint in hints.items() if name != "script"}


PARTS = tuple(f.name for f in dataclasses.fields(Facts))
