"""QD320 to QD325: the layout of the weights, and the room that they need."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import model_layout
from qlora_doctor.facts import Disk, Host
from qlora_doctor.fix import Advice
from qlora_doctor.testing import findings, load, outcome
from tests.models.conftest import END, LLAVA_NAMES, TEXT_NAMES, Folder
from tests.models.test_files import codes, found, world

BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize(("saved", "severity"), [(BNB4, "info"), (BNB8, "warning"), ({"load_in_4bit": True}, "info")])
def test_a_folder_saved_by_bitsandbytes_loads_as_it_was_saved(llama: Folder, saved: Any, severity: str) -> None:
    llama.change("config.json", quantization_config=saved)
    check = model_layout.quantizing_what_is_already_quantized
    assert [f.severity for f in found(check, llama)] == [severity]
    assert found(check, llama, quantization_config=None) == ()


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_another_quantisation_refuses_the_config_from_4_57_on(llama: Folder, method: str) -> None:
    llama.change("config.json", quantization_config={"quant_method": method})
    check = model_layout.quantizing_what_is_already_quantized
    assert [f.severity for f in found(check, llama)] == ["error"]
    assert [f.severity for f in found(check, llama, {"transformers": "4.53.3"})] == ["warning"]
    assert found(check, llama, quantization_config=None) == ()
    assert method in found(check, llama)[0].text


def test_what_quantisation_is_asked_for_may_be_unknown(llama: Folder) -> None:
    llama.change("config.json", quantization_config=BNB4)
    request = load(str(llama), quantization_config=None, open="**kwargs")
    assert outcome(model_layout.quantizing_what_is_already_quantized, world(llama), request) == "unknown"


def test_the_original_llava_layout_is_named_with_the_command_that_converts_it(original: Folder) -> None:
    (one,) = found(model_layout.original_llava_layout, original)
    assert one.severity == "error" and "llava-hf/llava-1.5-7b-hf" in one.text
    assert isinstance(one.fixes[0], Advice)
    assert one.fixes[0].command == f"qlora-core convert {original} {original}-hf"
    assert codes(original) == ["QD321"]


def test_a_fine_tune_in_the_original_layout_is_known_by_its_keys_or_its_config(original: Folder) -> None:
    check = model_layout.original_llava_layout
    original.change("config.json", architectures=["SomethingElse"], mm_vision_tower=None)
    assert "model.mm_projector.0.weight" in found(check, original)[0].text
    original.remove("model.safetensors")
    original.write("pytorch_model.bin", b"PK\x03\x04" + END)
    assert found(check, original) == ()
    original.change("config.json", mm_vision_tower="openai/clip")
    assert "mm_vision_tower" in found(check, original)[0].text


def test_the_original_layout_loaded_by_its_own_package_is_right(original: Folder) -> None:
    loads = load(str(original), cls="llava.model.LlavaLlamaForCausalLM")
    assert findings(model_layout.original_llava_layout, world(original), loads) == ()


def test_a_converted_llava_that_keeps_the_field_is_not_original(llava: Folder) -> None:
    llava.change("config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert codes(llava) == []


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod."])
def test_weights_with_the_prefix_of_a_wrapper_are_named(llama: Folder, prefix: str) -> None:
    llama.weights(*(prefix + n for n in TEXT_NAMES))
    (one,) = found(model_layout.weights_with_the_prefix_of_a_wrapper, llama)
    assert one.severity == "error" and prefix in one.text and "3 of the 3" in one.text
    assert codes(llama) == ["QD322"]


def test_one_tensor_with_such_a_name_is_no_prefix(llama: Folder) -> None:
    llama.weights(*TEXT_NAMES, "module.extra")
    assert codes(llama) == []


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "model.layers"])
def test_a_part_without_any_weight_would_be_random(llava: Folder, part: str) -> None:
    llava.weights(*(n for n in LLAVA_NAMES if part not in n))
    (one,) = found(model_layout.weights_of_another_architecture, llava)
    assert one.severity == "error" and part.removeprefix("model.") in one.text


def test_both_layouts_of_transformers_are_right(llava: Folder) -> None:
    new = [n if n.startswith("lm_head") else f"model.{n}" for n in LLAVA_NAMES]
    llava.weights(*new)
    assert codes(llava) == []


def test_the_names_of_lavis_and_of_meta_are_known(llama: Folder) -> None:
    check = model_layout.weights_of_another_architecture
    llama.weights("tok_embeddings.weight", "layers.0.attention.wq.weight")
    assert "Meta" in found(check, llama)[0].text
    llama.change("config.json", model_type="instructblip")
    llama.weights("visual_encoder.blocks.0.attn.qkv.weight", "Qformer.bert.encoder.layer.0.attention.self.query.weight")
    assert "LAVIS" in found(check, llama)[0].text


def test_the_names_in_a_pickle_are_unknown_and_those_of_its_index_are_known(llama: Folder) -> None:
    checks = (model_layout.weights_of_another_architecture, model_layout.weights_with_the_prefix_of_a_wrapper)
    llama.remove("model.safetensors")
    llama.write("pytorch_model.bin", b"PK\x03\x04" + END)
    for check in checks:
        assert outcome(check, world(llama), load(str(llama))) == "unknown"
    llama.remove("pytorch_model.bin")
    llama.shards(*(f"module.{n}" for n in TEXT_NAMES), suffix=".bin")
    assert codes(llama) == ["QD322"]


def test_the_conversion_needs_room_for_a_second_copy(original: Folder, llama: Folder) -> None:
    check = model_layout.no_room_for_the_conversion
    small: dict[str, Any] = {"disks": (Disk("project", "/p", 2**20),)}
    (one,) = findings(check, world(original, **small), load(str(original)))
    assert one.severity == "warning" and "/p" in one.text
    assert found(check, original) == ()
    assert findings(check, world(llama, **small), load(str(llama))) == ()
    assert outcome(check, world(original, disks=(Disk("project", "/p"),)), load(str(original))) == "unknown"


def test_a_weight_file_larger_than_the_containers_limit_is_said(llama: Folder) -> None:
    check = model_layout.weight_file_larger_than_the_memory
    tight: dict[str, Any] = {"host": Host(memory_total=2**35, memory_limit=100)}
    (one,) = findings(check, world(llama, **tight), load(str(llama)))
    assert one.severity == "info"
    assert outcome(check, world(llama, host=Host()), load(str(llama))) == "unknown"
    llama.remove("model.safetensors")
    llama.write("pytorch_model.bin", b"PK\x03\x04" + bytes(200) + END)
    assert [f.severity for f in findings(check, world(llama, **tight), load(str(llama)))] == ["warning"]
