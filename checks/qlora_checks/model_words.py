"""QD33: the tokenizer and processor files of a local model folder."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks.common import at_least
from qlora_checks.model_parts import config_of, family, model_of, model_type, readable
from qlora_doctor.facts import Facts, ModelFacts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest

_NO_MODEL = ["QD310", "QD311", "QD321"]
_FAST = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_SENTENCEPIECE = re.compile(r"(tokenizer|spiece|sentencepiece(\.bpe)?|source|target)\.model\Z")
_TIKTOKEN = re.compile(r"(.*\.tiktoken|tiktoken\.model)\Z")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|shared)\.weight\Z")
# Tensors of a Q-Former or a text tower have an embedding of their own, for other words.
_NOT_THE_WORDS = re.compile(r"qformer|text_model\.embeddings|vision")
_CHAT = re.compile(r"(^|[-_./\\])(chat|instruct|it)([-_./\\]|\Z)", re.IGNORECASE)


@check("QD330", needs=["model"], wants=["packages"], since="0.1", requires=_NO_MODEL)
def tokenizer_that_cannot_be_built(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The folder has no tokenizer files, or only such as need a package that is not installed.

    `tokenizer.json` needs nothing. A folder with `tokenizer.model` alone is converted when it is loaded, which needs
    sentencepiece and protobuf; without them transformers 5 tries tiktoken next and complains about that. A `.tiktoken` file
    needs tiktoken.

    Always a warning: the model itself loads, and the script may take its tokenizer from elsewhere. Silent where the tokenizer
    has code of its own.

    Fix: install the package; or copy the tokenizer files of the base model into the folder.

    Source: convert_slow_tokenizer.py and tokenization_utils_tokenizers.py of transformers 5.23.
    """
    model = model_of(facts, request)
    if model.config is None or model.has(*_FAST) or "auto_map" in (model.tokenizer_config or {}):
        return
    names = [f.name for f in model.files]
    pieces = next((n for n in names if _SENTENCEPIECE.match(n)), "")
    ranks = next((n for n in names if _TIKTOKEN.match(n)), "")
    if not pieces and not ranks:
        yield Finding(
            "{model} has no tokenizer files: AutoTokenizer will fail on it. Copy those of its base model there "
            "(tokenizer.json, tokenizer_config.json)",
            {"model": model.name},
            severity="warning",
            site=request.site,
            fixes=(Advice("copy the tokenizer files of the base model into the folder"),),
        )
        return
    wanted = ("sentencepiece", "protobuf") if pieces and pieces != "tiktoken.model" else ("tiktoken",)
    packages = facts.packages
    absent = [p for p in wanted if packages.find(p) is None]
    if absent:
        yield Finding(
            "The tokenizer of {model} is {file} alone, which needs {packages}, not installed here: install it, or copy "
            "tokenizer.json there",
            {"model": model.name, "file": pieces or ranks, "packages": absent},
            severity="warning",
            site=request.site,
            fixes=tuple(PipRequirement(p, applicability="safe") for p in absent),
        )


@check("QD331", needs=["model"], since="0.1", requires=_NO_MODEL)
def tokenizer_without_a_padding_token(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The tokenizer has no padding token, or its padding token is the one that ends an answer.

    Without one, a batch of rows of different lengths is `ValueError: Asking to pad but the tokenizer does not have a padding
    token`. With pad equal to eos, a collator that masks padding masks the end of every answer too, and the model never learns
    to stop.

    Information: the load is not touched by it, and a script may set its own.

    Fix: a padding token of its own, which many tokenizers have unused (`<|finetune_right_pad_id|>`, `<unk>`).
    """
    model = model_of(facts, request)
    readable(model, "tokenizer_config.json", "special_tokens_map.json")
    config = model.tokenizer_config
    if config is None or "tokenizer_class" not in config:
        return
    pad, eos = (_token(config.get(n) or (model.special_tokens or {}).get(n)) for n in ("pad_token", "eos_token"))
    if pad and pad != eos:
        return
    yield Finding(
        "The tokenizer of {model} pads with its end token {eos}: a collator that masks padding masks every end too. Set a "
        "padding token of its own for training"
        if pad
        else "The tokenizer of {model} has no padding token: set tokenizer.pad_token before you train in batches",
        {"model": model.name, "eos": eos},
        severity="info",
        site=request.site,
        fixes=(Advice("set a padding token of its own"),),
    )


def _token(value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


@check("QD332", needs=["model"], since="0.1", requires=_NO_MODEL)
def chat_model_without_a_chat_template(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A chat model's folder holds no chat template.

    `apply_chat_template` raises ValueError then (since transformers 4.44 there is no default template), and prompts that are
    put together by hand easily differ from those that the model was trained on. Judged are folders whose name says chat or
    instruct, and vision-language models that are prompted in turns. Templates are looked for in tokenizer_config.json,
    processor_config.json, chat_template.jinja and chat_template.json.

    Fix: the chat_template.jinja of the original repository.
    """
    model = model_of(facts, request)
    kind = family(model)
    readable(model, "tokenizer_config.json", "processor_config.json")
    if model.config is None or model.chat_template or (model.tokenizer_config is None and not model.has(*_FAST)):
        return
    folder = re.split(r"[/\\]", model.name.rstrip("/\\"))[-1]
    if not _CHAT.search(folder) and not (kind is not None and kind.vision and kind.placeholder):
        return
    yield Finding(
        "{model} holds no chat template, so apply_chat_template fails: copy chat_template.jinja of the original repository there",
        {"model": model.name},
        severity="info",
        site=request.site,
        fixes=(Advice("copy the chat template of the original repository into the folder"),),
    )


@check("QD333", needs=["model"], wants=["packages"], since="0.1", requires=_NO_MODEL)
def vision_model_without_processor_files(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A vision-language model's folder lacks the files that its processor is built from.

    transformers 5 writes one file, processor_config.json, with the image processor inside; older versions write
    preprocessor_config.json (the image processor) and, for some models, processor_config.json beside it. Either is enough for
    transformers 5. Without the image processor's settings AutoProcessor raises `OSError: Can't load image processor` for an architecture
    that it has a processor for, and otherwise returns the tokenizer without a word, which drops every image. Before 4.57 a
    processor_config.json alone is not read.

    A warning: the model itself loads.

    Fix: copy the processor files of the original repository; or, with an older transformers, those of the form that it reads.

    Source: facts run on 5.23.0, 4.57.6 and 4.44.2; image_processing_base.py of 4.53 and 4.57.
    """
    model = model_of(facts, request)
    kind = family(model)
    config = config_of(model)
    if not (kind is not None and kind.vision) and not isinstance(config.get("vision_config"), dict):
        return
    if "auto_map" in config or model.has("preprocessor_config.json"):
        return
    readable(model, "processor_config.json")
    own = model.file("processor_config.json")
    nested = isinstance((model.processor_config or {}).get("image_processor"), dict)
    version = facts.version("transformers")
    if nested and (version is None or at_least(version, "4.57")):
        return
    what = "has no processor files (processor_config.json or preprocessor_config.json)"
    if nested:
        what = f"has its processor in processor_config.json alone, which transformers {version} does not read"
    elif own is not None:
        what = "has a processor_config.json without an image processor in it, and no preprocessor_config.json"
    yield Finding(
        "{model} {what}: AutoProcessor {fate}. Copy the processor files of the original repository there",
        {
            "model": model.name,
            "what": what,
            "fate": "raises OSError"
            if kind is not None
            else "raises OSError, or returns the tokenizer, which drops images",
        },
        severity="warning",
        site=request.site,
        fixes=(Advice("copy the processor files of the original repository into the folder"),),
    )


@check("QD334", needs=["model"], since="0.1", requires=_NO_MODEL)
def processor_of_another_model(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The processor's settings contradict the model's: the patch size, or the number of query tokens.

    The processor writes as many image tokens into the prompt as it computes from them; the model makes as many features as it
    computes. Where they differ, the first batch is `ValueError: Image features and image tokens do not match`. The
    files of two models in one folder are the usual cause.

    Fix: the processor files that belong to the model.
    """
    model = model_of(facts, request)
    readable(model, "processor_config.json")
    config, processor = config_of(model), model.processor_config or {}
    vision = config.get("vision_config")
    pairs = (
        ("patch_size", vision.get("patch_size") if isinstance(vision, dict) and "llava" in model_type(model) else None),
        ("num_query_tokens", config.get("num_query_tokens")),
    )
    for name, theirs in pairs:
        ours = processor.get(name)
        if type(ours) is int and type(theirs) is int and ours != theirs:
            yield Finding(
                "The processor of {model} has {name}={ours}, its model {theirs}: the first batch with an image will fail. "
                "Take the processor files that belong to this model",
                {"model": model.name, "name": name, "ours": ours, "theirs": theirs},
                severity="warning",
                site=request.site,
                fixes=(Advice("take the processor files that belong to the model"),),
            )


@check("QD335", needs=["model"], since="0.1", requires=[*_NO_MODEL, "QD314", "QD317"])
def tokens_beyond_the_embedding(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The tokenizer has a token whose id is past the last row of the model's embedding.

    A prompt with that token is an IndexError on the CPU and `CUDA error: device-side assert triggered` on a GPU, which says
    nothing of tokens. It comes from a fine-tune whose tokenizer got tokens and whose model was not resized, or from files of
    two models in one folder.

    Only the tokens that tokenizer_config.json adds are looked at, against the rows of the embedding in the weights.

    Fix: `model.resize_token_embeddings(len(tokenizer))` before the adapters are put on, or the matching tokenizer files.
    """
    model = model_of(facts, request)
    readable(model, "tokenizer_config.json")
    rows = _rows(model)
    if model.largest_token_id is None or rows is None or model.largest_token_id < rows:
        return
    yield Finding(
        "The tokenizer of {model} has the token id {largest}, and the embedding has {rows} rows: call "
        "model.resize_token_embeddings(len(tokenizer)), or take the tokenizer files that belong to the model",
        {"model": model.name, "largest": model.largest_token_id, "rows": rows},
        severity="warning",
        site=request.site,
        fixes=(Advice("resize the embedding, or take the matching tokenizer files"),),
    )


def _rows(model: ModelFacts) -> int | None:
    found = [
        t.shape[0]
        for name, t in model.tensors.items()
        if len(t.shape) == 2 and _EMBEDDING.search(name) and not _NOT_THE_WORDS.search(name)
    ]
    return max(found, default=None)


CHECKS: tuple[Check, ...] = (
    tokenizer_that_cannot_be_built,
    tokenizer_without_a_padding_token,
    chat_model_without_a_chat_template,
    vision_model_without_processor_files,
    processor_of_another_model,
    tokens_beyond_the_embedding,
)
