"""What a repository holds: its commit, its files with their sizes, and the hashes where the Hub gives them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Thread
from typing import Any
from urllib.parse import quote

from qlora_doctor.download.client import Answer, opened
from qlora_doctor.download.problem import Trouble
from qlora_doctor.gather.model_files import leaves

LARGEST = 16 * 2**20
MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file. `size` is -1 where it is not said; `sha256` of its bytes, `blob` the git id of a small file, or ""."""

    name: str
    size: int = -1
    sha256: str = ""
    blob: str = ""
    commit: str = ""

    @property
    def key(self) -> str:
        """What the bytes are kept under: their hash, else the commit and the name."""
        return self.sha256 or self.blob or f"{self.commit}-{quote(self.name, safe='')}"


@dataclass(frozen=True, slots=True)
class Listing:
    """A revision of a repository. `commit` is its full id, or the revision's own name where the Hub gives none."""

    name: str
    commit: str
    files: Mapping[str, RemoteFile]


def read_listing(endpoint: str, name: str, revision: str | None, headers: Mapping[str, str], timeout: float) -> Listing:
    """Asks for one repository.

    Raises:
        Trouble: no usable answer; `not found`, `no revision`, `gated`, `not granted` or `bad token` where it says no.
    """
    place = f"{endpoint}/api/models/{name}" + (f"/revision/{quote(revision, safe='')}" if revision else "")
    info = _json(f"{place}?blobs=true", headers, timeout, name, revision)
    siblings = info.get("siblings") if isinstance(info, dict) else None
    if not isinstance(siblings, list):
        raise Trouble("not json", "the answer holds no list of files")
    sha = info.get("sha")
    commit = sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{40}", sha) else revision or "main"
    files = {f.name: f for f in (_file(s, commit) for s in siblings[:MOST_FILES]) if f is not None}
    large = [f for f in files.values() if f.name.endswith((".safetensors", ".bin"))]
    if large and not any(f.sha256 for f in large):
        files |= _from_tree(endpoint, name, commit, headers, timeout, files)
    return Listing(name, commit, files)


def _from_tree(
    endpoint: str, name: str, commit: str, headers: Mapping[str, str], timeout: float, files: Mapping[str, RemoteFile]
) -> dict[str, RemoteFile]:
    """The files with the hashes of the tree API, which some mirrors give where the first answer has none."""
    try:
        entries = _json(f"{endpoint}/api/models/{name}/tree/{commit}?recursive=true", headers, timeout, name, None)
    except Trouble:
        return {}  # the sizes are still checked
    found = [_file(e, commit) for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    return {f.name: f for f in found if f is not None and f.name in files}


def _file(entry: Any, commit: str) -> RemoteFile | None:
    if not isinstance(entry, dict):
        return None
    name = entry.get("rfilename", entry.get("path"))
    if not isinstance(name, str) or leaves(name) or entry.get("type", "file") != "file":
        return None
    lfs = entry["lfs"] if isinstance(entry.get("lfs"), dict) else {}
    size = lfs.get("size", entry.get("size"))
    sha = lfs.get("sha256") or lfs.get("oid") or ""
    blob = "" if lfs else entry.get("blobId") or entry.get("oid") or ""
    return RemoteFile(
        name,
        size if type(size) is int and size >= 0 else -1,
        sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{64}", sha) else "",
        blob if isinstance(blob, str) and re.fullmatch(r"[0-9a-f]{40}", blob) else "",
        commit,
    )


def _json(url: str, headers: Mapping[str, str], timeout: float, name: str, revision: str | None) -> Any:
    """The answer to a request for JSON, in a thread of its own: an answer that drips knows no time-out."""
    result: list[Any] = []

    def ask() -> None:
        try:
            with opened(url, headers, timeout) as answer:
                body = bytearray()
                for chunk in answer.chunks:
                    body += chunk
                    if len(body) > LARGEST:
                        raise Trouble("not json", "the answer is larger than is read", host=answer.host)
                result.append((answer, bytes(body)))
        except Exception as error:  # noqa: BLE001 - raised again where the caller waits
            result.append(error)

    thread = Thread(target=ask, name="hub listing", daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(timeout)
    if not result:
        raise Trouble("timeout", f"no whole answer within {time.monotonic() - started:.0f} s")
    if isinstance(result[0], Exception):
        raise result[0]
    answer, body = result[0]
    refuse(answer, name, revision, headers)
    whole = answer.headers.get("content-length", "")
    if whole.isdigit() and len(body) < int(whole):
        raise Trouble("truncated", "the answer was cut short", host=answer.host)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        start = " ".join(body[:60].decode("utf-8", "replace").split())
        raise Trouble("not json", f"it begins with {start}", host=answer.host) from None


def refuse(answer: Answer, name: str, revision: str | None, headers: Mapping[str, str]) -> None:
    """Raises Trouble where the answer is a no; with and without a token 401, 403 and 404 mean different things."""
    status = answer.status
    if status in (200, 206):
        return
    code = answer.headers.get("x-error-code", "")
    text = answer.headers.get("x-error-message", "")
    token = any(k.lower() == "authorization" for k in headers)
    said = f"{code} {text}".lower()
    if not code and answer.headers.get("content-type", "").startswith("text/html"):
        raise Trouble(f"http {status}", "it answers with a web page, not as a Hub does", host=answer.host)
    if "invalid credentials" in said or "invalid username" in said:
        raise Trouble(
            "bad token", "the token is not accepted, so nothing can be read with it; log in again, or unset it"
        )
    if code == "GatedRepo" or "gated" in said or (status == 403 and code != "RepoNotFound"):
        if token:
            raise Trouble(
                "not granted",
                f"{name} is gated, and the token that was sent has no right to it: accept its terms on its page",
            )
        raise Trouble(
            "gated", f"{name} is gated, and no token was sent: accept its terms on its page, then `hf auth login`"
        )
    if code == "RevisionNotFound" or (status == 404 and revision and code not in ("RepoNotFound", "EntryNotFound")):
        raise Trouble("no revision", f"{name} has no revision {revision!r}")
    if code == "EntryNotFound":
        raise Trouble("no file", f"a file that {name} lists is not there")
    if status in (401, 404):
        who = "the token that was sent cannot read it" if token else "it is private, and no token was sent"
        raise Trouble("not found", f"no such repository as {name}, or {who}")
    wait = answer.headers.get("retry-after", "")
    after = float(wait) if re.fullmatch(r"\d{1,6}", wait) else None
    raise Trouble(f"http {status}", text or "", host=answer.host, retry_after=after)
