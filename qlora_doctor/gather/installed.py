"""What the installed packages say of themselves: read with `ast` from their source, never imported, kept in a cache.

So the doctor does not go stale with its own tables: the floors, names and parameters are those of the installed version.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qlora_doctor.errors import WireError
from qlora_doctor.facts import Installed, Packages, Signature
from qlora_doctor.gather import cache
from qlora_doctor.wire import from_data, to_data

if TYPE_CHECKING:
    from qlora_doctor.gather.sources import Sources

READ = ("transformers", "peft", "trl", "accelerate")
"""The packages whose source is read."""

DEFAULT_SIGNATURES = (
    "transformers.TrainingArguments",
    "transformers.Seq2SeqTrainingArguments",
    "transformers.Trainer",
    "transformers.Trainer.compute_loss",
    "transformers.Seq2SeqTrainer",
    "transformers.BitsAndBytesConfig",
    "transformers.PreTrainedModel.from_pretrained",
    "peft.LoraConfig",
    "peft.get_peft_model",
    "peft.prepare_model_for_kbit_training",
    "trl.SFTConfig",
    "trl.SFTTrainer",
    "trl.DPOConfig",
    "trl.DPOTrainer",
)
"""The calls of every QLoRA script; further ones are read when a script makes them."""

STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "transformers": ("minimums", "import_requirements", "model_types", "optimizers", "names", "classes"),
    "peft": ("lora_defaults",),
}


def read_installed(packages: Packages, signatures: Iterable[str] = DEFAULT_SIGNATURES) -> Installed:
    """What the installed transformers, peft, trl and accelerate state.

    `signatures` are dotted names of classes, functions and methods; those of other packages are passed over. A name
    that certainly does not exist maps to None; one that could not be decided is in `problems` with the reason.
    """
    roots = package_roots(packages)
    asked: dict[str, list[str]] = {package: [] for package in roots}
    problems = {}
    for package in READ:
        if package not in roots and packages.find(package) is not None:
            problems[package] = "it is installed, but its source is not there"
    for dotted in dict.fromkeys(signatures):
        package = dotted.partition(".")[0]
        if package in asked and dotted != package:
            asked[package].append(dotted)
    versions = "|".join(d.version if (d := packages.find(p)) is not None else "?" for p in READ)

    @functools.cache
    def sources() -> Sources:
        from qlora_doctor.gather.sources import Sources

        return Sources(roots)

    read = {package: _Reading(package, root, versions, sources) for package, root in roots.items()}
    found: dict[str, Signature | None] = {}
    for package, names in asked.items():
        for dotted in names:
            answer = read[package].signature(dotted)
            if isinstance(answer, str):
                problems[dotted] = answer
            else:
                found[dotted] = answer
    stated: dict[str, Any] = {}
    for reading in read.values():
        stated.update(reading.statements())
        reading.keep()
    floors = stated.get("minimums")
    checked = stated.get("import_requirements")
    return Installed(
        minimums={"transformers": floors} if floors else {},
        import_requirements={"transformers": tuple(checked)} if checked else {},
        model_types=tuple(stated.get("model_types", ())),
        classes=tuple(stated.get("classes", ())),
        signatures=found,
        lora_defaults=tuple(stated.get("lora_defaults", ())),
        optimizers=tuple(stated.get("optimizers", ())),
        problems=problems,
    )


def package_roots(packages: Packages) -> dict[str, str]:
    """The folder of each package whose source can be read."""
    roots = {}
    for package in READ:
        root = packages.roots.get(package, "")
        distribution = packages.find(package)
        if not root and distribution is not None:
            root = os.path.join(distribution.location, package)
        if root and os.path.isfile(os.path.join(root, "__init__.py")):
            roots[package] = root
    return roots


class _Reading:
    """One package: what the cache has, and what had to be read now."""

    def __init__(self, package: str, root: str, versions: str, sources: Callable[[], Sources]) -> None:
        self.package = package
        self.root = root
        self.sources = sources
        self.key = f"{versions}|{root}"
        self.data: dict[str, Any] = {"statements": {}, "signatures": {}}
        self.new = False
        entry = cache.load("installed", self.key)
        if (
            entry is not None
            and isinstance(entry.get("statements"), dict)
            and isinstance(entry.get("signatures"), dict)
        ):
            self.data = entry

    def signature(self, dotted: str) -> Signature | str | None:
        """The signature, None where there is no such name, or why it cannot be told."""
        kept = self.data["signatures"]
        if dotted in kept:
            try:
                if isinstance(kept[dotted], str):
                    return str(kept[dotted])
                return None if kept[dotted] is None else from_data(Signature, kept[dotted])
            except WireError:
                del kept[dotted]
        answer = self._read(dotted)
        kept[dotted] = answer if isinstance(answer, str) else to_data(answer)
        self.new = True
        return answer

    def _read(self, dotted: str) -> Signature | str | None:
        from qlora_doctor.gather.signatures import read_signature
        from qlora_doctor.gather.sources import CannotTell

        try:
            return read_signature(self.sources(), dotted, self._lazy())
        except CannotTell as error:
            return str(error)

    def _lazy(self) -> dict[str, str]:
        if self.package != "transformers":
            return {}
        names = self.statements()["names"]
        return {name: module for module, exported in names.items() for name in exported}

    def statements(self) -> dict[str, Any]:
        kept: dict[str, Any] = self.data["statements"]
        wanted = STATEMENTS.get(self.package, ())
        if all(_shaped(name, kept.get(name)) for name in wanted):
            return kept
        from qlora_doctor.gather import statements

        sources = self.sources()
        if self.package == "transformers":
            names = statements.model_names(self.root)
            kept.update(
                minimums=statements.minimums(sources),
                import_requirements=statements.import_requirements(sources),
                model_types=statements.model_types(sources),
                optimizers=statements.optimizers(sources),
                names=names,
                classes=statements.public_names(sources, names),
            )
        else:
            kept.update(lora_defaults=statements.lora_defaults(sources))
        self.new = True
        return kept

    def keep(self) -> None:
        """Writes the cache where something new was read."""
        if not self.new:
            return
        watched = (self.root, os.path.join(self.root, "__init__.py"), os.path.join(self.root, "models"))
        stamps: dict[str, Any] = {path: cache.stamp(path) for path in watched}
        stamps.update({path: list(stamp) for path, stamp in self.sources().stamps.items()})
        cache.store("installed", self.key, self.data, stamps)


def _shaped(name: str, value: Any) -> bool:
    """Whether a statement from the cache has the shape that it is used with."""
    if name in ("minimums", "names"):
        return isinstance(value, dict)
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
