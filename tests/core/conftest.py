"""Tiny models on disk, built once a session; every test here needs torch and is skipped where it is absent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("torch", "transformers", "peft", "bitsandbytes") if find_spec(name) is None]
HERE = Path(__file__).parent
# The libraries' own notices, which say nothing of our code.
NOTICES = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*AVX512_BF16.*",
    "ignore:Merge lora module to 4-bit:UserWarning",
    "ignore:MatMul8bitLt. inputs will be cast:UserWarning",
    "ignore:.*torch.jit.*:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.torch)
            for notice in NOTICES:
                item.add_marker(pytest.mark.filterwarnings(notice))


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    if MISSING:
        yield
        return
    import torch
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    yield
    torch.set_num_threads(threads)


Build = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`tiny(kind)` is the folder of a tiny model; built once for each kind and dtype. Do not write into it."""
    root = tmp_path_factory.mktemp("tiny")

    def get(kind: str, dtype: str = "bfloat16") -> Path:
        from qlora_core.tiny import build

        folder = root / f"{kind}-{dtype}"
        return folder if folder.exists() else build(kind, folder, dtype=dtype)

    return get


@pytest.fixture
def copied(tiny: Build, tmp_path: Path) -> Callable[..., Path]:
    """`copied(kind, without=[...])` is a copy of a tiny model that a test may spoil."""
    import shutil

    def get(kind: str, without: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / kind
        shutil.copytree(tiny(kind), folder)
        for name in without:
            (folder / name).unlink(missing_ok=True)
        return folder

    return get


@pytest.fixture(scope="session")
def picture() -> Any:
    from qlora_core.demo import picture

    return picture()


@pytest.fixture(scope="session")
def batch(picture: Any) -> Callable[..., dict[str, Any]]:
    """`batch(kind, model, processor)`: one prompt, with a picture where the model takes one, and labels."""

    def make(kind: str, model: Any, processor: Any, question: str = "What is in this picture?") -> dict[str, Any]:
        from qlora_core.tiny import placeholder

        text = f"USER: {placeholder(kind)} {question} ASSISTANT:"
        if hasattr(processor, "image_processor"):
            made = dict(processor(text=text, images=picture, return_tensors="pt"))
        else:
            made = dict(processor(text, return_tensors="pt"))
        made.pop("token_type_ids", None)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        if "pixel_values" in made:
            made["pixel_values"] = made["pixel_values"].to(dtype)
        made["labels"] = made["input_ids"].clone()
        return made

    return make
