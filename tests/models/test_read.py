"""Reading a model folder: what is found, and that nothing in it can hurt or mislead the reader."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.facts import Facts
from qlora_doctor.gather.model_files import read_model, read_models
from tests.models.conftest import END, LAYER, LLAVA_NAMES, Folder, safetensors


def fault(folder: Folder, name: str = "model.safetensors") -> str:
    return next(f.fault for f in read_model(str(folder)).files if f.name == name)


def test_a_folder_gives_its_small_files_and_the_tensors_of_its_headers(llava: Folder) -> None:
    model = read_model(str(llava))
    assert model.config is not None and model.config["model_type"] == "llava"
    assert set(model.tensors) == set(LLAVA_NAMES)
    tensor = model.tensors["multi_modal_projector.linear_1.weight"]
    assert (tensor.dtype, tensor.shape, tensor.file) == ("BF16", (8, 4), "model.safetensors")
    assert (model.chat_template, model.largest_token_id, model.complete) == (True, 3, True)
    assert [f.name for f in model.files if f.fault] == []


def test_the_facts_of_a_folder_survive_the_round_trip(llava: Folder) -> None:
    facts = Facts(models=read_models([str(llava), str(llava), "not/here"]))
    assert len(facts.models) == 1
    assert Facts.from_wire(json.loads(json.dumps(facts.to_wire()))) == facts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "truncated"),
        (b"1234", "truncated"),
        (safetensors({"a": (8, 4)})[:-1], "truncated"),
        (safetensors({"a": (8, 4)})[:20], "truncated"),
        (safetensors({"a": (8, 4)}, extra=b"x"), "too long"),
        ((2**31).to_bytes(8, "little") + b"{}", "damaged"),
        ((2**63).to_bytes(8, "little") + b"{}", "damaged"),
        ((0).to_bytes(8, "little"), "damaged"),
        ((2).to_bytes(8, "little") + b"[]", "damaged"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "damaged"),
        ((7).to_bytes(8, "little") + b'{"a":1}', "damaged"),
        ((9).to_bytes(8, "little") + b'{"a":NaN}', "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "lfs pointer"),
        (b"\n<!DOCTYPE html><html>Log in</html>", "web page"),
        (b"<html><body>404</body></html>", "web page"),
    ],
)
def test_a_weight_file_that_is_not_one_is_named_for_what_it_is(llama: Folder, raw: bytes, expected: str) -> None:
    llama.write("model.safetensors", raw)
    assert fault(llama) == expected
    assert not read_model(str(llama)).complete


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e9]}}',
        '{"a":{"dtype":5,"shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[' + ",".join("1" * 20) + '],"data_offsets":[0,4]}}',
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_a_header_that_lies_is_damaged_and_gives_no_tensor(llama: Folder, header: str) -> None:
    raw = header.encode("utf-8")
    llama.write("model.safetensors", len(raw).to_bytes(8, "little") + raw + b"1234")
    assert fault(llama) == "damaged"
    assert read_model(str(llama)).tensors == {}


def test_a_header_beyond_the_limits_is_left_unread_and_not_called_damaged(llama: Folder) -> None:
    many = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_001)}
    raw = json.dumps(many, separators=(",", ":")).encode("ascii")
    llama.write("model.safetensors", len(raw).to_bytes(8, "little") + raw)
    model = read_model(str(llama))
    assert fault(llama) == "unreadable"
    assert (model.tensors, model.complete) == ({}, False)
    raw = b"{}" + b" " * (9 * 2**20)
    llama.write("model.safetensors", len(raw).to_bytes(8, "little") + raw)
    assert fault(llama) == "unreadable"


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff{}", b'{"a":1,"a":2}', b"[" * 100_000, b'{"a":' * 100_000, b""])
def test_a_config_that_is_not_one_is_damaged_and_not_guessed_at(llama: Folder, raw: bytes) -> None:
    llama.write("config.json", raw)
    assert read_model(str(llama)).config is None
    assert fault(llama, "config.json") == "damaged"


def test_a_huge_config_is_left_unread(llama: Folder) -> None:
    llama.write("config.json", b'{"a":"' + b"x" * (3 * 2**20) + b'"}')
    assert fault(llama, "config.json") == "unreadable"


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "..\\secret", "C:\\x", "~/x", "", "a\0b"])
def test_a_path_in_the_index_that_leaves_the_folder_is_not_followed(llama: Folder, path: str) -> None:
    (llama.path.parent / "secret").write_bytes(safetensors({"stolen": (1,)}))
    llama.shards("a")
    llama.change("model.safetensors.index.json", weight_map={"a": path})
    model = read_model(str(llama))
    assert {f.name: f.fault for f in model.files}[path] == "outside"
    assert "stolen" not in model.tensors


def test_a_link_out_of_the_folder_is_not_opened(llama: Folder, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(safetensors({"stolen": (1,)}))
    llama.remove("model.safetensors")
    os.symlink(tmp_path / "secret.safetensors", llama.path / "model.safetensors")
    assert (fault(llama), read_model(str(llama)).tensors) == ("outside", {})


def test_the_links_of_the_hubs_own_cache_are_followed(tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1").write_bytes(b'{"model_type": "llama"}')
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    os.symlink(blobs / "1", snapshot / "config.json")
    assert read_model(str(snapshot)).config == {"model_type": "llama"}


def test_a_pipe_is_not_waited_for(llama: Folder) -> None:
    llama.remove("model.safetensors")
    os.mkfifo(llama.path / "model.safetensors")
    assert not read_model(str(llama)).has("model.safetensors")


class _Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_pickle_is_never_opened(llama: Folder) -> None:
    llama.remove("model.safetensors")
    llama.write("pytorch_model.bin", pickle.dumps(_Bomb()))
    model = read_model(str(llama))
    assert model.tensors == {} and fault(llama, "pytorch_model.bin") == ""


def test_a_zip_without_its_end_is_cut(llama: Folder) -> None:
    llama.write("pytorch_model.bin", b"PK\x03\x04" + bytes(50) + END)
    assert fault(llama, "pytorch_model.bin") == ""
    llama.write("pytorch_model.bin", b"PK\x03\x04" + bytes(50))
    assert fault(llama, "pytorch_model.bin") == "truncated"


def test_a_folder_of_many_gigabytes_is_read_by_its_headers_alone(llama: Folder) -> None:
    shape = (2**20, 2**11)
    raw = json.dumps({LAYER: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2**32]}}).encode("ascii")
    with (llama.path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**32)
    assert fault(llama) == ""
    assert read_model(str(llama)).tensors[LAYER].shape == shape
