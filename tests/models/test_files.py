"""QD310 to QD319: the files of a model folder, each broken in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_checks import model_files, model_layout, model_words
from qlora_doctor.facts import Disk, Facts, Host, Installed, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import LoadKwarg, PipRequirement
from qlora_doctor.gather.model_files import read_models
from qlora_doctor.judge import Case, judge
from qlora_doctor.request import Requests
from qlora_doctor.testing import facts, findings, load, outcome
from tests.models.conftest import END, LAYER, TEXT_NAMES, Folder, safetensors

ALL = (*model_files.CHECKS, *model_layout.CHECKS, *model_words.CHECKS)
STACK = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.21.2"}
KNOWN = Installed(model_types=("llama", "llava", "instructblip"))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
ROOM: dict[str, Any] = {"host": Host(memory_total=2**35), "disks": (Disk("project", "/p", 2**40),)}


def world(folder: Folder, packages: dict[str, str] | None = None, **parts: Any) -> Facts:
    given: dict[str, Any] = {"installed": KNOWN, **ROOM, **parts}
    return facts({**STACK, **(packages or {})}, models=read_models([str(folder)]), **given)


def found(check: Any, folder: Folder, packages: dict[str, str] | None = None, **arguments: Any) -> tuple[Finding, ...]:
    return findings(check, world(folder, packages), load(str(folder), **arguments))


def codes(folder: Folder, **arguments: Any) -> list[str]:
    verdict = judge(ALL, world(folder), [Case(Requests(loads=(load(str(folder), **arguments),)))])
    return sorted({f.code for f in verdict.findings})


def test_a_sound_folder_is_silent_and_nothing_of_it_is_unknown(llama: Folder, llava: Folder) -> None:
    for folder in (llama, llava):
        verdict = judge(ALL, world(folder), [Case(Requests(loads=(load(str(folder)),)))])
        assert [(o.code, o.reason) for o in verdict.outcomes if o.outcome != "ok"] == []


def test_sound_shards_are_silent(llama: Folder) -> None:
    llama.shards(*TEXT_NAMES)
    assert codes(llama) == []


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_folder_that_was_not_read_is_unknown_and_a_hub_id_is_none_of_ours(check: Any) -> None:
    parts: dict[str, Any] = {"installed": KNOWN, **ROOM}
    lost: Any = Unknown("could not be read")
    assert outcome(check, facts(STACK, models=lost, **parts), load("./a")) == "unknown"
    assert outcome(check, facts(STACK, models=(), **parts), load("Qwen/Qwen3-0.6B")) == "skipped"


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_load_from_a_subfolder_is_not_judged_by_what_lies_above(check: Any, llama: Folder) -> None:
    assert outcome(check, world(llama), load(str(llama), subfolder="weights")) == "unknown"


def test_each_load_is_judged_by_its_own_folder(llama: Folder, llava: Folder) -> None:
    llava.remove("model.safetensors")
    both = facts(STACK, models=read_models([str(llama), str(llava)]))
    (one,) = findings(model_files.incomplete_model_folder, both, load(str(llama)), load(str(llava)))
    assert str(llava) in one.text


def test_a_folder_without_config_says_what_it_holds(llama: Folder) -> None:
    llama.remove("config.json", "model.safetensors")
    llama.write("model-q4.gguf", b"GGUF")
    (one,) = found(model_files.model_folder_without_a_configuration, llama)
    assert one.severity == "error" and "llama.cpp" in one.text


def test_a_config_that_is_a_web_page_is_named_once(llama: Folder) -> None:
    llama.write("config.json", b"<!DOCTYPE html>")
    (one,) = found(model_files.model_folder_without_a_configuration, llama)
    assert "web page" in one.text
    assert codes(llama) == ["QD310"]


def test_an_adapter_is_loadable_with_peft_and_an_error_without(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "adapter")
    folder.json("adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen3-0.6B"})
    check = model_files.adapter_in_place_of_a_model
    (with_peft,) = found(check, folder)
    assert with_peft.severity == "info" and "Qwen/Qwen3-0.6B" in with_peft.text
    without = facts({"transformers": "5.23.0"}, models=read_models([str(folder)]))
    (one,) = findings(check, without, load(str(folder)))
    assert (one.severity, one.fixes) == ("error", (PipRequirement("peft"),))
    assert found(check, folder, cls="peft.AutoPeftModelForCausalLM") == ()
    assert codes(folder) == ["QD311"]


def test_an_adapter_beside_a_model_is_a_model(llama: Folder) -> None:
    llama.json("adapter_config.json", {"base_model_name_or_path": "x"})
    assert found(model_files.adapter_in_place_of_a_model, llama) == ()


def test_an_unknown_model_type_names_the_version_that_brought_it(llama: Folder) -> None:
    check = model_files.model_type_unknown_to_transformers
    llama.change("config.json", model_type="qwen3")
    (one,) = found(check, llama, {"transformers": "4.44.2"})
    assert (one.severity, one.fixes) == ("error", (PipRequirement("transformers>=4.51"),))
    llama.change("config.json", model_type="never_heard_of")
    (one,) = found(check, llama)
    assert one.severity == "error" and "never_heard_of" in one.text
    llama.change("config.json", model_type=None)
    assert "names no model_type" in found(check, llama)[0].text
    assert found(check, llama, cls="transformers.LlamaForCausalLM") == ()


def test_a_model_type_is_unknown_where_the_architectures_could_not_be_read(llama: Folder) -> None:
    check = model_files.model_type_unknown_to_transformers
    assert outcome(check, world(llama, installed=Installed()), load(str(llama))) == "unknown"
    lost: Any = Unknown("no source")
    assert outcome(check, world(llama, installed=lost), load(str(llama))) == "unknown"


def test_code_of_the_folder_is_an_error_where_it_is_needed_and_not_trusted(llama: Folder) -> None:
    check = model_files.model_folder_with_code_of_its_own
    llama.change("config.json", model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    llama.write("modeling_own.py", b"")
    (one,) = found(check, llama)
    assert one.severity == "error" and "modeling_own.py" in one.text
    (one,) = found(check, llama, trust_remote_code=True)
    assert one.severity == "info"
    assert outcome(check, world(llama), load(str(llama), open="**kwargs")) == "unknown"
    llama.remove("modeling_own.py")
    (one,) = found(check, llama, trust_remote_code=True)
    assert one.severity == "error" and "not in the folder" in one.text


def test_code_of_the_folder_that_nobody_needs_is_silent_or_dropped(llama: Folder) -> None:
    check = model_files.model_folder_with_code_of_its_own
    llama.change("config.json", auto_map={"AutoModelForCausalLM": "someone/repo--modeling_own.Own"})
    assert found(check, llama) == ()
    (one,) = found(check, llama, trust_remote_code=True)
    assert one.severity == "info" and "someone/repo" in one.text
    assert isinstance(one.fixes[0], LoadKwarg) and one.fixes[0].drop


def test_missing_shards_are_counted_and_named(llama: Folder) -> None:
    files = llama.shards(*TEXT_NAMES)
    llama.remove(files[1])
    (one,) = found(model_files.incomplete_model_folder, llama)
    assert f"1 of its 3 weight files are not there: {files[1]}" in one.text
    assert codes(llama) == ["QD314"]


def test_shards_without_their_index_are_no_model(llama: Folder) -> None:
    llama.shards(*TEXT_NAMES)
    llama.remove("model.safetensors.index.json")
    assert "without the index" in found(model_files.incomplete_model_folder, llama)[0].text


def test_a_folder_without_weights_says_whose_weights_it_has(llama: Folder) -> None:
    check = model_files.incomplete_model_folder
    llama.remove("model.safetensors")
    assert "holds no weights" in found(check, llama)[0].text
    llama.write("consolidated.00.pth", b"PK\x03\x04" + END)
    assert "consolidated" in found(check, llama)[0].text


def test_an_index_whose_paths_leave_the_folder_is_an_error(llama: Folder) -> None:
    llama.shards("a")
    llama.change("model.safetensors.index.json", weight_map={"a": "../../etc/passwd"})
    (one,) = found(model_files.incomplete_model_folder, llama)
    assert "leaves the folder" in one.text


def test_a_stale_index_of_bin_files_beside_safetensors_is_silent(llama: Folder) -> None:
    llama.json("pytorch_model.bin.index.json", {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}})
    assert codes(llama) == []


def test_a_stand_in_of_lfs_is_named_for_weights_and_tokenizer(llama: Folder) -> None:
    llama.write("model.safetensors", LFS)
    llama.write("tokenizer.json", LFS)
    (one,) = found(model_files.lfs_pointer_in_place_of_a_file, llama)
    assert one.evidence["files"] == "model.safetensors, tokenizer.json"
    assert codes(llama) == ["QD315"]


def test_a_stand_in_that_no_load_reads_is_silent(llama: Folder) -> None:
    llama.write("pytorch_model.bin", LFS)
    llama.write("README.bin", LFS)
    assert codes(llama) == []


def test_a_web_page_under_the_name_of_a_file_is_named(llama: Folder) -> None:
    llama.write("model.safetensors", b"<html><title>Log in</title>")
    (one,) = found(model_files.web_page_in_place_of_a_file, llama)
    assert one.severity == "error" and "/resolve/main/" in one.text
    assert codes(llama) == ["QD316"]


def test_a_truncated_shard_is_named_with_its_sizes(llama: Folder) -> None:
    files = llama.shards(*TEXT_NAMES)
    whole = (llama.path / files[2]).read_bytes()
    llama.write(files[2], whole[:-10])
    (one,) = found(model_files.truncated_weights, llama)
    assert files[2] in one.text and f"{len(whole) - 10} bytes instead of {len(whole)}" in one.text
    assert codes(llama) == ["QD317"]


def test_a_truncated_bin_file_is_named(llama: Folder) -> None:
    llama.remove("model.safetensors")
    llama.write("pytorch_model.bin", b"PK\x03\x04" + bytes(99))
    assert "cut short" in found(model_files.truncated_weights, llama)[0].text


def test_weights_behind_a_link_that_leaves_the_folder_are_unknown(llama: Folder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(safetensors({LAYER: (8, 4)}))
    llama.remove("model.safetensors")
    (llama.path / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert outcome(model_files.truncated_weights, world(llama), load(str(llama))) == "unknown"


def test_an_index_of_other_weights_is_an_error_and_a_moved_tensor_a_warning(llama: Folder) -> None:
    check = model_files.index_of_other_weights
    files = llama.shards(*TEXT_NAMES)
    swapped = dict(zip(TEXT_NAMES, (files[1], files[0], files[2]), strict=True))
    llama.change("model.safetensors.index.json", weight_map=swapped)
    assert [f.severity for f in found(check, llama)] == ["warning"]
    llama.change("model.safetensors.index.json", weight_map={**swapped, "model.lost": files[0]})
    (one,) = found(check, llama)
    assert one.severity == "error" and "model.lost" in one.text


def test_an_index_that_states_far_more_bytes_than_there_are_is_a_warning(llama: Folder) -> None:
    check = model_files.index_of_other_weights
    llama.shards(*TEXT_NAMES)
    llama.change("model.safetensors.index.json", metadata={"total_size": 10**6})
    assert [f.severity for f in found(check, llama)] == ["warning"]
    llama.change("model.safetensors.index.json", metadata={"total_size": float("inf")})
    assert found(check, llama) == ()


@pytest.mark.parametrize(
    ("torch", "transformers", "severities"),
    [
        ("2.5.1", "4.57.6", ["error"]),
        ("2.5.1", "4.44.2", ["warning"]),
        ("2.6.0", "4.57.6", []),
        ("2.13.0", "5.23.0", []),
    ],
)
def test_bin_weights_need_a_torch_that_may_read_them(
    llama: Folder, torch: str, transformers: str, severities: list[str]
) -> None:
    check = model_files.pickled_weights_with_an_old_torch
    packages = {"torch": torch, "transformers": transformers}
    assert found(check, llama, packages) == ()
    llama.write("pytorch_model.bin", b"PK\x03\x04" + END)
    assert found(check, llama, packages) == ()
    llama.remove("model.safetensors")
    assert [f.severity for f in found(check, llama, packages)] == severities
