"""A repository of the Hub as a model: what may be read of it, its small files, the headers of its weights.

Everything goes through huggingface_hub's own client, so that proxies and certificates act as they will for the user.
No weight is downloaded, nothing is written to its cache. Answers are bounded in bytes, and all together in time.
The user's token goes to the default endpoint alone, never to a mirror.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_doctor import __version__
from qlora_doctor.facts import ModelFacts, Repository, Route, StoredFile, Tensor
from qlora_doctor.gather.hub import DEFAULT_ENDPOINT, TRUE
from qlora_doctor.gather.hub_access import refused
from qlora_doctor.gather.hub_cache import cached_files
from qlora_doctor.gather.hub_client import Answer, Ask, Client
from qlora_doctor.gather.hub_kept import Kept, Shelf
from qlora_doctor.gather.hub_routes import routes_of, try_routes
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
from qlora_doctor.gather.safetensors import LONGEST_HEADER, MOST_TENSORS, read_header

LARGEST_INFO = 8 * 2**20
FIRST_BYTES = 2**16
MOST_SHARDS = 200
MOST_MODELS = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?\Z")


@dataclass(frozen=True, slots=True)
class Asked:
    """What was answered for one repository. `first` is the answer to the first question, for what it says of the Hub."""

    repository: Repository
    model: ModelFacts | None
    routes: tuple[Route, ...]
    first: Answer
    seconds: float


def ask_models(
    names: Sequence[str], environ: Mapping[str, str], timeout: float = 6.0
) -> tuple[tuple[Repository, ...], tuple[ModelFacts, ...]]:
    """What the Hub says of these repositories, within `timeout` seconds for all. Never raises.

    Nothing where huggingface_hub cannot be imported: then these facts are unknown, and the rest still runs.
    """
    found = ask_each(names, environ, timeout)
    return tuple(a.repository for a in found), tuple(a.model for a in found if a.model is not None)


def ask_each(names: Sequence[str], environ: Mapping[str, str], timeout: float = 6.0) -> tuple[Asked, ...]:
    """The same with all that was learned on the way; up to three repositories, all at once. Never raises."""
    names = [n for n in names if _NAME.match(n) and ".." not in n][:MOST_MODELS]
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT
    if not names or not re.match(r"https?://[^\s/]", endpoint):
        return ()
    try:
        import huggingface_hub

        session = huggingface_hub.get_session()
        secret = huggingface_hub.get_token() or ""
    except Exception:  # noqa: BLE001 - a broken client may raise anything; the facts are then simply not there
        return ()
    own = endpoint == DEFAULT_ENDPOINT
    # Not `build_hf_headers`: since 2.x it asks the Hub for a list of its own first, and writes that into HF_HOME.
    headers = {"user-agent": f"qlora-doctor/{__version__}; hf_hub/{huggingface_hub.__version__}"}
    if own and secret and environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() not in TRUE:
        headers["authorization"] = f"Bearer {secret}"
    client = Client(session, endpoint, headers, time.monotonic() + timeout)
    shelf = Shelf(endpoint, secret if client.token else "")
    withheld = bool(secret) and not own
    if len(names) == 1:
        return (ask_repository(client, shelf, names[0], environ, withheld),)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(names)) as pool:
        return tuple(pool.map(lambda n: ask_repository(client, shelf, n, environ, withheld), names))


def ask_repository(
    client: Client, shelf: Shelf, name: str, environ: Mapping[str, str], withheld: bool = False
) -> Asked:
    """The answer for one repository, and the model where its files may be read. `withheld`: a token exists, and is not sent."""
    kept = shelf.load(name)
    started = time.monotonic()
    ask = Ask(f"{client.endpoint}/api/models/{name}?blobs=true", most=LARGEST_INFO, etag=kept.etag if kept else "")
    first = client.one(ask)
    seconds = round(time.monotonic() - started, 3)
    info = kept.listing if kept and first.status == 304 else first.object()
    if first.status not in (200, 304) or info is None or not isinstance(info.get("siblings"), list):
        repository = replace(refused(client, name, first), withheld=withheld)
        return Asked(repository, None, (), first, seconds)
    revision = info.get("sha")
    revision = revision if isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{7,64}", revision) else "main"
    listed = info.get("id")
    canonical = listed if isinstance(listed, str) and listed != name and _NAME.match(listed) else ""
    repository = Repository(name, "ok", client.token, revision=revision, canonical=canonical, withheld=withheld)
    repository = replace(repository, licence=licence_of(info), terms=str(info.get("gated") or "")[:20])
    base = f"{client.endpoint}/{name}/resolve/{revision}/"
    files = {f.name: f for f in _siblings(info["siblings"])}
    done = cached_files(name, environ)
    # What is gated is asked for each time: a right can be lost. All else of a commit stays as it is.
    if kept and kept.revision == revision and not info.get("gated"):
        left = to_download(kept.model, done)
        routes = kept.routes
        if left and not kept.fresh:
            routes = try_routes(client, base, _weights(files)[:1])
            shelf.store(name, replace(kept, routes=routes))
        return Asked(replace(repository, to_download=left), kept.model, routes, first, seconds)
    answers = _files(client, base, files)
    barred = next((a for n, a in answers.items() if a.status in (401, 403) and n in JSONS), None)
    if barred is not None:
        repository = replace(refused(client, name, barred, exists=True), withheld=withheld)
        return Asked(repository, None, (), first, seconds)
    weights = _weights(files)
    routes = routes_of(client, base, answers, weights[:1], {f.name: f.size for f in files.values()})
    model = _assemble(name, files, answers, weights)
    shelf.store(name, Kept(first.headers.get("etag", ""), revision, _short(info), model, routes))
    return Asked(replace(repository, to_download=to_download(model, done)), model, routes, first, seconds)


def licence_of(info: Mapping[str, Any]) -> str:
    """The licence that the model card names, in the Hub's words (`llama3.1`, `cc-by-nc-4.0`); "" where it names none."""
    card = info.get("cardData")
    named = card.get("license_name") or card.get("license") if isinstance(card, dict) else None
    if not isinstance(named, str):
        tags = info.get("tags")
        words = [t for t in tags if isinstance(t, str)] if isinstance(tags, list) else []
        named = next((t.removeprefix("license:") for t in words if t.startswith("license:")), "")
    return " ".join(named.split())[:60]


def _files(client: Client, base: str, files: Mapping[str, StoredFile]) -> dict[str, Answer]:
    """The small files, the index and the headers of the weights: one wave, and one more for headers that are longer."""
    tasks = {n: Ask(base + n, 0, LARGEST_JSON) for n in JSONS if n in files}
    tasks |= {n: Ask(base + n, 0, LARGEST_INDEX) for n in ENTRIES if n in files and n.endswith(".json")}
    weights = _weights(files)[:MOST_SHARDS]
    tasks |= {n: Ask(base + n, FIRST_BYTES, FIRST_BYTES) for n in weights}
    answers = client.all(tasks)
    longer = {n: _header_end(answers[n]) for n in weights if n in answers}
    return answers | client.all({n: Ask(base + n, end, end) for n, end in longer.items() if end > FIRST_BYTES})


def _weights(files: Mapping[str, StoredFile]) -> list[str]:
    return [n for n in files if n.endswith(".safetensors") and "/" not in n and not NOT_THE_MODEL.search(n)]


def _short(info: Mapping[str, Any]) -> dict[str, Any]:
    """Of the information about a repository what is read of it here."""
    siblings = [{k: s[k] for k in ("rfilename", "size") if k in s} for s in info["siblings"] if isinstance(s, dict)]
    kept = {k: info[k] for k in ("id", "sha", "gated") if k in info}
    return kept | {"tags": [f"license:{licence_of(info)}"], "siblings": siblings[:MOST_FILES]}


def to_download(model: ModelFacts, done: frozenset[str]) -> int:
    """The bytes of the weights that a load takes and that are not among the files `done`."""
    return sum(f.size for f in _needed(model) if f.fault not in ("missing", "outside") and f.name not in done)


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
    data = answer.object()
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
