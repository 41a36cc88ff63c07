"""Fixes as data: what a check proposes, what a plan carries out, what a journal can take back.

`applicability`: `safe` keeps the meaning of the user's code and environment, or only adds what is missing;
`unsafe` changes something the user may have meant; `display-only` is never applied by us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_type_hints

from qlora_doctor import source
from qlora_doctor.errors import WireError
from qlora_doctor.source import Site, Value, show, value_from_data, value_to_data
from qlora_doctor.wire import decoder, from_data, to_data

Applicability = Literal["safe", "unsafe", "display-only"]


@dataclass(frozen=True, slots=True)
class PipRequirement:
    """Install (or remove) a distribution in the interpreter that is judged. `requirement` is PEP 508.

    `remove`: uninstall it instead. The requirements of one plan go into one install.
    """

    requirement: str
    remove: bool = False
    applicability: Applicability = "unsafe"
    kind: Literal["pip-requirement"] = "pip-requirement"

    @property
    def title(self) -> str:
        return f"uninstall {self.requirement}" if self.remove else f"install {self.requirement}"


@dataclass(frozen=True, slots=True)
class EnvVar:
    """Set (or, with None, unset) an environment variable before the run starts."""

    name: str
    value: str | None
    applicability: Applicability = "unsafe"
    kind: Literal["env-var"] = "env-var"

    @property
    def title(self) -> str:
        return f"unset {self.name}" if self.value is None else f"set {self.name}={self.value}"


@dataclass(frozen=True, slots=True)
class LoadKwarg:
    """Pass `name=value` to the load call; with `drop` take the argument out; `replaces` names the argument it renames.

    `target` says which call is meant: the load itself, or the `BitsAndBytesConfig` that it is given.
    """

    name: str
    value: Value = None
    drop: bool = False
    replaces: str = ""
    target: Literal["load", "quantization"] = "load"
    applicability: Applicability = "safe"
    site: Site | None = None
    kind: Literal["load-kwarg"] = "load-kwarg"

    @property
    def title(self) -> str:
        return _argument_title(self)

    def to_wire(self) -> Any:
        return _with_value(self)

    @classmethod
    def from_wire(cls, data: Any, where: str) -> LoadKwarg:
        return cls(**_values(cls, data, where))


@dataclass(frozen=True, slots=True)
class TrainSetting:
    """Pass `name=value` to the training arguments (`target` settings), the LoraConfig (lora) or the trainer call."""

    name: str
    value: Value = None
    drop: bool = False
    replaces: str = ""
    target: Literal["settings", "lora", "trainer"] = "settings"
    applicability: Applicability = "safe"
    site: Site | None = None
    kind: Literal["train-setting"] = "train-setting"

    @property
    def title(self) -> str:
        return _argument_title(self)

    def to_wire(self) -> Any:
        return _with_value(self)

    @classmethod
    def from_wire(cls, data: Any, where: str) -> TrainSetting:
        return cls(**_values(cls, data, where))


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the bytes `start` to `end` (exclusive) of a file, or of a notebook cell's source, by `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class SourceEdit:
    """Byte ranges of one file and what replaces them. Applied only while the file still has `sha256`.

    `imports` are lines such as `import torch` that the new text needs; they are added where they are missing.
    """

    path: str
    sha256: str
    edits: tuple[Edit, ...]
    what: str = "edit"
    cell: int | None = None
    imports: tuple[str, ...] = ()
    applicability: Applicability = "safe"
    kind: Literal["source-edit"] = "source-edit"

    @property
    def title(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Write (or, with None, remove) one small text file of a local model folder."""

    path: str
    text: str | None
    applicability: Applicability = "unsafe"
    kind: Literal["model-file"] = "model-file"

    @property
    def title(self) -> str:
        return f"remove {self.path}" if self.text is None else f"write {self.path}"


@dataclass(frozen=True, slots=True)
class Advice:
    """What only a person can do: a driver, another model, an answer to a question. Always display-only."""

    text: str
    command: str = ""
    applicability: Applicability = "display-only"
    kind: Literal["advice"] = "advice"

    @property
    def title(self) -> str:
        return self.text


Fix: TypeAlias = PipRequirement | EnvVar | LoadKwarg | TrainSetting | SourceEdit | ModelFile | Advice

KINDS: Mapping[str, Any] = {
    "pip-requirement": PipRequirement,
    "env-var": EnvVar,
    "load-kwarg": LoadKwarg,
    "train-setting": TrainSetting,
    "source-edit": SourceEdit,
    "model-file": ModelFile,
    "advice": Advice,
}


def fix_to_data(fix: Fix) -> dict[str, Any]:
    """A fix as JSON data, always with `kind`, `applicability` and `title`."""
    data = to_data(fix)
    return {"kind": fix.kind, "applicability": fix.applicability, "title": fix.title, **data}


def fix_from_data(data: Any, where: str = "$") -> Fix:
    """The inverse of `fix_to_data`. Raises WireError."""
    if not isinstance(data, Mapping) or data.get("kind") not in KINDS:
        raise WireError(where, f"expected a fix with a kind of {', '.join(sorted(KINDS))}")
    raw = {k: v for k, v in data.items() if k != "title"}
    fix: Fix = from_data(KINDS[data["kind"]], raw, where)
    return fix


def _argument_title(fix: LoadKwarg | TrainSetting) -> str:
    if fix.drop:
        return f"drop {fix.name}="
    if fix.replaces and isinstance(fix.value, (source.Call, source.Unresolved)):
        return f"{fix.replaces}= becomes {fix.name}="
    if fix.replaces:
        return f"{fix.replaces}= becomes {fix.name}={show(fix.value)}"
    return f"pass {fix.name}={show(fix.value)}"


_DEFAULTS: Mapping[str, Any] = {"drop": False, "replaces": "", "site": None}


def _with_value(fix: LoadKwarg | TrainSetting) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kind": fix.kind,
        "name": fix.name,
        "target": fix.target,
        "applicability": fix.applicability,
    }
    if not fix.drop:
        data["value"] = value_to_data(fix.value)
    for name, default in _DEFAULTS.items():
        if getattr(fix, name) != default:
            data[name] = to_data(getattr(fix, name))
    return data


def _values(cls: Any, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise WireError(where, "expected a fix")
    hints = get_type_hints(cls, localns=vars(source))
    values: dict[str, Any] = {}
    for key, item in data.items():
        if key not in hints:
            raise WireError(where, f"unknown key {str(key)[:60]!r}")
        place = f"{where}.{key}"
        values[key] = value_from_data(item, place) if key == "value" else decoder(hints[key])(item, place)
    if "name" not in values:
        raise WireError(where, "key 'name' is missing")
    return values
