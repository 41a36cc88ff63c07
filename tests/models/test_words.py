"""QD330 to QD335: tokenizer and processor files."""

from __future__ import annotations

import pytest

from qlora_checks import model_words
from qlora_doctor.fix import PipRequirement
from qlora_doctor.testing import facts, load, outcome
from tests.models.conftest import LLAVA_NAMES, TEXT_NAMES, Folder
from tests.models.test_files import codes, found


def test_a_folder_without_a_tokenizer_is_named(llama: Folder) -> None:
    llama.remove("tokenizer.json", "tokenizer_config.json")
    (one,) = found(model_words.tokenizer_that_cannot_be_built, llama)
    assert one.severity == "warning" and "no tokenizer files" in one.text


def test_a_sentencepiece_tokenizer_needs_two_packages_and_a_tiktoken_one_its_own(llama: Folder) -> None:
    check = model_words.tokenizer_that_cannot_be_built
    llama.write("tokenizer.model", b"")
    assert found(check, llama) == ()
    llama.remove("tokenizer.json")
    (one,) = found(check, llama, {"protobuf": "5.0"})
    assert one.fixes == (PipRequirement("sentencepiece", applicability="safe"),)
    assert found(check, llama, {"protobuf": "5.0", "sentencepiece": "0.2.0"}) == ()
    llama.remove("tokenizer.model")
    llama.write("qwen.tiktoken", b"")
    (one,) = found(check, llama)
    assert one.fixes == (PipRequirement("tiktoken", applicability="safe"),)


def test_a_padding_token_is_asked_for_and_may_stand_in_either_file(llama: Folder) -> None:
    check = model_words.tokenizer_without_a_padding_token
    assert found(check, llama) == ()
    llama.change("tokenizer_config.json", pad_token=None)
    (one,) = found(check, llama)
    assert one.severity == "info" and "no padding token" in one.text
    llama.json("special_tokens_map.json", {"pad_token": {"content": "</s>"}})
    assert "</s>" in found(check, llama)[0].text
    llama.json("special_tokens_map.json", {"pad_token": {"content": "<pad>"}})
    assert found(check, llama) == ()


def test_a_chat_model_wants_a_chat_template_and_a_base_model_does_not(llava: Folder, llama: Folder) -> None:
    check = model_words.chat_model_without_a_chat_template
    llava.remove("chat_template.jinja")
    assert [f.severity for f in found(check, llava)] == ["info"]
    llava.change("tokenizer_config.json", chat_template="{{ messages }}")
    assert found(check, llava) == ()
    assert found(check, llama) == ()


def test_the_processor_file_of_transformers_5_is_enough_there_and_not_before_4_57(llava: Folder) -> None:
    check = model_words.vision_model_without_processor_files
    assert found(check, llava) == ()
    assert found(check, llava, {"transformers": "4.57.6"}) == ()
    (one,) = found(check, llava, {"transformers": "4.53.3"})
    assert one.severity == "warning" and "does not read" in one.text


def test_the_preprocessor_file_of_older_versions_is_enough_everywhere(llava: Folder) -> None:
    llava.remove("processor_config.json")
    llava.json("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"})
    for version in ("4.44.2", "5.23.0"):
        assert found(model_words.vision_model_without_processor_files, llava, {"transformers": version}) == ()


def test_no_processor_files_are_an_oserror_or_a_silent_tokenizer(llava: Folder) -> None:
    check = model_words.vision_model_without_processor_files
    llava.json("processor_config.json", {"processor_class": "LlavaProcessor"})
    assert "without an image processor" in found(check, llava)[0].text
    llava.remove("processor_config.json")
    assert "raises OSError." in found(check, llava)[0].text
    llava.change("config.json", model_type="other_vl")
    assert "returns the tokenizer" in found(check, llava)[0].text
    assert codes(llava) == ["QD312", "QD333"]


@pytest.mark.parametrize(("ours", "severities"), [(14, []), (16, ["warning"])])
def test_the_patch_size_of_the_processor_is_that_of_the_model(llava: Folder, ours: int, severities: list[str]) -> None:
    llava.change("processor_config.json", patch_size=ours)
    assert [f.severity for f in found(model_words.processor_of_another_model, llava)] == severities


def test_a_token_past_the_embedding_is_named(llama: Folder, llava: Folder) -> None:
    check = model_words.tokens_beyond_the_embedding
    llama.change("tokenizer_config.json", added_tokens_decoder={"7": {}, "x": {}})
    assert found(check, llama) == ()
    llama.change("tokenizer_config.json", added_tokens_decoder={"8": {}})
    (one,) = found(check, llama)
    assert (one.evidence["largest"], one.evidence["rows"]) == (8, 8)
    llava.weights(*LLAVA_NAMES, shape=(3, 4))
    assert [f.severity for f in found(check, llava)] == ["warning"]
    llama.weights(*TEXT_NAMES[1:])
    assert found(check, llama) == ()


def test_the_packages_may_be_unknown(llama: Folder) -> None:
    from qlora_doctor.gather.model_files import read_models

    llama.remove("tokenizer.json")
    llama.write("tokenizer.model", b"")
    world = facts(models=read_models([str(llama)]))
    assert outcome(model_words.tokenizer_that_cannot_be_built, world, load(str(llama))) == "unknown"
