"""A repository of the Hub as a model: what may be read of it, its small files, the headers of its weights.

Everything goes through huggingface_hub's own client, so that proxies and certificates act as they will for the user.
No weight is downloaded, nothing is written to its cache. Answers are bounded in bytes, and all together in time.
The user's token goes to the default endpoint alone, never to a mirror.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_doctor.facts import ModelFacts, Repository, RepositoryStatus, StoredFile, Tensor
from qlora_doctor.gather.hub import DEFAULT_ENDPOINT, cache_folder, redact
from qlora_doctor.gather.model_files import (
    ENTRIES,
    JSONS,
    LARGEST_INDEX,
    LARGEST_JSON,
    MOST_FILES,
    NOT_THE_MODEL,
    TEMPLATES,
    impostor_of,
    leaves,
    tokenizer_parts,
)
from qlora_doctor.gather.safetensors import LONGEST_HEADER, MOST_TENSORS, Refused, read_header, strict_json

LARGEST_INFO = 8 * 2**20
FIRST_BYTES = 2**16
AT_ONCE = 24
MOST_SHARDS = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?\Z")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as far as it was read. `status` is 0 where there was none."""

    status: int
    body: bytes = b""
    error: str = ""


def ask_models(
    names: Sequence[str], environ: Mapping[str, str], timeout: float = 6.0
) -> tuple[tuple[Repository, ...], tuple[ModelFacts, ...]]:
    """What the Hub says of these repositories, within `timeout` seconds for all. Never raises.

    Nothing where huggingface_hub cannot be imported: then these facts are unknown, and the rest still runs.
    """
    try:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a broken client may raise anything; the facts are then simply not there
        return (), ()
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT
    own = endpoint == DEFAULT_ENDPOINT
    headers = build_hf_headers(token=None if own else False, library_name="qlora-doctor")
    client = Client(get_session(), endpoint, headers, time.monotonic() + timeout)
    repositories, models = [], []
    for name in [n for n in names if _NAME.match(n) and ".." not in n][:3]:
        repository, model = client.model(name)
        if model is not None:
            done = _cached_blobs(name, environ)
            left = sum(f.size for f in _needed(model) if not f.fault and f.name not in done)
            repository = replace(repository, to_download=left)
            models.append(model)
        repositories.append(repository)
    return tuple(repositories), tuple(models)


class Client:
    """The Hub's client with a deadline. Every request runs in a daemon thread, so that a server that drips ends nobody."""

    def __init__(self, session: Any, endpoint: str, headers: Mapping[str, str], deadline: float) -> None:
        self.session = session
        self.endpoint = endpoint
        self.headers = dict(headers)
        self.deadline = deadline
        self.token = any(k.lower() == "authorization" for k in headers)

    def model(self, name: str) -> tuple[Repository, ModelFacts | None]:
        """The answer for one repository, and the model where its files may be read."""
        first = self.all({"": (f"{self.endpoint}/api/models/{name}?blobs=true", 0, LARGEST_INFO)})[""]
        info = _object(first)
        if first.status != 200 or info is None or not isinstance(info.get("siblings"), list):
            return self._refused(name, first), None
        revision = info.get("sha")
        revision = revision if isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{7,64}", revision) else "main"
        files = {f.name: f for f in _siblings(info["siblings"])}
        base = f"{self.endpoint}/{name}/resolve/{revision}/"
        tasks = {n: (base + n, 0, LARGEST_JSON) for n in JSONS if n in files}
        tasks |= {n: (base + n, 0, LARGEST_INDEX) for n in ENTRIES if n in files and n.endswith(".json")}
        weights = [n for n in files if n.endswith(".safetensors") and "/" not in n and not NOT_THE_MODEL.search(n)]
        tasks |= {n: (base + n, FIRST_BYTES, FIRST_BYTES) for n in weights[:MOST_SHARDS]}
        answers = self.all(tasks)
        longer = {n: _header_end(answers[n]) for n in weights if n in answers}
        answers |= self.all({n: (base + n, end, end) for n, end in longer.items() if end > FIRST_BYTES})
        refused = next((a for n, a in answers.items() if a.status in (401, 403) and n in JSONS), None)
        if refused is not None:
            return self._refused(name, refused, exists=True), None
        model = _assemble(name, files, answers, weights)
        return Repository(name, "ok", self.token, revision=revision), model

    def _refused(self, name: str, answer: Answer, exists: bool = False) -> Repository:
        said = answer.error or f"http {answer.status}"
        status: RepositoryStatus = "unanswered"
        if "invalid credentials" in said.lower() or (answer.status == 401 and self.token):
            status = "bad token"
        elif exists or "gated" in said.lower():
            status = "not granted" if self.token else "gated"
        elif answer.status in (401, 404):
            status = "not found"
        elif answer.status == 403:
            status = "not granted" if self.token else "gated"
        return Repository(name, status, self.token, redact(said)[:200])

    def all(self, tasks: Mapping[str, tuple[str, int, int]]) -> dict[str, Answer]:
        """The answers of all tasks (address, length of the range or 0, most bytes), as many at once as is polite."""
        from threading import Thread

        answers: dict[str, Answer] = {}
        left = list(tasks.items())

        def work() -> None:
            while left and time.monotonic() < self.deadline:
                try:
                    key, task = left.pop(0)
                except IndexError:
                    return
                answers[key] = self._one(*task)

        threads = [Thread(target=work, name="hub model", daemon=True) for _ in range(min(AT_ONCE, len(tasks)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.deadline - time.monotonic()))
        return {key: answers.get(key, Answer(0, error="no answer in time")) for key in tasks}

    def _one(self, url: str, length: int, most: int) -> Answer:
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if length:
            headers["Range"] = f"bytes=0-{length - 1}"
        timeout = max(0.1, min(3.0, self.deadline - time.monotonic()))
        try:
            return _read(self.session, url, headers, timeout, most)
        except Exception as error:  # noqa: BLE001 - the client is requests, httpx or httpx2; each has errors of its own
            return Answer(0, error=redact(f"{type(error).__name__}: {error}"))


def _read(session: Any, url: str, headers: Mapping[str, str], timeout: float, most: int) -> Answer:
    """One GET with either kind of client, of which no more than `most` bytes are taken."""
    new = hasattr(session, "stream") and not hasattr(session, "adapters")
    options: dict[str, Any] = {"headers": dict(headers), "timeout": timeout}
    opened = session.stream("GET", url, **options) if new else session.get(url, stream=True, **options)
    with opened as answer:
        chunks: Any = answer.iter_bytes() if new else answer.iter_content(2**16)
        body = bytearray()
        for chunk in chunks:
            body += chunk
            if len(body) > most:
                break
        said = " ".join(answer.headers.get(h, "") for h in ("X-Error-Code", "X-Error-Message")).strip()
        whole = answer.headers.get("Content-Length", "")
        if answer.status_code == 200 and whole.isdigit() and len(body) < min(int(whole), most):
            return Answer(0, error="the answer was cut short")
        if len(body) > most and not headers.get("Range"):
            return Answer(0, error="the answer is larger than is read")
        return Answer(answer.status_code, bytes(body[:most]), said)


def _object(answer: Answer) -> dict[str, Any] | None:
    try:
        data = strict_json(answer.body)
    except Refused:
        return None
    return data if isinstance(data, dict) else None


def _siblings(raw: Sequence[Any]) -> list[StoredFile]:
    found = []
    for entry in raw[:MOST_FILES]:
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        size = entry.get("size") if isinstance(entry, dict) else None
        if isinstance(name, str) and not leaves(name):
            found.append(StoredFile(name, size if type(size) is int and size >= 0 else 0))
    return found


def _header_end(answer: Answer) -> int:
    """Where a safetensors header ends; 0 where nobody should ask for so much."""
    end = 8 + int.from_bytes(answer.body[:8], "little") if len(answer.body) >= 8 else 0
    return end if answer.status in (200, 206) and end <= LONGEST_HEADER else 0


def _assemble(
    name: str, files: dict[str, StoredFile], answers: Mapping[str, Answer], weights: Sequence[str]
) -> ModelFacts:
    parts: dict[str, Any] = {}
    for file, part in JSONS.items():
        if file in answers:
            files[file], parts[part] = _json_of(files[file], answers[file])
    parts |= tokenizer_parts(parts.get("tokenizer_config"), parts.get("processor_config"))
    parts["chat_template"] = parts["chat_template"] or any(t in files for t in TEMPLATES)
    entry = next((n for n in ENTRIES if n in files), "")
    if entry.endswith(".json"):
        parts |= {"index": entry, **_index_of(files, entry, answers[entry])}
    tensors: dict[str, Tensor] = {}
    complete = len(weights) <= MOST_SHARDS
    for file in weights[:MOST_SHARDS]:
        answer = answers[file]
        if answer.status not in (200, 206):
            files[file] = replace(files[file], fault="unreadable", detail=answer.error or f"http {answer.status}")
        elif impostor := impostor_of(answer.body[:300]):
            files[file] = replace(files[file], fault=impostor.fault, detail=str(impostor))
        else:
            files[file], found = read_header(io.BytesIO(answer.body), file, files[file].size)
            tensors |= found if len(tensors) + len(found) <= MOST_TENSORS else {}
        complete = complete and not files[file].fault
    listed = tuple(files[n] for n in sorted(files))
    return ModelFacts(name, origin="hub", files=listed, tensors=tensors, complete=complete, **parts)


def _json_of(file: StoredFile, answer: Answer) -> tuple[StoredFile, dict[str, Any] | None]:
    if answer.status != 200:
        return replace(file, fault="unreadable", detail=answer.error or f"http {answer.status}"), None
    impostor = impostor_of(answer.body[:300])
    if impostor:
        return replace(file, fault=impostor.fault, detail=str(impostor)), None
    data = _object(answer)
    return (file, data) if data is not None else (replace(file, fault="damaged", detail="it is no JSON object"), None)


def _index_of(files: dict[str, StoredFile], entry: str, answer: Answer) -> dict[str, Any]:
    files[entry], data = _json_of(files[entry], answer)
    raw = (data or {}).get("weight_map")
    if not isinstance(raw, dict) or len(raw) > MOST_TENSORS or not all(isinstance(v, str) for v in raw.values()):
        if not files[entry].fault:
            files[entry] = replace(files[entry], fault="damaged", detail="it has no usable weight_map")
        return {}
    for shard in set(raw.values()) - set(files):
        outside = leaves(shard)
        detail = "a path in the index that leaves the folder" if outside else "the index names it"
        files[shard] = StoredFile(shard, 0, "outside" if outside else "missing", detail)
    metadata = (data or {}).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return {"weight_map": raw, "index_size": total if type(total) is int else None}


def _needed(model: ModelFacts) -> list[StoredFile]:
    """The weight files that a load downloads: what the index names, else the single file."""
    if model.weight_map:
        shards = set(model.weight_map.values())
        return [f for f in model.files if f.name in shards]
    entry = next((n for n in ENTRIES if model.has(n)), "")
    return [f for f in model.files if f.name == entry]


def _cached_blobs(name: str, environ: Mapping[str, str]) -> frozenset[str]:
    """The files of a repository that lie whole in the cache, in any snapshot."""
    folder = os.path.join(cache_folder(environ), "models--" + name.replace("/", "--"), "snapshots")
    found: set[str] = set()
    try:
        for snapshot in os.listdir(folder):
            inside = os.path.join(folder, snapshot)
            found |= {f for f in os.listdir(inside) if os.path.exists(os.path.join(inside, f))}
    except OSError:
        return frozenset(found)
    return frozenset(found)
