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
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

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
    `roots` maps an import package of the stack to the folder (or file) that an import would take, editable installs too.
    `contested` maps a library that several of NVIDIA's wheels installed (`nvidia/nccl/lib/libnccl.so.2`) to the name of the
    distribution whose file lies there, by its size; "" where that cannot be told.
    """

    distributions: tuple[Distribution, ...] = ()
    duplicates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    without_metadata: tuple[str, ...] = ()
    without_package: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    roots: Mapping[str, str] = field(default_factory=dict)
    contested: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Distribution | None:
        """The distribution that an import would take, or None."""
        wanted = canonical(name)
        for distribution in self.distributions:
            if canonical(distribution.name) == wanted:
                return distribution
        return None


# The version of a package in a simulated world where only "the newest that an index has" can be said.
NEWEST = "9999"


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
class MigSlice:
    """One slice of a GPU in MIG mode, which is what torch sees in the place of the GPU. Memory in bytes."""

    uuid: str = ""
    memory_total: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `capability` is `8.6`; memory in bytes. `vendor`: `nvidia`, `amd`, `intel`, `apple`.

    `compute_mode` is `default`, `exclusive-process`, `exclusive-thread` or `prohibited`. `slices` are those of a GPU in
    MIG mode; None where they could not be read. `ecc`: whether ECC is on; `ecc_errors` counts the uncorrected ones
    since the start of the driver. `arch` is AMD's name of the kind (`gfx942`).
    """

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
    slices: tuple[MigSlice, ...] | None = None
    ecc: bool | None = None
    ecc_errors: int | None = None
    arch: str = ""

    @property
    def sm(self) -> tuple[int, int] | None:
        """The capability as a pair, `(8, 6)`."""
        if self.capability is None:
            return None
        major, _, minor = self.capability.partition(".")
        return int(major), int(minor or 0)


@dataclass(frozen=True, slots=True)
class Library:
    """A copy of a native library. `kind`: `driver`, `stub`, `compat`, `wsl` for libcuda, else "". `by` says who finds it."""

    name: str
    path: str
    version: str = ""
    kind: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled file of an installed package, as its ELF header shows it; nothing of it is loaded.

    `floors` are the newest versions that it asks for, by what (`GLIBC`, `GLIBCXX`, `CXXABI`). `links` are the CUDA
    libraries that it names (`libcudart.so.12`). `machine` is `x86_64`, `aarch64` or "".
    """

    module: str
    file: str
    machine: str = ""
    floors: Mapping[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Native:
    """Native libraries beside the wheels, on Linux.

    `libcuda` are the copies of libcuda.so.1 in the order in which the loader looks. `toolkits` are CUDA toolkits (name:
    version, path), `nvcc` the version of the one on PATH. `on_path` are copies of CUDA libraries in LD_LIBRARY_PATH.
    `provided` is the newest GLIBCXX and CXXABI that the libstdc++ offers which this interpreter takes.
    """

    libcuda: tuple[Library, ...] = ()
    toolkits: tuple[Library, ...] = ()
    nvcc: str = ""
    on_path: tuple[Library, ...] = ()
    binaries: tuple[Binary, ...] = ()
    provided: Mapping[str, str] = field(default_factory=dict)


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


RepositoryStatus = Literal[
    "ok", "gated", "not granted", "not found", "bad token", "unanswered",
    "expired token", "fine-grained", "pending", "rejected", "disabled",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repository:
    """What the Hub says of one repository that the run needs. `token`: whether a token was sent with the request.

    `gated`: terms must be accepted, and nobody is logged in. `not granted`: the token's account has no right to the
    files. `not found`: no such repository, or a private one that this request may not see. `bad token`: the Hub does
    not know the token. `expired token`: it knew it once. `fine-grained`: the token lacks the right to gated repositories.
    `pending`, `rejected`: the owners did not (yet) grant access. `disabled`: nobody may read it. `to_download` are the
    bytes of the weights that a load takes and that are not in the cache. `withheld`: a token is set here, and was not
    sent, because the endpoint is not the Hub's own. `public`: where the token is the trouble, whether it can be read
    without one. `near` are ids that exist and are nearly the one asked for; `canonical` the id under which it was found.
    `licence` is the model card's own word; `terms` is `auto` or `manual` where terms must be accepted to read it.
    """

    name: str
    status: RepositoryStatus
    token: bool = False
    detail: str = ""
    revision: str = ""
    to_download: int | None = None
    withheld: bool = False
    public: bool | None = None
    near: tuple[str, ...] = ()
    canonical: str = ""
    licence: str = ""
    terms: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that a download needs of the Hub beside its API, and what trying it gave.

    `what` is `file` (a small file of a revision), `weights` (the first bytes of a weight file, from wherever the Hub
    redirects to), `range` (that no more than those bytes came) or `xet` (the storage that hf_xet asks instead). `host`
    answered, or did not; `failure` is as in `Hub`, "" where it worked.
    """

    what: Literal["file", "weights", "range", "xet"]
    host: str
    failure: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A configured mirror, and what one request to it gave. `reachable` and `failure` are as in `Hub`."""

    endpoint: str
    reachable: bool | None = None
    failure: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the local cache holds of a repository's main revision. `missing` are files that a load needs and that are
    not there; `incomplete` are the bytes of downloads that were broken off."""

    name: str
    revision: str = ""
    missing: tuple[str, ...] = ()
    incomplete: int = 0


@dataclass(frozen=True, slots=True)
class HubCache:
    """The folder of the Hub cache. `filesystem` is its type (`ext4`, `nfs4`, `9p`), "" where that is not known.

    `writable` is of the folder, or of the nearest one above it that exists; `symlinks` whether it can hold links.
    """

    path: str
    filesystem: str = ""
    writable: bool | None = None
    symlinks: bool | None = None


@dataclass(frozen=True, slots=True)
class Hub:
    """The endpoint a download would use, and what one bounded request to it gave.

    `reachable` is None when it was not asked. `failure` is `dns`, `refused`, `reset`, `cut short`, `timeout`, `tls` (`tls expired`,
    `tls not yet valid`, `tls unknown authority`, `tls wrong host`), `proxy` (`proxy refused`, `proxy password`), `redirect loop`,
    `http 503`, `not json` or "". `redirected` is the host that failed where a redirect led to another one, `retry_after`
    the seconds that a busy Hub asks for. `cached` names the repositories that lie in the local cache, `snapshots` how
    complete those are that the run needs, `asked` those that it needs (without what is a folder here), `repositories`
    what was answered for them, `routes` what else a download needs. `mirrors` are the configured ones, asked where the
    endpoint failed.
    """

    endpoint: str = "https://huggingface.co"
    source: str = "default"
    reachable: bool | None = None
    failure: str = ""
    detail: str = ""
    seconds: float | None = None
    cached: tuple[str, ...] = ()
    offline: bool = False
    asked: tuple[str, ...] = ()
    repositories: tuple[Repository, ...] = ()
    redirected: str = ""
    retry_after: int | None = None
    routes: tuple[Route, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    cache: HubCache | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as a safetensors header states it. `dtype` is the file's word (`BF16`, `U8`), `file` where it lies."""

    dtype: str
    shape: tuple[int, ...]
    file: str = ""


FileFault = Literal[
    "", "missing", "lfs pointer", "web page", "truncated", "too long", "damaged", "outside", "unreadable"
]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a model folder. `size` in bytes; `expected` what its own header says it should be, where it does.

    `fault` is `lfs pointer`, `web page`, `truncated`, `too long`, `damaged` (not what its name says), `missing` (the
    index names it), `outside` (a link, or a path in the index, that leaves the folder: never opened) or `unreadable`
    (no right to read it, or larger than what is read). `detail` says more.
    """

    name: str
    size: int = 0
    fault: FileFault = ""
    detail: str = ""
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model folder, or a repository of the Hub, from its small files and the headers of its weights. No weight is read, no pickle opened.

    `name` is what the request calls it. `config` and the other dictionaries are the JSON files; None where there is
    none, or none that can be read (then its entry in `files` has a fault). Of `tokenizer_config` the table of added
    tokens and the chat template are left out; `largest_token_id` is the highest id that is added, `chat_template`
    whether a template lies anywhere. `tensors` come from the safetensors headers; `weight_map` is what the index
    `index` says (tensor to file), `index_size` its total. `complete` is False where a header could not be read, so
    that what is not in `tensors` may yet exist.
    """

    name: str
    files: tuple[StoredFile, ...] = ()
    config: Mapping[str, Any] | None = None
    generation_config: Mapping[str, Any] | None = None
    tokenizer_config: Mapping[str, Any] | None = None
    special_tokens: Mapping[str, Any] | None = None
    processor_config: Mapping[str, Any] | None = None
    preprocessor_config: Mapping[str, Any] | None = None
    adapter_config: Mapping[str, Any] | None = None
    chat_template: bool = False
    largest_token_id: int | None = None
    index: str = ""
    index_size: int | None = None
    origin: Literal["folder", "hub"] = "folder"
    weight_map: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    complete: bool = True

    def file(self, name: str) -> StoredFile | None:
        """The file of this name, or None where it is not there."""
        return next((f for f in self.files if f.name == name and f.fault != "missing"), None)

    def has(self, *names: str) -> bool:
        """Whether one of these files is there."""
        return any(self.file(name) for name in names)


LiveOutcome = Literal["ok", "died", "failed", "timeout", "absent"]


@dataclass(frozen=True, slots=True)
class LiveProbe:
    """One thing that `check --live` really did, in a process of its own, and how that ended.

    `name` is such as `import torch` or `4-bit round trip, bfloat16, on cuda:0`. `died`: a signal or an exit ended the
    process, `signal` says which (`SIGSEGV`). `failed`: an exception, or a wrong result, in `detail`. `timeout`: it had to be ended, or
    the time was used up before. `absent`: there was nothing to try; `detail` says why. `last_frame` is where the
    process was (`torch/__init__.py:427 in <module>`), `missing` the library or symbol that it did not find. `cut`: it got
    less than its own time, as what ran before had used up the time of all; a timeout of it says nothing.
    """

    name: str
    outcome: LiveOutcome
    signal: str = ""
    exit_code: int | None = None
    last_frame: str = ""
    missing: str = ""
    detail: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class RowFault:
    """One thing that is wrong, or worth a look, in one row of data. It quotes no text of the row.

    `kind` is one of the words that `DataFacts.counts` lists. `row` counts from 1 as the user counts: a line of JSONL, CSV
    or Markdown, an element of a JSON list; 0 for a whole file. `field` is the key or column (`messages[2].content`).
    """

    kind: str
    file: str = ""
    row: int = 0
    field: str = ""
    detail: str = ""

    @property
    def where(self) -> str:
        """`train.jsonl row 17 (output)`."""
        place = f"{self.file} row {self.row}" if self.row else self.file
        return f"{place} ({self.field})" if self.field else place


@dataclass(frozen=True, slots=True)
class DataFacts:
    """One set of training data as it was read and, where a tokenizer was at hand, encoded. Counts are of rows.

    `rows` are all that were found, good or not; `format` is "" where none was recognised. `encodings` maps a file to its
    encoding where that is not UTF-8. `counts` says how many rows have a fault of a kind; `faults` are the first of each:
    `unreadable` (a file), `malformed`, `not text`, `preference`, `no answer`, `empty answer`, `empty question`,
    `turn order`, `duplicate`, `contradiction`, `damaged text`, `placeholders`, `placeholder without image`,
    `image put first`, `image missing`, `image broken`, `image huge`, `image outside`, `image address`, `leak`,
    `near leak`, `thinking`; and where it was
    encoded (`max_length` is not None): `masked` (not one label is learned), `too long`, `cannot be encoded`.

    `too_long` is what happens to long rows, `drop` or `refuse`. `tokens` and `supervised` are sums over the rows that are
    kept, `lengths` the number of rows by the upper end of their length. `template_thinks`: whether the chat template knows
    `<think>`; None unknown. `eval_rows` is 0 where there is no evaluation data.
    """

    files: tuple[str, ...] = ()
    format: str = ""
    rows: int = 0
    images: int = 0
    eval_rows: int = 0
    encodings: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[RowFault, ...] = ()
    notes: tuple[str, ...] = ()
    max_length: int | None = None
    too_long: Literal["drop", "refuse"] = "drop"
    kept: int | None = None
    tokens: int | None = None
    supervised: int | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)
    template_thinks: bool | None = None

    def count(self, *kinds: str) -> int:
        """How many rows have a fault of one of these kinds."""
        return sum(self.counts.get(kind, 0) for kind in kinds)

    def of(self, *kinds: str) -> tuple[RowFault, ...]:
        """The first faults of these kinds."""
        return tuple(f for f in self.faults if f.kind in kinds)


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A folder that a training run wrote: an adapter, or a checkpoint (which mostly holds an adapter too).

    `folders`: names of the folders in it. `tensors`: of adapter_model.safetensors. `not_finite`: those with a NaN or
    infinity in what was read of them, `zero`: those of which only zeros were read (the first MiB of each tensor, 48 MiB in
    all). `state`: the counts of trainer_state.json; None where that is not there or no JSON. `run`: the run.json of
    `qlora-core train`, of a checkpoint that of its run. `base`: whether the base model that the adapter names is a `folder`
    here, a path that is `missing`, or a `name`; "" where it names none.
    """

    name: str
    files: tuple[StoredFile, ...] = ()
    folders: tuple[str, ...] = ()
    adapter_config: Mapping[str, Any] | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    state: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    base: str = ""

    def has(self, name: str) -> bool:
        """Whether a file is there, and not empty."""
        return any(f.name == name and f.size > 0 for f in self.files)

    def fault(self, name: str) -> str:
        """What is wrong with a file, in words; "" where nothing is, or where it is not there."""
        return next((f"{f.fault}: {f.detail}" for f in self.files if f.name == name and f.fault), "")


_TRANSIENT = frozenset({"script", "model"})


@dataclass(frozen=True, eq=False, repr=False)
class Facts:
    """All facts of one run. Each part is its class, or `Unknown`; reading an unknown part raises `UnknownFact`.

    `script` is the file that is being judged; it is read anew each time and never saved with the rest. `models` are the
    local folders that the run loads; `model` is the one of the load that is being judged, and not saved either. `data` are the
    data files that were named, or what the trainer was given. `saved` are the adapter and checkpoint folders that were named.
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
    native: Native = cast("Native", NOT_GATHERED)
    disks: tuple[Disk, ...] = cast("tuple[Disk, ...]", NOT_GATHERED)
    environ: Mapping[str, str] = cast("Mapping[str, str]", NOT_GATHERED)
    installed: Installed = cast(Installed, NOT_GATHERED)
    live: tuple[LiveProbe, ...] = cast("tuple[LiveProbe, ...]", NOT_GATHERED)
    hub: Hub = cast(Hub, NOT_GATHERED)
    models: tuple[ModelFacts, ...] = cast("tuple[ModelFacts, ...]", NOT_GATHERED)
    model: ModelFacts = cast(ModelFacts, NOT_GATHERED)
    script: Script = cast(Script, NOT_GATHERED)
    data: tuple[DataFacts, ...] = cast("tuple[DataFacts, ...]", NOT_GATHERED)
    saved: tuple[SavedRun, ...] = cast("tuple[SavedRun, ...]", NOT_GATHERED)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value.__class__ is Unknown:
            raise UnknownFact(name, value.reason)
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and all(self.state(p) == other.state(p) for p in PARTS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Facts({', '.join(p for p in PARTS if self.state(p) != NOT_GATHERED)})"

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
            if f.name in _TRANSIENT or value == NOT_GATHERED:
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
        fields = {f.name for f in dataclasses.fields(cls)} - _TRANSIENT
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
    return {name: decoder(hint) for name, hint in hints.items() if name not in _TRANSIENT}


PARTS = tuple(f.name for f in dataclasses.fields(Facts))
