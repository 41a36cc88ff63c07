"""The processor: the model's own, completed or rebuilt where its files are missing; never a silent tokenizer.

A tokenizer alone accepts `images=` and drops them (transformers 5), so a vision model would learn from text only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from qlora_core.checkpoint import Checkpoint
from qlora_doctor.errors import UsageError

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
BERT = "google-bert/bert-base-uncased"


@dataclass(frozen=True, slots=True)
class Built:
    """A processor (for text a tokenizer), how it came about, and what the user should know."""

    processor: Any
    source: str = "its own files"
    why: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)


def load_processor(checkpoint: Checkpoint, config: Any, *, rebuild: bool = True, **kwargs: Any) -> Built:
    """The processor of a model folder; for a text model its tokenizer.

    With `rebuild=False` (the step is switched off) transformers' AutoProcessor decides alone.

    Raises:
        UsageError: the folder holds no tokenizer, so nothing can be built.
    """
    import transformers

    family = checkpoint.family
    if family is None:
        return _unknown(checkpoint, config, kwargs)
    if not family.vision:
        return Built(_tokenizer(checkpoint, kwargs))
    if not rebuild:
        return Built(transformers.AutoProcessor.from_pretrained(checkpoint.folder, **kwargs))
    if "vl" in checkpoint.model_type and find_spec("torchvision") is None:
        words = _tokenizer(checkpoint, kwargs)
        images = _own_images(checkpoint, kwargs)
        why = "torchvision is not installed, and AutoProcessor needs it for videos; images go through PIL"
        return Built(image_only_qwen(config, words, images), "image-only processor", why)
    if checkpoint.has(*PROCESSOR_FILES):
        processor = transformers.AutoProcessor.from_pretrained(checkpoint.folder, **kwargs)
        if hasattr(processor, "image_processor"):
            done = _complete(processor, config)
            if done:
                return Built(processor, "its own files, completed", f"they leave {', '.join(done)} open")
            return Built(processor)
    words = _tokenizer(checkpoint, kwargs)
    builder = _BUILDERS.get(checkpoint.model_type)
    processor = builder(config, words, checkpoint) if builder else None
    if processor is None:
        return Built(words, "tokenizer", warnings=(_text_only(checkpoint.name),))
    names = " or ".join(PROCESSOR_FILES)
    return Built(processor, "rebuilt from the model's configuration", f"the folder has no {names}")


def image_only_qwen(config: Any, words: Any, images: Any = None) -> Any:
    """A Qwen-VL processor without its video half, which alone needs torchvision."""
    import transformers

    name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
    base = getattr(transformers, name[config.model_type])
    if images is None:
        vision = config.vision_config
        options: dict[str, Any] = {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }
        if config.model_type == "qwen3_vl":
            options |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        images = _image_class("Qwen2VLImageProcessor")(**options)

    def init(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kw: Any
    ) -> None:
        base.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kw)

    # transformers 5 reads the parts from the signature of __init__, 4 from `attributes`; the name is kept so that saved files say the original.
    body: dict[str, Any] = {"__init__": init, "__module__": base.__module__}
    if hasattr(base, "attributes"):
        body["attributes"] = ["image_processor", "tokenizer"]
    cls = type(base.__name__, (base,), body)
    return cls(images, words, chat_template=getattr(words, "chat_template", None))


def choose_pad(tokenizer: Any, rows: int) -> tuple[str, str] | None:
    """A pad token that is in the vocabulary already and is not eos: (token, why); None where none is needed or found.

    `rows` is the number of rows of the embedding: a token beyond it would need a resize, which 4-bit forbids.
    """
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    if pad is not None and pad != eos:
        return None
    why = "there is none" if pad is None else "it is eos, so the model would never learn to stop"
    vocabulary = tokenizer.get_vocab()
    for token in PADS:
        if token != eos and vocabulary.get(token, rows) < rows:
            return token, why
    return None


PADS = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|vision_pad|>",
    "<|reserved_special_token_0|>",
    "<unk>",
)


def _tokenizer(checkpoint: Checkpoint, kwargs: dict[str, Any], folder: str = "") -> Any:
    import transformers

    where = checkpoint.folder / folder if folder else checkpoint.folder
    try:
        return transformers.AutoTokenizer.from_pretrained(where, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        text = str(error).strip().split("\n")[0]
        raise UsageError(
            f"{where} gives no tokenizer: {text}. Download the tokenizer files again; where a package is named, install it"
        ) from error


def _own_images(checkpoint: Checkpoint, kwargs: dict[str, Any]) -> Any:
    import transformers

    if not checkpoint.has(*PROCESSOR_FILES):
        return None
    return transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, **kwargs)


def _unknown(checkpoint: Checkpoint, config: Any, kwargs: dict[str, Any]) -> Built:
    import transformers

    has_vision = getattr(config, "vision_config", None) is not None
    if checkpoint.has(*PROCESSOR_FILES):
        return Built(transformers.AutoProcessor.from_pretrained(checkpoint.folder, **kwargs))
    words = _tokenizer(checkpoint, kwargs)
    return Built(words, warnings=(_text_only(checkpoint.name),) if has_vision else ())


def _text_only(name: str) -> str:
    return (
        f"{name}: no image processor could be built, so this is the tokenizer alone. For text it is right; images given "
        "to it are dropped without a word. Take the processor files from the model's repository"
    )


def _complete(processor: Any, config: Any) -> list[str]:
    """Sets what the files leave open and the model's configuration knows; returns the names."""
    wanted: dict[str, Any] = {}
    if hasattr(processor, "num_query_tokens"):
        wanted["num_query_tokens"] = getattr(config, "num_query_tokens", None)
    if hasattr(processor, "vision_feature_select_strategy"):
        wanted |= _llava_options(config)
    done = []
    for name, value in wanted.items():
        old = getattr(processor, name, None)
        # 0 additional tokens with the strategy "default" loses one image token: the class token is never counted.
        unset = old is None or (name == "num_additional_image_tokens" and old == 0 and value == 1)
        if unset and value is not None:
            setattr(processor, name, value)
            done.append(name)
    return done


def _llava_options(config: Any) -> dict[str, Any]:
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 0 if config.vision_config.model_type.startswith("siglip") else 1,
    }


def _image_class(name: str) -> Any:
    """The image processor class; without torchvision the one on PIL, which gives the same pixels."""
    import transformers

    pil = None if find_spec("torchvision") else getattr(transformers, f"{name}Pil", None)
    return pil or getattr(transformers, name)


def _clip(config: Any, name: str = "CLIPImageProcessor", **more: Any) -> Any:
    size = config.vision_config.image_size
    return _image_class(name)(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **more)


def _llava(config: Any, words: Any, checkpoint: Checkpoint) -> Any:
    import transformers

    options = {**_llava_options(config), "chat_template": words.chat_template}
    return transformers.LlavaProcessor(image_processor=_clip(config), tokenizer=words, **options)


def _llava_next(config: Any, words: Any, checkpoint: Checkpoint) -> Any:
    import transformers

    images = _clip(config, "LlavaNextImageProcessor", image_grid_pinpoints=config.image_grid_pinpoints)
    options = {**_llava_options(config), "chat_template": words.chat_template}
    return transformers.LlavaNextProcessor(image_processor=images, tokenizer=words, **options)


def _blip_images(config: Any) -> Any:
    size = config.vision_config.image_size
    return _image_class("BlipImageProcessor")(size={"height": size, "width": size})


def _instructblip(config: Any, words: Any, checkpoint: Checkpoint) -> Any:
    import transformers

    qformer = _qformer_words(config, words, checkpoint)
    if qformer is None:
        return None
    made = transformers.InstructBlipProcessor(
        _blip_images(config), words, qformer, num_query_tokens=config.num_query_tokens
    )
    return made


def _qformer_words(config: Any, words: Any, checkpoint: Checkpoint) -> Any:
    """The Q-Former's own tokenizer: beside the model, or BERT's, from which it was made; None where neither is there."""
    import transformers

    if (checkpoint.folder / "qformer_tokenizer").is_dir():
        return _tokenizer(checkpoint, {}, "qformer_tokenizer")
    rows = config.qformer_config.vocab_size
    if rows == config.text_config.vocab_size:
        return words
    try:
        bert = transformers.AutoTokenizer.from_pretrained(BERT, truncation_side="left")
    except OSError:
        return None
    bert.add_special_tokens({"bos_token": "[DEC]"})
    return bert if len(bert) <= rows else None


def _blip2(config: Any, words: Any, checkpoint: Checkpoint) -> Any:
    import transformers

    return transformers.Blip2Processor(_blip_images(config), words, num_query_tokens=config.num_query_tokens)


def _qwen_vl(config: Any, words: Any, checkpoint: Checkpoint) -> Any:
    return image_only_qwen(config, words)


_BUILDERS: dict[str, Callable[[Any, Any, Checkpoint], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "instructblip": _instructblip,
    "blip-2": _blip2,
    "qwen2_vl": _qwen_vl,
    "qwen2_5_vl": _qwen_vl,
    "qwen3_vl": _qwen_vl,
}
