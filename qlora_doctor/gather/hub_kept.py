"""What a commit of a repository held, kept between runs in the doctor's own cache folder.

A commit never changes, so what was read of one is read once. An entry belongs to the endpoint and to the token that it was
given to: another token, or none, never sees it. Entries are few and small; the oldest go first. A cache that is damaged,
full or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, replace
from typing import Any

from qlora_doctor.errors import WireError
from qlora_doctor.facts import ModelFacts, Route
from qlora_doctor.gather import cache
from qlora_doctor.wire import from_data, to_data

FORMAT = f"hub 1, {cache.FORMAT}"
LARGEST = 4 << 20
MOST_ENTRIES = 48
# How long a way to the files counts as open: a firewall does not change by the minute.
ROUTES_LAST = 3600.0


@dataclass(frozen=True, slots=True)
class Kept:
    """One repository at one commit. `etag` is that of the information about it, `listing` what that said."""

    etag: str
    revision: str
    listing: dict[str, Any]
    model: ModelFacts
    routes: tuple[Route, ...] = ()
    fresh: bool = False


class Shelf:
    """The entries for one endpoint and one token."""

    def __init__(self, endpoint: str, secret: str) -> None:
        self.endpoint = endpoint
        self.secret = secret

    def load(self, name: str) -> Kept | None:
        """The entry of a repository, or None where there is none that can be used."""
        try:
            with open(self._path(name), "rb") as file:
                raw = file.read(LARGEST + 1)
            entry = json.loads(raw) if len(raw) <= LARGEST else None
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("format") != FORMAT or entry.get("key") != self._key(name):
            return None
        try:
            model = from_data(ModelFacts, entry["model"])
            routes = from_data(tuple[Route, ...], entry["routes"])
            when = float(entry["when"])
            listing = entry["listing"]
            kept = Kept(str(entry["etag"]), str(entry["revision"]), dict(listing), model, routes)
        except (WireError, KeyError, TypeError, ValueError):
            return None
        return replace(kept, fresh=0 <= time.time() - when < ROUTES_LAST and not any(r.failure for r in routes))

    def store(self, name: str, kept: Kept) -> None:
        """Keeps an entry, where all of it could be read and it can be kept."""
        if any(f.fault not in ("", "missing") for f in kept.model.files) or not re.fullmatch(
            r"[0-9a-f]{40}", kept.revision
        ):
            return
        entry = {
            "format": FORMAT, "key": self._key(name), "etag": kept.etag, "revision": kept.revision,
            "listing": kept.listing, "model": to_data(kept.model), "routes": to_data(kept.routes), "when": time.time(),
        }  # fmt: skip
        text = json.dumps(entry, separators=(",", ":"))
        if len(text) > LARGEST:
            return
        path = self._path(name)
        temporary = f"{path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            # A private repository's names are nobody else's business.
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
                file.write(text)
            os.replace(temporary, path)
            _sweep(os.path.dirname(path))
        except OSError:
            try:
                os.unlink(temporary)
            except OSError:
                return

    def _key(self, name: str) -> str:
        import hashlib

        owner = hashlib.sha256(self.secret.encode()).hexdigest()[:32] if self.secret else "nobody"
        return f"{self.endpoint} {name} {owner}"

    def _path(self, name: str) -> str:
        import hashlib

        word = re.sub(r"[^\w.-]", "--", name)[:60]
        return os.path.join(
            cache.folder(), "hub", f"{word}-{hashlib.sha256(self._key(name).encode()).hexdigest()[:16]}.json"
        )


def _sweep(folder: str) -> None:
    """Removes the oldest entries beyond the number that is kept, and what a killed process left."""
    found = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            found.append((os.stat(path).st_mtime, path))
        except OSError:
            continue
    for when, path in sorted(found, reverse=True)[MOST_ENTRIES:]:
        if time.time() - when > 60 or path.endswith(".json"):
            os.unlink(path)
