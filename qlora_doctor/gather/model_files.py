"""A local model folder: its small files, its index, the headers of its weights. Nothing is unpickled, no code is run.

What lies in the folder is untrusted. Only regular files are opened, links that leave it are not followed (but those of
the Hub's own cache), and everything is bounded: bytes, tensors, files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qlora_doctor.facts import ModelFacts, StoredFile, Tensor
from qlora_doctor.gather.safetensors import MOST_TENSORS, Refused, read_header, strict_json

LARGEST_JSON = 2 * 2**20
LARGEST_INDEX = 16 * 2**20
MOST_FILES = 2_000
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".ckpt")
# transformers takes the first of these that is there.
ENTRIES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
JSONS = {
    "config.json": "config",
    "generation_config.json": "generation_config",
    "tokenizer_config.json": "tokenizer_config",
    "special_tokens_map.json": "special_tokens",
    "processor_config.json": "processor_config",
    "preprocessor_config.json": "preprocessor_config",
    "adapter_config.json": "adapter_config",
}
# Large or of another format: only their first bytes are looked at.
_SNIFFED = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tiktoken.model")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
NOT_THE_MODEL = re.compile(r"adapter|optimizer|scheduler|training_args|rng_state|non_lora|mm_projector")


def read_models(names: Iterable[str]) -> tuple[ModelFacts, ...]:
    """The facts of each name that is a folder here, in order and each once."""
    return tuple(read_model(name) for name in dict.fromkeys(names) if os.path.isdir(name))


def read_model(name: str) -> ModelFacts:
    """The facts of the model folder `name`. Never raises: what cannot be read is a file with a fault."""
    root = os.path.realpath(name)
    files = {f.name: f for f in _listed(name, root)}
    model = ModelFacts(name)
    parts: dict[str, Any] = {}
    for file_name, part in JSONS.items():
        if file_name in files and not files[file_name].fault:
            files[file_name], parts[part] = _read_json(name, files[file_name], LARGEST_JSON)
    parts |= tokenizer_parts(parts.get("tokenizer_config"), parts.get("processor_config"))
    parts["chat_template"] = parts["chat_template"] or any(t in files for t in TEMPLATES)
    parts |= _index(name, root, files)
    tensors: dict[str, Tensor] = {}
    complete = True
    for file in sorted(files.values(), key=lambda f: f.name):
        if not file.name.endswith((*WEIGHTS, *_SNIFFED)) or file.fault:
            complete = complete and not (file.name.endswith(".safetensors") and file.fault)
            continue
        files[file.name], found = _read_weights(name, file)
        if NOT_THE_MODEL.search(file.name):
            continue
        complete = complete and not (files[file.name].fault and file.name.endswith(".safetensors"))
        if len(tensors) + len(found) > MOST_TENSORS:
            complete = False
            continue
        tensors |= found
    return replace(model, **parts, files=tuple(files[n] for n in sorted(files)), tensors=tensors, complete=complete)


def _listed(folder: str, root: str) -> Iterable[StoredFile]:
    try:
        names = sorted(os.listdir(folder))[:MOST_FILES]
    except OSError as error:
        yield StoredFile(".", 0, "unreadable", str(error.strerror or error))
        return
    for name in names:
        file = _file(folder, root, name)
        if file is not None:
            yield file


def _file(folder: str, root: str, name: str) -> StoredFile | None:
    """A regular file of the folder; None for a folder, a pipe or a device."""
    path = os.path.join(folder, name)
    try:
        info = os.stat(path)
    except OSError as error:
        broken = os.path.islink(path)
        detail = "a link to nothing" if broken else str(error.strerror or error)
        return StoredFile(name, 0, "missing" if broken else "unreadable", detail)
    if not stat.S_ISREG(info.st_mode):
        return None
    if not _inside(os.path.realpath(path), root):
        return StoredFile(name, info.st_size, "outside", "a link that leaves the folder")
    return StoredFile(name, info.st_size)


def _inside(path: str, root: str) -> bool:
    """Whether a real path is in the folder, or in the blobs of the Hub cache that the folder is a snapshot of."""
    parent, kind = os.path.split(os.path.dirname(root))
    roots = [root, os.path.join(parent, "blobs")] if kind == "snapshots" else [root]
    return any(path.startswith(r.rstrip(os.sep) + os.sep) for r in roots)


def impostor_of(head: bytes) -> Refused | None:
    """What a file is when it is none of its own kind: the stand-in of Git LFS, or a page of a web server."""
    start = head.lstrip()[:200].lower()
    if head.startswith(b"version https://git-lfs"):
        return Refused("lfs pointer", "the stand-in of Git LFS, not the file")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return Refused("web page", "a web page, not the file")
    return None


def _read_json(folder: str, file: StoredFile, limit: int) -> tuple[StoredFile, dict[str, Any] | None]:
    try:
        if file.size > limit:
            raise Refused("unreadable", f"{file.size} bytes, more than is read")
        with open(os.path.join(folder, file.name), "rb") as opened:
            raw = opened.read(limit)
        impostor = impostor_of(raw[:300])
        if impostor:
            raise impostor
        data = strict_json(raw)
        if not isinstance(data, dict):
            raise Refused("damaged", "it is no JSON object")
    except Refused as error:
        return replace(file, fault=error.fault, detail=str(error)), None
    except OSError as error:
        return replace(file, fault="unreadable", detail=str(error.strerror or error)), None
    return file, data


def tokenizer_parts(config: dict[str, Any] | None, processor: dict[str, Any] | None) -> dict[str, Any]:
    """The tokenizer's configuration without its long parts, and what those said."""
    template = bool((processor or {}).get("chat_template"))
    if config is None:
        return {"chat_template": template}
    added = config.get("added_tokens_decoder")
    ids = [int(k) for k in added if str(k).isdigit() and len(str(k)) < 10] if isinstance(added, Mapping) else []
    short = {k: v for k, v in config.items() if k not in ("added_tokens_decoder", "chat_template")}
    return {
        "tokenizer_config": short,
        "chat_template": template or bool(config.get("chat_template")),
        "largest_token_id": max(ids, default=None),
    }


def _index(folder: str, root: str, files: dict[str, StoredFile]) -> dict[str, Any]:
    """What the index says; the files that it names and that are not there are added to `files`."""
    name = next((n for n in ENTRIES if n in files), "")
    if not name.endswith(".json") or files[name].fault:
        return {}
    files[name], data = _read_json(folder, files[name], LARGEST_INDEX)
    if data is None:
        return {"index": name}
    raw = data.get("weight_map")
    sound = isinstance(raw, dict) and len(raw) <= MOST_TENSORS and all(isinstance(v, str) for v in raw.values())
    if not sound:
        files[name] = replace(files[name], fault="damaged", detail="it has no usable weight_map")
        return {"index": name}
    assert isinstance(raw, dict)
    for shard in sorted(set(raw.values())):
        if shard in files:
            continue
        if leaves(shard):
            files[shard] = StoredFile(shard, 0, "outside", "a path in the index that leaves the folder")
        else:
            files[shard] = _file(folder, root, shard) or StoredFile(shard, 0, "missing", "the index names it")
            if files[shard].fault == "unreadable" and not os.path.lexists(os.path.join(folder, shard)):
                files[shard] = StoredFile(shard, 0, "missing", "the index names it")
    metadata = data.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    return {"index": name, "weight_map": raw, "index_size": total if type(total) is int else None}


def leaves(path: str) -> bool:
    parts = re.split(r"[/\\]", path)
    return not path or "\0" in path or ".." in parts or path[0] in "/\\~" or ":" in parts[0] or len(path) > 255


def _read_weights(folder: str, file: StoredFile) -> tuple[StoredFile, dict[str, Tensor]]:
    try:
        with open(os.path.join(folder, file.name), "rb") as opened:
            head = opened.read(300)
            impostor = impostor_of(head)
            if impostor:
                return replace(file, fault=impostor.fault, detail=str(impostor)), {}
            if file.name.endswith(".safetensors"):
                opened.seek(0)
                return read_header(opened, file.name, file.size)
            if file.size == 0:
                return replace(file, fault="truncated", detail="0 bytes"), {}
            if head.startswith(b"PK\x03\x04"):
                # torch writes a zip file; what ends one stands in its last 22 bytes.
                opened.seek(max(0, file.size - 22))
                if not opened.read(22).startswith(b"PK\x05\x06"):
                    return replace(file, fault="truncated", detail="the end of the file is not there"), {}
    except OSError as error:
        return replace(file, fault="unreadable", detail=str(error.strerror or error)), {}
    return file, {}
