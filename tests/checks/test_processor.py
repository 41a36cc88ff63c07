"""The processor: a tokenizer in its place, a repository without one, a fallback that hides what is missing."""

from __future__ import annotations

import pytest

from qlora_checks.processor import (
    processor_falls_back_to_a_tokenizer,
    processor_of_a_repository_without_one,
    tokenizer_in_place_of_a_processor,
)
from qlora_doctor.fix import SourceEdit
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Call, Dotted, Fallback, Import, Script, Site
from qlora_doctor.testing import facts, findings, load, outcome

NEW = facts({"transformers": "5.23.0"})
LLAVA = load("llava-hf/llava-1.5-7b-hf", "transformers.LlavaForConditionalGeneration")
QWEN = load("Qwen/Qwen3-4B")
ORIGINAL = "liuhaotian/llava-v1.5-7b"


def pretrained(cls: str, model: str = "llava-hf/llava-1.5-7b-hf", site: Site | None = None) -> Call:
    return Call(f"transformers.{cls}.from_pretrained", {"pretrained_model_name_or_path": model}, site=site)


def script(*calls: Call, modules: tuple[str, ...] = ("transformers",), fallbacks: tuple[Fallback, ...] = ()) -> Script:
    return Script("t.py", calls=calls, imports=tuple(Import(m) for m in modules), fallbacks=fallbacks)


def test_a_vision_model_with_a_tokenizer_alone_is_a_warning_that_says_what_becomes_of_images() -> None:
    source = script(pretrained("AutoTokenizer"), modules=("transformers", "PIL"))
    (finding,) = findings(tokenizer_in_place_of_a_processor, NEW, LLAVA, script=source)
    assert (finding.severity, "dropped without a word" in finding.text) == ("warning", True)
    (finding,) = findings(tokenizer_in_place_of_a_processor, facts({"transformers": "4.57.6"}), LLAVA, script=source)
    assert "TypeError" in finding.text


def test_a_vision_model_with_a_tokenizer_alone_is_information_where_nothing_speaks_of_images() -> None:
    (finding,) = findings(tokenizer_in_place_of_a_processor, NEW, LLAVA, script=script(pretrained("AutoTokenizer")))
    assert finding.severity == "info"


def test_the_tokenizer_of_another_repository_is_not_that_of_the_vision_model() -> None:
    source = script(pretrained("AutoTokenizer", "Qwen/Qwen3-4B"), modules=("transformers", "PIL"))
    assert not findings(tokenizer_in_place_of_a_processor, NEW, LLAVA, script=source)


@pytest.mark.parametrize(
    ("source", "model"),
    [
        (script(pretrained("AutoTokenizer"), pretrained("AutoProcessor")), LLAVA),
        (script(pretrained("AutoTokenizer"), pretrained("CLIPImageProcessor")), LLAVA),
        (script(pretrained("AutoTokenizer"), modules=("transformers", "my_data")), LLAVA),
        (script(pretrained("AutoTokenizer"), modules=("torchvision.transforms",)), LLAVA),
        (script(pretrained("AutoTokenizer")), QWEN),
        (script(pretrained("AutoTokenizer")), load("someone/some-model")),
        (script(), LLAVA),
    ],
    ids=[
        "processor",
        "image processor",
        "module of the project",
        "torchvision",
        "text model",
        "unknown model",
        "no tokenizer",
    ],
)
def test_a_tokenizer_beside_a_processor_or_for_a_text_model_is_left_alone(source: Script, model: LoadRequest) -> None:
    assert outcome(tokenizer_in_place_of_a_processor, NEW, model, script=source) == "ok"


def images_to(origin: str, *calls: Call) -> Script:
    called = Call(".__call__", {"#0": "text", "images": Dotted("img")}, receiver="tok", origin=origin)
    return script(*calls, pretrained("AutoProcessor"), called)


def test_images_handed_to_a_tokenizer_are_an_error_even_beside_a_processor() -> None:
    source = images_to("transformers.AutoTokenizer.from_pretrained")
    (finding,) = findings(tokenizer_in_place_of_a_processor, NEW, LLAVA, script=source)
    assert (finding.severity, "dropped without a word" in finding.text) == ("error", True)


def test_images_handed_to_a_processor_or_to_a_tokenizer_with_code_of_its_own_are_left_alone() -> None:
    remote = Call("transformers.AutoTokenizer.from_pretrained", {"trust_remote_code": True})
    for source in (
        images_to("transformers.AutoProcessor.from_pretrained"),
        images_to(""),
        images_to("transformers.AutoTokenizer.from_pretrained", remote),
    ):
        assert outcome(tokenizer_in_place_of_a_processor, NEW, LLAVA, script=source) == "ok"


def test_a_processor_of_an_original_llava_repository_is_an_error_and_the_edit_names_the_converted_one() -> None:
    text = f"p = AutoProcessor.from_pretrained('{ORIGINAL}')\n"
    start = text.index("'")
    spans = {"pretrained_model_name_or_path:value": (start, text.rindex("'") + 1)}
    site = Site("t.py", 1, 5, 1, 4, len(text) - 1, sha256="0" * 64, spans=spans)
    (finding,) = findings(
        processor_of_a_repository_without_one, NEW, script=script(pretrained("AutoProcessor", ORIGINAL, site))
    )
    (fix,) = finding.fixes
    assert isinstance(fix, SourceEdit)
    after = text[: fix.edits[0].start] + fix.edits[0].text + text[fix.edits[0].end :]
    assert (finding.severity, after) == ("error", "p = AutoProcessor.from_pretrained('llava-hf/llava-1.5-7b-hf')\n")


@pytest.mark.parametrize(
    "call",
    [
        pretrained("AutoProcessor"),
        pretrained("AutoTokenizer", ORIGINAL),
        pretrained("AutoProcessor", "Qwen/Qwen-VL-Chat"),
    ],
    ids=["has one", "a tokenizer", "remote code brings its own"],
)
def test_a_repository_that_answers_is_left_alone(call: Call) -> None:
    assert outcome(processor_of_a_repository_without_one, NEW, script=script(call)) == "ok"


def fallback(model: str = "llava-hf/llava-1.5-7b-hf", second: str = "AutoTokenizer") -> Fallback:
    site = Site("t.py", 1, 1, 4, 0, 99, sha256="0" * 64, spans={"handler": (40, 60)})
    return Fallback(pretrained("AutoProcessor", model, Site("t.py", 2)), pretrained(second, model), site=site)


def test_a_fallback_to_a_tokenizer_is_a_warning_and_the_edit_lets_the_error_through() -> None:
    (finding,) = findings(processor_falls_back_to_a_tokenizer, NEW, LLAVA, script=script(fallbacks=(fallback(),)))
    (fix,) = finding.fixes
    assert isinstance(fix, SourceEdit)
    assert (finding.severity, fix.edits[0].text, fix.applicability) == ("warning", "raise", "unsafe")


def test_a_fallback_replaces_the_error_of_the_repository_without_a_processor() -> None:
    made = fallback(ORIGINAL)
    source = script(made.first, fallbacks=(made,))
    assert outcome(processor_of_a_repository_without_one, NEW, script=source) == "ok"
    (finding,) = findings(processor_falls_back_to_a_tokenizer, NEW, script=source)
    assert "llava-hf/llava-1.5-7b-hf has" in finding.text


@pytest.mark.parametrize(
    ("made", "loads"),
    [
        (fallback("Qwen/Qwen3-4B"), ()),
        (fallback("someone/some-model"), (QWEN,)),
        (fallback(second="AutoProcessor"), (LLAVA,)),
    ],
    ids=["text model by name", "text model loaded", "falls back to a processor"],
)
def test_a_fallback_that_loses_nothing_is_left_alone(made: Fallback, loads: tuple[LoadRequest, ...]) -> None:
    assert outcome(processor_falls_back_to_a_tokenizer, NEW, *loads, script=script(fallbacks=(made,))) == "ok"


def test_an_unknown_model_with_a_fallback_is_a_warning() -> None:
    source = script(fallbacks=(fallback("someone/some-model"),))
    assert outcome(processor_falls_back_to_a_tokenizer, NEW, script=source) == "found"
