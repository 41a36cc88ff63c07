"""Tiny random models of every family, written to disk from the real configuration classes.

For `qlora-core demo` and for tests: hidden size 64, two layers, a byte-level tokenizer trained on a few sentences, real
image processors. Small enough to build in a second and to load in 4-bit on a laptop; the answers are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HIDDEN, LAYERS, HEADS = 64, 2, 4
IMAGE, PATCH = 28, 14
QUERY_TOKENS = 4
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
QWEN_SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
SEEING = ("vision_", "visual", "qformer", "query_tokens", "projector", "language_projection")
KINDS = (
    "llava",
    "llava_next",
    "llama",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "instructblip_vicuna",
    "instructblip_t5",
    "blip2_opt",
    "blip2_t5",
)

_WORDS = """USER: What is in this picture? ASSISTANT: A red cat sits on a blue chair beside a small dog.
Describe the image. The image shows two green cups on a table. How many birds are there? There are three birds.
Question: what colour is the car? Answer: the car is white. user assistant system You are a helpful assistant."""

_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}PLACEHOLDER\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def placeholder(kind: str) -> str:
    """The text that stands for an image in a prompt for this kind; "" where there is none."""
    if "vl" in kind:
        return "<|vision_start|><|image_pad|><|vision_end|>"
    return "<image>" if kind.startswith("llava") else ""


def tokenizer(kind: str, *, pad: bool = True) -> Any:
    """A byte-level BPE tokenizer with the special tokens of the family. `pad=False` leaves pad_token unset."""
    import tokenizers
    import transformers

    special = [*SPECIAL, *(QWEN_SPECIAL if "vl" in kind else ())]
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(special) + 320,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([_WORDS], trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if pad:
        names["pad_token"] = "<pad>"
    # Before transformers 5 a Qwen-VL processor insists on the tokenizer class of its family.
    own = getattr(transformers, "Qwen2TokenizerFast", None) if "vl" in kind and _before_5() else None
    cls = own or transformers.PreTrainedTokenizerFast
    fast = cls(tokenizer_object=raw, model_max_length=512, **names)
    if "blip" not in kind:
        fast.chat_template = _TEMPLATE.replace("PLACEHOLDER", placeholder(kind))
    return fast


def model(kind: str, words: Any, *, seed: int = 0, contrast: float = 1.0) -> Any:
    """A random float32 model of the kind, for the vocabulary of the tokenizer `words`.

    `contrast` multiplies the weights of vision tower, Q-Former and projector: a fresh Q-Former says nearly the same of
    every image, and at 10 a language model can learn to tell them apart.
    """
    import torch

    config, cls = _config(kind, words)
    torch.manual_seed(seed)
    built = cls(config)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            # Zeros (BLIP's vision default, fresh query tokens) would hide a part that was never loaded.
            if (parameter.dim() > 1 and float(parameter.std()) < 1e-6) or name.endswith("query_tokens"):
                parameter.normal_(0.0, 0.02)
            if contrast != 1.0 and parameter.dim() > 1 and any(part in name for part in SEEING):
                parameter.mul_(contrast)
    return built


def build(
    kind: str,
    folder: str | Path,
    *,
    dtype: str = "bfloat16",
    processor: bool = True,
    seed: int = 0,
    contrast: float = 1.0,
) -> Path:
    """Writes model, tokenizer and (with `processor`) processor files of one kind; returns the folder."""
    import torch

    folder = Path(folder)
    words = tokenizer(kind)
    built = model(kind, words, seed=seed, contrast=contrast).to(getattr(torch, dtype))
    if not _before_5():
        built.config.dtype = getattr(torch, dtype)
    built.save_pretrained(folder)
    words.save_pretrained(folder)
    if "instructblip" in kind:
        words.save_pretrained(folder / "qformer_tokenizer")
    if processor and (made := make_processor(kind, built.config, words)) is not None:
        made.save_pretrained(folder)
    return folder


def make_processor(kind: str, config: Any, words: Any) -> Any:
    """The right processor of a vision kind; None for text."""
    import transformers as t

    if "vl" in kind:
        from qlora_core.processor import image_only_qwen

        return image_only_qwen(config, words)
    clip = {"size": {"shortest_edge": IMAGE}, "crop_size": {"height": IMAGE, "width": IMAGE}}
    llava = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": words.chat_template,
    }
    if kind == "llava":
        return t.LlavaProcessor(image_processor=t.CLIPImageProcessor(**clip), tokenizer=words, **llava)
    if kind == "llava_next":
        images = t.LlavaNextImageProcessor(**clip, image_grid_pinpoints=config.image_grid_pinpoints)
        return t.LlavaNextProcessor(image_processor=images, tokenizer=words, **llava)
    if "blip" in kind:
        images = t.BlipImageProcessor(size={"height": IMAGE, "width": IMAGE})
        if "instruct" in kind:
            return t.InstructBlipProcessor(images, words, words, num_query_tokens=QUERY_TOKENS)
        return t.Blip2Processor(images, words, num_query_tokens=QUERY_TOKENS)
    return None


def _config(kind: str, words: Any) -> tuple[Any, Any]:
    import transformers as t

    ids = {name: words.convert_tokens_to_ids(name) for name in (*SPECIAL, *QWEN_SPECIAL)}
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    text: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        **ends,
    }
    if kind.startswith("llava"):
        vision = t.CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            image_size=IMAGE,
            patch_size=PATCH,
            projection_dim=HIDDEN,
        )
        both = {"vision_config": vision, "text_config": t.LlamaConfig(**text, num_key_value_heads=HEADS)}
        both["image_token_index"] = ids["<image>"]
        if kind == "llava":
            return t.LlavaConfig(**both), t.LlavaForConditionalGeneration
        pinpoints = [[IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE], [2 * IMAGE, 2 * IMAGE]]
        return t.LlavaNextConfig(**both, image_grid_pinpoints=pinpoints), t.LlavaNextForConditionalGeneration
    if "blip" in kind:
        return _blip(kind, text, ends, ids["<image>"])
    if "vl" in kind:
        return _qwen_vl(kind, text, ids)
    return _text(kind, text)


def _text(kind: str, text: dict[str, Any]) -> tuple[Any, Any]:
    import transformers as t

    text["num_key_value_heads"] = 2
    if kind == "llama":
        return t.LlamaConfig(**text), t.LlamaForCausalLM
    if kind == "qwen2":
        return t.Qwen2Config(**text), t.Qwen2ForCausalLM
    if kind == "qwen3":
        return t.Qwen3Config(**text, head_dim=16), t.Qwen3ForCausalLM
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "decoder_sparse_step": 1}
    if kind == "qwen2_moe":
        config = t.Qwen2MoeConfig(**text, **experts, shared_expert_intermediate_size=HIDDEN)
        return config, t.Qwen2MoeForCausalLM
    return t.Qwen3MoeConfig(**text, **experts, head_dim=16), t.Qwen3MoeForCausalLM


def _qwen_vl(kind: str, text: dict[str, Any], ids: dict[str, int]) -> tuple[Any, Any]:
    import transformers as t

    tied = text.pop("tie_word_embeddings")
    text["num_key_value_heads"] = 2
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text["rope_scaling" if _before_5() else "rope_parameters"] = rope | ({"type": "mrope"} if _before_5() else {})
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": HIDDEN,
        "num_heads": HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": tied,
    }
    if kind == "qwen2_vl":
        vision |= {"embed_dim": HIDDEN, "mlp_ratio": 2}
        config = t.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        return config, t.Qwen2VLForConditionalGeneration
    vision |= {"out_hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN}
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
        return config, t.Qwen2_5_VLForConditionalGeneration
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    config = t.Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config=vision, **tokens)
    return config, t.Qwen3VLForConditionalGeneration


def _blip(kind: str, text: dict[str, Any], ends: dict[str, int], image: int) -> tuple[Any, Any]:
    import transformers as t

    prefix = "InstructBlip" if kind.startswith("instruct") else "Blip2"
    # The default initializer_range of 1e-10 becomes exact zeros in 16 bit.
    vision = getattr(t, f"{prefix}VisionConfig")(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE,
        patch_size=PATCH,
        initializer_range=0.02,
    )
    qformer = getattr(t, f"{prefix}QFormerConfig")(
        vocab_size=text["vocab_size"],
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=512,
        cross_attention_frequency=2,
        encoder_hidden_size=HIDDEN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    if kind.endswith("vicuna"):
        words = t.LlamaConfig(**text, num_key_value_heads=HEADS)
    elif kind.endswith("opt"):
        words = t.OPTConfig(
            vocab_size=text["vocab_size"],
            hidden_size=HIDDEN,
            ffn_dim=2 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=512,
            word_embed_proj_dim=HIDDEN,
            **ends,
        )
    else:
        words = t.T5Config(
            vocab_size=text["vocab_size"],
            d_model=HIDDEN,
            d_kv=16,
            d_ff=2 * HIDDEN,
            num_layers=LAYERS,
            num_decoder_layers=LAYERS,
            num_heads=HEADS,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=ends["pad_token_id"],
            eos_token_id=ends["eos_token_id"],
            decoder_start_token_id=ends["pad_token_id"],
            dropout_rate=0.0,
        )
    parts = {"vision_config": vision, "qformer_config": qformer, "text_config": words}
    if _before_5():
        parts = {name: part.to_dict() for name, part in parts.items()}
    config = getattr(t, f"{prefix}Config")(
        **parts,
        num_query_tokens=QUERY_TOKENS,
        image_token_index=image,
    )
    return config, getattr(t, f"{prefix}ForConditionalGeneration")


def _before_5() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5
