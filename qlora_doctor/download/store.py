"""Where downloaded files are put: in huggingface_hub's cache, as it lays it out itself, or in a folder of the user's.

The layout is documented and the same since huggingface_hub 0.11: `models--OWNER--NAME/blobs` holds the bytes by their
hash, `snapshots/COMMIT` links to them by name, `refs/REVISION` says which commit a branch stood for. The ref is written
last, so that a branch never leads to a snapshot that is not whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from qlora_doctor.download.listing import Listing, RemoteFile

ENTRIES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class Cache:
    """One repository in the cache folder `root`."""

    root: str
    name: str
    revision: str

    @property
    def lock(self) -> str:
        """The file that one download at a time holds."""
        return os.path.join(self.root, ".locks", os.path.basename(self.folder), "qlora-doctor.lock")

    @property
    def folder(self) -> str:
        return os.path.join(self.root, "models--" + self.name.replace("/", "--"))

    def place(self, commit: str) -> str:
        """The folder of one commit."""
        return os.path.join(self.folder, "snapshots", commit)

    def path(self, commit: str, file: RemoteFile) -> str:
        return os.path.join(self.place(commit), *file.name.split("/"))

    def part(self, file: RemoteFile) -> str:
        """Where the bytes grow. The name is our own: huggingface_hub may be at the same file."""
        return os.path.join(self.folder, "blobs", f"{file.key}.qlora-doctor.incomplete")

    def has(self, commit: str, file: RemoteFile) -> bool:
        """Whether the file is there in its right size. What lies in the cache was verified when it came."""
        try:
            size = os.stat(self.path(commit, file)).st_size
        except OSError:
            return self._blob_there(file) and self._link(commit, file)
        return file.size in (-1, size)

    def keep(self, commit: str, file: RemoteFile) -> None:
        """Gives a verified part its place."""
        os.replace(self.part(file), self._blob(file))
        self._link(commit, file)

    def finish(self, listing: Listing) -> None:
        """Says which commit the revision stands for."""
        if self.revision == listing.commit:
            return
        ref = os.path.join(self.folder, "refs", *self.revision.split("/"))
        os.makedirs(os.path.dirname(ref), exist_ok=True)
        with open(f"{ref}.{os.getpid()}", "w", encoding="ascii") as out:
            out.write(listing.commit)
        os.replace(f"{ref}.{os.getpid()}", ref)

    def found(self) -> str:
        """The folder of the revision as far as it is here and whole enough to load; "" where it is not."""
        commit = self.revision
        try:
            with open(os.path.join(self.folder, "refs", *self.revision.split("/")), encoding="ascii") as file:
                commit = file.read(100).strip()
        except (OSError, ValueError):
            pass
        place = self.place(commit) if commit and os.sep not in commit else ""
        return place if place and complete(place) else ""

    def _blob(self, file: RemoteFile) -> str:
        return os.path.join(self.folder, "blobs", file.key)

    def _blob_there(self, file: RemoteFile) -> bool:
        try:
            size = os.stat(self._blob(file)).st_size
        except OSError:
            return False
        return bool(file.sha256 or file.blob) and file.size in (-1, size)

    def _link(self, commit: str, file: RemoteFile) -> bool:
        path, blob = self.path(commit, file), self._blob(file)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        try:
            os.symlink(os.path.relpath(blob, os.path.dirname(path)), path)
        except OSError:  # Windows without the right to make links; huggingface_hub does the same there
            os.replace(blob, path)
        return True


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the user's, to which the files go by their own names."""

    root: str

    @property
    def lock(self) -> str:
        return os.path.join(self.root, ".qlora-doctor.lock")

    def place(self, commit: str) -> str:
        return self.root

    def path(self, commit: str, file: RemoteFile) -> str:
        return os.path.join(self.root, *file.name.split("/"))

    def part(self, file: RemoteFile) -> str:
        return f"{self.path('', file)}.{file.key[:12]}.incomplete"

    def has(self, commit: str, file: RemoteFile) -> bool:
        """Whether the file is there and is the right one: what lies in a user's folder may be anything."""
        from qlora_doctor.download.transfer import wrong_hash

        return os.path.isfile(self.path(commit, file)) and wrong_hash(self.path(commit, file), file) is None

    def keep(self, commit: str, file: RemoteFile) -> None:
        os.replace(self.part(file), self.path(commit, file))

    def finish(self, listing: Listing) -> None:
        """Nothing is written beside the files."""

    def found(self) -> str:
        return self.root if complete(self.root) else ""


Store = Cache | Folder


def complete(folder: str) -> bool:
    """Whether a folder holds a configuration and all the weights that its index names."""
    if not os.path.exists(os.path.join(folder, "config.json")):
        return False
    entry = next((e for e in ENTRIES if os.path.exists(os.path.join(folder, e))), "")
    if not entry.endswith(".json"):
        return bool(entry) or any(n.endswith((".safetensors", ".bin")) for n in os.listdir(folder))
    try:
        with open(os.path.join(folder, entry), "rb") as file:
            shards = json.loads(file.read(2**24))["weight_map"].values()
        return all(os.path.exists(os.path.join(folder, s)) for s in set(shards))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
