"""Answers of a base model with its adapter: one at a time, streamed, in the very form that training used."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_core.data.rows import Image, Message, Row
from qlora_core.errors import RowProblem
from qlora_core.report import LoadReport
from qlora_core.saved_adapter import SavedAdapter, read_adapter
from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE, Family, family_of, known_model

Hear = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. A `temperature` of 0 takes the likeliest token each time.

    Raises:
        UsageError: a value outside its range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (the likeliest token) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 penalises nothing"),
        )
        for name, good, means in ranges:
            if not good:
                raise UsageError(f"{name}={getattr(self, name)!r}: {means}")

    def arguments(self) -> dict[str, Any]:
        """For `model.generate`; what the model's own generation_config would add to greedy answers is switched off."""
        drawn = self.temperature > 0
        return {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": drawn,
            "temperature": self.temperature if drawn else None,
            "top_p": self.top_p if drawn else None,
            **({} if drawn else {"top_k": None}),
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """`finish`: `stop` where the model ended it, `length` at max_new_tokens, `interrupted` by Ctrl-C."""

    text: str
    tokens: int
    finish: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Speaker:
    """A loaded model that answers. `notes`: which chat template is used, and why."""

    model: Any
    processor: Any
    encoder: Any
    family: Family | None
    report: LoadReport
    notes: tuple[str, ...]

    @property
    def sees(self) -> bool:
        return hasattr(self.processor, "image_processor")

    def answer(self, messages: Sequence[Message], how: Sampling, hear: Hear | None = None) -> Answer:
        """The model's answer to a conversation; `hear` gets it piece by piece. The first Ctrl-C ends the answer, not the program.

        Raises:
            UsageError: an image for a text model, none for a model that needs one, or a conversation that the chat
                template refuses.
        """
        import torch

        from qlora_core.answers import placed

        images = sum(len(message.images) for message in messages)
        check_images(self.family, self.sees, images)
        if not images and self.family is not None and self.family.layout.qformer:
            raise UsageError(f"{self.family.title} answers about an image; give one")
        try:
            made = self.encoder.prompt(Row(tuple(messages)))
        except RowProblem as problem:
            raise UsageError(f"this cannot be put to the model: {problem.reason}") from problem
        device = next(self.model.parameters()).device
        inputs = {name: placed(value, device, self.model) for name, value in made.items()}
        if how.seed is not None:
            torch.manual_seed(how.seed)
        words = getattr(self.processor, "tokenizer", self.processor)
        voice, begun = _voice(words, hear), time.monotonic()
        with _stop_at_interrupt() as stop, torch.no_grad():
            ids = self.model.generate(**inputs, **how.arguments(), streamer=voice, stopping_criteria=[stop])[0]
        seconds = time.monotonic() - begun
        prompt = inputs["input_ids"][0]
        # A decoder repeats the prompt before its answer; an encoder-decoder begins with its start token.
        start = len(prompt) if torch.equal(ids[: len(prompt)], prompt) else int(self.model.config.is_encoder_decoder)
        said = ids[start:].tolist()
        finish = "interrupted" if stop.asked else "stop" if said and said[-1] in _ends(self.model, words) else "length"
        return Answer(words.decode(said, skip_special_tokens=True).strip(), len(said), finish, seconds)


def load_speaker(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    *,
    template: str | Path | None = None,
    enable_thinking: bool | None = None,
    images: int = 0,
    **load: Any,
) -> Speaker:
    """Loads a base model with its adapter to answer with it.

    Args:
        base: a model folder or Hub name, or an adapter folder (its base is loaded under it).
        adapter: an adapter folder, or a Hub name.
        template: as in training; None takes what the adapter was trained with, else the model's own.
        enable_thinking: handed to the template; None: as the adapter was trained.
        images: how many images there will be at least, so that a text model is refused before it is loaded.
        load: goes to `load_quantized`.

    Raises:
        UsageError: something that cannot be used; where it can be known, before the model is loaded.
        LoadBlocked, NotVerified: as from `load_quantized`.
    """
    from qlora_core.data.encode import make_encoder
    from qlora_core.load import load_quantized
    from qlora_core.prepare_run import limit_pixels

    saved = _saved(os.fspath(base), os.fspath(adapter) if adapter is not None else None)
    family = family_before_load(saved.base if saved and _is_adapter(Path(base)) else os.fspath(base))
    if family is not None:
        check_images(family, family.vision, images)
    loaded = load_quantized(base, adapter=adapter, **load)
    settings: Mapping[str, Any] = saved.settings if saved else {}
    if settings.get("max_pixels") and hasattr(loaded.processor, "image_processor"):
        # Another image size than in training is another question.
        limit_pixels(loaded.processor, settings["max_pixels"])
    encoder = make_encoder(
        loaded.processor,
        loaded.model.config,
        template=template if template is not None else settings.get("template"),
        enable_thinking=enable_thinking if enable_thinking is not None else settings.get("enable_thinking"),
    )
    # Generation keeps its keys and values, whatever the checkpoint's configuration says.
    loaded.model.config.use_cache = True
    notes = (*encoder.notes, *_other_base(saved, os.fspath(base)))
    found = BY_TYPE.get(str(getattr(loaded.model.config, "model_type", "")))
    return Speaker(loaded.model, loaded.processor, encoder, found, loaded.report, notes)


def check_images(family: Family | None, sees: bool, images: int) -> None:
    """Raises UsageError for images that the model cannot take, or a missing one that it cannot do without."""
    title = family.title if family is not None else "this model"
    if images and not sees:
        raise UsageError(
            f"{title} takes text alone; an image would be dropped. Leave the image out, or load a vision model"
        )
    if family is not None and family.layout.qformer and images > 1:
        raise UsageError(f"{title} takes one image, and {images} were given")


def picture(path: str) -> Image:
    """An image file that can be read.

    Raises:
        UsageError: no such file, or no image.
    """
    from qlora_core.data.vision import image_size

    if not Path(path).expanduser().is_file():
        raise UsageError(f"{path}: there is no such image file")
    image = Image(str(Path(path).expanduser()))
    try:
        image_size(image)
    except RowProblem as problem:
        raise UsageError(problem.reason) from problem
    return image


def question(text: str, images: Sequence[Image] = ()) -> Message:
    """A turn of the user, its images first."""
    return Message("user", (*images, text))


def family_before_load(name: str) -> Family | None:
    """The family of a model folder or name, without loading it; None where it cannot be known."""
    config = Path(name).expanduser() / "config.json"
    if config.is_file():
        from qlora_core.tensors import read_json

        return BY_TYPE.get(str(read_json(config).get("model_type")))
    known = known_model(name)
    return family_of(name) or (BY_TYPE.get(known.model_type) if known else None)


def _is_adapter(folder: Path) -> bool:
    folder = folder.expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _saved(base: str, adapter: str | None) -> SavedAdapter | None:
    if adapter is not None:
        # A name that is no folder here is one of the Hub; the load says what is wrong with it.
        return (
            read_adapter(adapter)
            if Path(adapter).expanduser().exists() or adapter.startswith((".", "/", "~"))
            else None
        )
    return read_adapter(base) if _is_adapter(Path(base)) else None


def _other_base(saved: SavedAdapter | None, base: str) -> tuple[str, ...]:
    if saved is None or not saved.base or _is_adapter(Path(base)) or same_model(saved.base, base):
        return ()
    return (f"the adapter was trained on {saved.base}, and answers here on {base}",)


def same_model(one: str, other: str) -> bool:
    """Whether two names may mean one model: the same folder, or the same last part of a path or Hub name."""
    if os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other)):
        return True
    return Path(one).name.lower() == Path(other).name.lower()


def _ends(model: Any, words: Any) -> set[int]:
    eos = model.generation_config.eos_token_id
    return {*(eos if isinstance(eos, (list, tuple)) else [eos]), words.eos_token_id} - {None}


def _voice(words: Any, hear: Hear | None) -> Any:
    if hear is None:
        return None
    from transformers import TextStreamer

    told = hear

    class Voice(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                told(text)

    return Voice(words, skip_prompt=True, skip_special_tokens=True)


class _Stop:
    """A stopping criterion that Ctrl-C sets; the token that is being made is still finished."""

    asked = False

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        return torch.full((ids.shape[0],), self.asked, dtype=torch.bool, device=ids.device)


@contextmanager
def _stop_at_interrupt() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def asked(*_: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    signal.signal(signal.SIGINT, asked)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
