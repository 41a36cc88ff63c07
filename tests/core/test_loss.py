"""The thrifty loss is the plain loss: value, gradients, accumulation, and what it does where it cannot be taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KINDS = (
    "llava",
    "llava_next",
    "llama",
    "qwen2",
    "qwen3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "instructblip_vicuna",
    "instructblip_t5",
    "blip2_opt",
    "blip2_t5",
)
# Of the largest entry; float32 differs in the order of summation, bfloat16 in rounding.
TOLERANCE = {"float32": (1e-5, 1e-5), "bfloat16": (1e-4, 1e-2)}


def loaded(folder: Path, dtype: str) -> tuple[Any, Any]:
    import torch

    from qlora_core import attach, load_quantized

    model, processor = load_quantized(folder, device="cpu", dtype=dtype, for_training=True, gate="off")
    torch.manual_seed(0)
    model = attach(model, r=4)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_p", "dropout_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    return model, processor


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def relative(got: Any, wanted: Any) -> float:
    return float(((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).detach())


def plain_float(outputs: Any, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(outputs.logits.float().flatten(0, 1), inputs["labels"].flatten())


def gradients_differ(got: dict[str, Any], wanted: dict[str, Any]) -> float:
    """As one vector: single tensors can be all but zero."""
    import torch

    assert got.keys() == wanted.keys() and wanted
    names = sorted(wanted)
    flat = [torch.cat([tensors[n].float().flatten() for n in names]) for tensors in (got, wanted)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_chunked_loss_and_its_gradients_are_those_of_the_plain_loss(
    kind: str, dtype: str, tiny: Callable[..., Path], batch: Callable[..., Any]
) -> None:
    from qlora_core import loss

    model, processor = loaded(tiny(kind, dtype), dtype)
    inputs = batch(kind, model, processor)
    inputs["labels"][:, : inputs["labels"].shape[1] // 2] = -100
    assert loss.choose(model).name == "chunked"
    outputs = model(**inputs)
    plain = outputs.loss
    if kind.endswith("t5"):
        # T5 makes its own loss in the dtype of the logits, which in bfloat16 keeps two digits.
        assert relative(plain.float(), plain_float(outputs, inputs)) < 1e-2
        plain = plain_float(outputs, inputs)
    wanted = gradients(model, plain)
    ours = loss.chunked_call(model, inputs)
    got = gradients(model, ours)
    of_loss, of_gradient = TOLERANCE[dtype]
    assert relative(ours, plain) < of_loss
    assert gradients_differ(got, wanted) < of_gradient


@pytest.mark.parametrize("kind", ["llava", "qwen3", "qwen2_vl", "qwen3_vl", "llama"])
def test_the_answers_route_gives_the_plain_loss_too(
    kind: str, tiny: Callable[..., Path], batch: Callable[..., Any]
) -> None:
    from qlora_core import loss

    model, processor = loaded(tiny(kind, "float32"), "float32")
    inputs = batch(kind, model, processor)
    inputs["labels"][:, :-5] = -100
    assert loss.choose(model, "answers").name == "answers"
    plain = model(**inputs).loss
    wanted = gradients(model, plain)
    outputs = model(**loss.answer_columns(inputs))
    assert outputs.logits.shape[1] == 5
    assert relative(outputs.loss, plain) < 1e-5
    assert gradients_differ(gradients(model, outputs.loss), wanted) < 1e-5


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("trained", [False, True])
def test_every_chunk_size_gives_one_loss_also_for_a_head_that_is_trained(chunk: int, trained: bool) -> None:
    import torch

    from qlora_core.loss import chunked_loss, supervised

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 40, bias=True)
    head.requires_grad_(trained)
    hidden = torch.randn(2, 9, 8, requires_grad=True)
    labels = torch.randint(0, 40, (2, 9))
    labels[0, :5] = -100
    targets = supervised(labels, shift=True)
    wanted = torch.nn.functional.cross_entropy(head(hidden).view(-1, 40), targets.view(-1))
    made = [hidden, *(head.parameters() if trained else ())]
    wanted_grads = torch.autograd.grad(wanted, made)
    got = chunked_loss(hidden, head, targets, chunk=chunk)
    assert relative(got, wanted) < 1e-6
    for ours, theirs in zip(torch.autograd.grad(got, made), wanted_grads, strict=True):
        assert relative(ours, theirs) < 1e-5


def test_the_head_never_sees_a_position_that_learns_nothing() -> None:
    import torch

    from qlora_core.loss import chunked_loss, supervised

    seen: list[int] = []
    head = torch.nn.Linear(8, 40).requires_grad_(True)
    head.register_forward_hook(lambda _, given, out: seen.append(out.shape[0]))
    labels = torch.full((2, 50), -100)
    labels[:, 40:43] = 7
    chunked_loss(torch.randn(2, 50, 8), head, supervised(labels, shift=True), chunk=4)
    assert sum(seen) == 6 and max(seen) == 4


def test_the_head_gives_logits_again_after_the_loss(tiny: Callable[..., Path], batch: Callable[..., Any]) -> None:
    from qlora_core import loss

    model, processor = loaded(tiny("qwen3"), "bfloat16")
    inputs = batch("qwen3", model, processor)
    loss.chunked_call(model, inputs)
    assert model(**inputs).logits.shape[:2] == inputs["labels"].shape
    with pytest.raises(ValueError, match="do not match"):
        loss.chunked_call(model, {**inputs, "labels": inputs["labels"][:, :-3]})
    assert model(**inputs).logits.shape[:2] == inputs["labels"].shape
    assert "forward" not in vars(model.get_base_model().lm_head)


def test_a_batch_without_a_label_costs_nothing_and_moves_nothing() -> None:
    import torch

    from qlora_core.loss import chunked_loss

    hidden = torch.randn(1, 4, 8, requires_grad=True)
    value = chunked_loss(hidden, torch.nn.Linear(8, 40), torch.full((1, 4), -100))
    value.backward()
    assert float(value.detach()) == 0.0 and not bool(hidden.grad.any())


@pytest.mark.parametrize(
    ("kind", "route"), [("qwen3", "chunked"), ("qwen3", "answers"), ("instructblip_t5", "chunked")]
)
def test_accumulated_micro_batches_give_the_loss_of_one_batch(
    kind: str, route: str, tiny: Callable[..., Path], tmp_path: Path, picture: Any
) -> None:
    import torch
    import transformers

    from qlora_core.trainer import Trainer

    losses = {}
    for batch, steps in ((4, 1), (1, 4)):
        model, processor = loaded(tiny(kind, "float32"), "float32")
        words = ["a red cat", "two", "the small dog sits on a chair", "blue"]
        extra: dict[str, Any] = {}
        if hasattr(processor, "image_processor"):
            made = processor(text="What is in this picture?", images=picture, return_tensors="pt")
            extra = {name: made[name][0] for name in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")}
            rows = [{"input_ids": made["input_ids"][0], **extra} for _ in words]
            tokens = processor.tokenizer
        else:
            rows, tokens = [{"input_ids": torch.arange(10, 30)} for _ in words], processor
        for row, answer in zip(rows, words, strict=True):
            ids = tokens(answer).input_ids[:8]
            width = 8 if extra else 20
            row["labels"] = torch.tensor([-100] * (width - len(ids)) + ids)
            row["attention_mask"] = torch.ones_like(row["input_ids"])
        args = transformers.TrainingArguments(
            str(tmp_path / f"{kind}{batch}"),
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=args, train_dataset=rows, loss=route)
        trainer.train()
        losses[batch] = trainer.state.log_history[0]
    assert losses[1]["loss"] == pytest.approx(losses[4]["loss"], rel=1e-5)
    assert losses[1]["grad_norm"] == pytest.approx(losses[4]["grad_norm"], rel=1e-4)


def test_a_model_whose_head_we_do_not_know_falls_back_and_says_why(tiny: Callable[..., Path]) -> None:
    from qlora_core import loss
    from qlora_doctor.errors import UsageError

    model, _ = loaded(tiny("qwen3"), "bfloat16")
    bare = model.get_base_model()
    bare.config.model_type = "qwen99"
    route = loss.choose(model)
    assert route.name == "answers" and "qwen99" in route.why
    with pytest.raises(UsageError, match='take loss="auto"'):
        loss.choose(model, "chunked")
    bare.config.model_type = "qwen3"
    bare.config.final_logit_softcapping = 30.0
    assert "final_logit_softcapping" in loss.choose(model).why
    with pytest.raises(UsageError, match="one of auto"):
        loss.choose(model, "fast")


def test_an_encoder_decoder_that_we_do_not_know_takes_the_plain_loss(tiny: Callable[..., Path]) -> None:
    from qlora_core import loss

    model, _ = loaded(tiny("instructblip_t5"), "float32")
    model.get_base_model().config.model_type = "instructblop"
    route = loss.choose(model)
    assert route.name == "plain" and "logits of every position" in route.why
