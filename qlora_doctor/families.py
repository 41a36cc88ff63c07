"""The model families, as strings: the one table that checks, the memory estimate and `qlora_core` read.

Module names come in two layouts: transformers 4.52 moved the language model, vision tower and projector of most
vision-language models under `model.`. `skip` are the names that stay in 16 bit; each is written twice, because
`llm_int8_skip_modules` takes a plain name anywhere in the path before transformers 5, and a regular expression from
the start of the full path, or a suffix, since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a family keeps its parts, as dotted module paths. "" where it has none."""

    language_model: str
    vision_tower: str = ""
    projector: str = ""
    qformer: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`.

    `auto_class` loads it in transformers 5; `classes` are its concrete model classes. `minimum` is the first
    transformers that has it. `layout` holds from transformers 4.52 on, `old_layout` before. `lora_targets` is a
    regular expression over full module names that hits the language model's linears alone, in both layouts.
    `placeholder` is the text that stands for an image in a prompt; "" where the processor adds it by itself (BLIP).
    `processor` is the class of its processor. `fp16_safe` is False where fp16 overflows in practice (T5).
    `vision_skip` is that part of `skip` which a load gives up to save memory on the smallest cards: the projector,
    the Q-Former and the head stay in 16 bit. `task_type` is PEFT's; "" where its wrappers call the model wrongly.
    """

    model_type: str
    title: str
    auto_class: str
    classes: tuple[str, ...]
    minimum: str
    layout: Layout
    old_layout: Layout | None = None
    skip: tuple[str, ...] = ("lm_head",)
    lora_targets: str = r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    placeholder: str = ""
    processor: str = ""
    fp16_safe: bool = True
    vision_skip: tuple[str, ...] = ()
    task_type: str = "CAUSAL_LM"

    @property
    def vision(self) -> bool:
        """Whether the family takes images."""
        return bool(self.layout.vision_tower)

    @property
    def qformer_targets(self) -> str:
        """A regular expression that hits the Q-Former's attention and MLP linears alone; "" where there is none."""
        inner = self.layout.qformer.replace(".", r"\.")
        return rf"{inner}\..*\.(query|key|value|dense)" if inner else ""

    def kept(self, quantize_vision: bool = False) -> tuple[str, ...]:
        """The names for `llm_int8_skip_modules`: `skip`, without the vision tower where that is to be quantised."""
        if not quantize_vision:
            return self.skip
        projector = self.layout.projector.removeprefix("model.").replace(".", r"\.")
        inner = (self.layout.projector.removeprefix("model."), f".*{projector}") if self.vision else ()
        return (*inner, *(name for name in self.skip if name not in (*self.vision_skip, *inner)))


_LINEARS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_LM = rf"(model\.language_model|language_model\.model|language_model)\.layers\.\d+\..*\.{_LINEARS}"
_QWEN_VL_LM = rf"(model\.language_model|model)\.layers\.\d+\..*\.{_LINEARS}"
_TEXT = rf"model\.layers\.\d+\..*\.{_LINEARS}"
_LLAVA_LAYOUT = Layout("model.language_model", "model.vision_tower", "model.multi_modal_projector")
_LLAVA_OLD = Layout("language_model", "vision_tower", "multi_modal_projector")
_HEADS = ("lm_head", "language_model.lm_head")
_LLAVA_VISION = ("vision_tower", ".*vision_tower")
_LLAVA_SKIP = (*_LLAVA_VISION, "multi_modal_projector", ".*multi_modal_projector", *_HEADS)
_QWEN_VISION = ("visual", ".*visual")
_QWEN_VL_SKIP = (*_QWEN_VISION, "deepstack_merger_list", ".*deepstack_merger_list", "lm_head")
_BLIP_VISION = ("vision_model", ".*vision_model")
# T5 casts the input of `wo` to the dtype of its weight; where that is packed 4-bit data the input becomes bytes, and the
# answers noise. transformers 5 and InstructBLIP keep it in 16 bit by themselves, BLIP-2 before 5 does not.
_BLIP_SKIP = (
    *_BLIP_VISION,
    *("qformer", ".*qformer", "language_projection", ".*language_projection", "wo", *_HEADS),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "llava", "LLaVA 1.5", "AutoModelForImageTextToText", ("LlavaForConditionalGeneration",), "4.36",
        _LLAVA_LAYOUT, _LLAVA_OLD, _LLAVA_SKIP, _LM, "<image>", "LlavaProcessor",
        vision_skip=_LLAVA_VISION,
    ),
    Family(
        "llava_next", "LLaVA 1.6 (NeXT)", "AutoModelForImageTextToText", ("LlavaNextForConditionalGeneration",), "4.39",
        _LLAVA_LAYOUT, _LLAVA_OLD, _LLAVA_SKIP, _LM, "<image>", "LlavaNextProcessor",
        vision_skip=_LLAVA_VISION,
    ),
    Family("qwen2", "Qwen2 / Qwen2.5", "AutoModelForCausalLM", ("Qwen2ForCausalLM",), "4.37", Layout("model"), None, ("lm_head",), _TEXT),
    Family("qwen3", "Qwen3", "AutoModelForCausalLM", ("Qwen3ForCausalLM",), "4.51", Layout("model"), None, ("lm_head",), _TEXT),
    Family("llama", "Llama", "AutoModelForCausalLM", ("LlamaForCausalLM",), "4.28", Layout("model"), None, ("lm_head",), _TEXT),
    Family(
        "qwen2_vl", "Qwen2-VL", "AutoModelForImageTextToText", ("Qwen2VLForConditionalGeneration",), "4.45",
        Layout("model.language_model", "model.visual", "model.visual.merger"), Layout("model", "visual", "visual.merger"),
        _QWEN_VL_SKIP, _QWEN_VL_LM, "<|vision_start|><|image_pad|><|vision_end|>", "Qwen2VLProcessor",
        vision_skip=_QWEN_VISION,
    ),
    Family(
        "qwen2_5_vl", "Qwen2.5-VL", "AutoModelForImageTextToText", ("Qwen2_5_VLForConditionalGeneration",), "4.49",
        Layout("model.language_model", "model.visual", "model.visual.merger"), Layout("model", "visual", "visual.merger"),
        _QWEN_VL_SKIP, _QWEN_VL_LM, "<|vision_start|><|image_pad|><|vision_end|>", "Qwen2_5_VLProcessor",
        vision_skip=_QWEN_VISION,
    ),
    Family(
        "qwen3_vl", "Qwen3-VL", "AutoModelForImageTextToText", ("Qwen3VLForConditionalGeneration",), "4.57",
        Layout("model.language_model", "model.visual", "model.visual.merger"), None,
        _QWEN_VL_SKIP, _QWEN_VL_LM, "<|vision_start|><|image_pad|><|vision_end|>", "Qwen3VLProcessor",
        vision_skip=_QWEN_VISION,
    ),
    Family(
        "instructblip", "InstructBLIP", "AutoModelForImageTextToText", ("InstructBlipForConditionalGeneration",), "4.31",
        Layout("language_model", "vision_model", "language_projection", "qformer"), None, _BLIP_SKIP,
        r"language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|q|k|v|o|wi_0|wi_1|wo)",
        "", "InstructBlipProcessor",
        vision_skip=_BLIP_VISION, task_type="",
    ),
    Family(
        "blip-2", "BLIP-2", "AutoModelForImageTextToText", ("Blip2ForConditionalGeneration",), "4.27",
        Layout("language_model", "vision_model", "language_projection", "qformer"), None, _BLIP_SKIP,
        r"language_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2|q|k|v|o|wi_0|wi_1|wo)",
        "", "Blip2Processor",
        vision_skip=_BLIP_VISION, task_type="",
    ),
)  # fmt: skip

BY_TYPE: Mapping[str, Family] = {f.model_type: f for f in FAMILIES}
BY_CLASS: Mapping[str, Family] = {c: f for f in FAMILIES for c in f.classes}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model by its name on the Hub, where the name alone decides something.

    `layout`: `transformers`, `original-llava` (the authors' own key names; no transformers class loads them),
    `remote-code` (runs only with code from its repository), `lavis`. `instead` is the repository to use.
    `processor`: False where the repository is known to hold no processor files.
    """

    name: str
    layout: str
    instead: str = ""
    processor: bool = True
    model_type: str = ""


KNOWN: Mapping[str, KnownModel] = {
    m.name.lower(): m
    for m in (
        KnownModel("liuhaotian/llava-v1.5-7b", "original-llava", "llava-hf/llava-1.5-7b-hf", False, "llava"),
        KnownModel("liuhaotian/llava-v1.5-13b", "original-llava", "llava-hf/llava-1.5-13b-hf", False, "llava"),
        KnownModel(
            "liuhaotian/llava-v1.6-vicuna-7b", "original-llava", "llava-hf/llava-v1.6-vicuna-7b-hf", False, "llava_next"
        ),
        KnownModel(
            "liuhaotian/llava-v1.6-vicuna-13b",
            "original-llava",
            "llava-hf/llava-v1.6-vicuna-13b-hf",
            False,
            "llava_next",
        ),
        KnownModel(
            "liuhaotian/llava-v1.6-mistral-7b",
            "original-llava",
            "llava-hf/llava-v1.6-mistral-7b-hf",
            False,
            "llava_next",
        ),
        KnownModel("liuhaotian/llava-v1.6-34b", "original-llava", "llava-hf/llava-v1.6-34b-hf", False, "llava_next"),
        KnownModel("Qwen/Qwen-VL", "remote-code", "Qwen/Qwen2-VL-7B-Instruct", False, "qwen"),
        KnownModel("Qwen/Qwen-VL-Chat", "remote-code", "Qwen/Qwen2-VL-7B-Instruct", False, "qwen"),
        KnownModel("Qwen/Qwen-VL-Chat-Int4", "remote-code", "Qwen/Qwen2-VL-7B-Instruct", False, "qwen"),
        KnownModel("Qwen/Qwen-7B", "remote-code", "Qwen/Qwen2.5-7B", False, "qwen"),
        KnownModel("Qwen/Qwen-7B-Chat", "remote-code", "Qwen/Qwen2.5-7B-Instruct", False, "qwen"),
    )
}

_PREFIXES: tuple[tuple[str, str], ...] = (
    ("llava-hf/llava-1.5-", "llava"),
    ("llava-hf/bakllava-", "llava"),
    ("llava-hf/llava-v1.6-", "llava_next"),
    ("llava-hf/llama3-llava-next-", "llava_next"),
    ("qwen/qwen2.5-vl-", "qwen2_5_vl"),
    ("qwen/qwen2-vl-", "qwen2_vl"),
    ("qwen/qwen3-vl-", "qwen3_vl"),
    ("qwen/qwen2.5-", "qwen2"),
    ("qwen/qwen2-", "qwen2"),
    ("qwen/qwq-", "qwen2"),
    ("qwen/qwen3-", "qwen3"),
    ("salesforce/instructblip-", "instructblip"),
    ("salesforce/blip2-", "blip-2"),
)
_NOT: tuple[str, ...] = (
    "-moe",
    "-a3b",
    "-a22b",
    "-a14b",
    "-next-",
    "-embedding",
    "-reranker",
    "-omni",
    "-audio",
    "-coder-480b",
)


def known_model(name: str) -> KnownModel | None:
    """What is known of a Hub repository by its name alone, or None."""
    return KNOWN.get(name.strip("/").lower())


def family_of(name: str) -> Family | None:
    """The family of a Hub repository by its name, where the name is one of the families' own; None otherwise."""
    low = name.strip("/").lower()
    if low in KNOWN:
        return BY_TYPE.get(KNOWN[low].model_type) if KNOWN[low].layout == "transformers" else None
    if any(word in low for word in _NOT):
        return None
    for prefix, model_type in _PREFIXES:
        if low.startswith(prefix):
            return BY_TYPE[model_type]
    return None
