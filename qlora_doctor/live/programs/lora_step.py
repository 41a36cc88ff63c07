"""One LoRA gradient step of a tiny 4-bit model, against the same step over its weights taken back to full precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the compute dtype, the device."""
    import bitsandbytes
    import peft
    import torch
    from bitsandbytes import functional

    dtype, device = getattr(torch, arguments[0]), arguments[1]

    def four_bit(inside: int, outside: int) -> Any:
        return bitsandbytes.nn.Linear4bit(inside, outside, bias=False, compute_dtype=dtype, quant_type="nf4")

    def plain(inside: int, outside: int) -> Any:
        return torch.nn.Linear(inside, outside, bias=False)

    def tiny(make: Callable[[int, int], Any]) -> Any:
        # The gradient of the first layer goes through the second.
        return torch.nn.Sequential(make(64, 128), torch.nn.SiLU(), make(128, 64))

    torch.manual_seed(0)
    small, whole = tiny(four_bit).to(device), tiny(plain)
    for number in (0, 2):
        packed = small[number].weight
        full = functional.dequantize_4bit(packed.data, packed.quant_state).float().cpu()
        whole[number].weight.data = full
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False)
    small, whole = peft.get_peft_model(small, lora), peft.get_peft_model(whole, lora)
    trained = {n: p for n, p in whole.named_parameters() if p.requires_grad}
    for name, parameter in small.named_parameters():
        if name in trained:
            parameter.data = trained[name].data.to(parameter)
    x, y = torch.randn(16, 64), torch.randn(16, 64)
    losses, gradients = [], []
    for model, place in ((small, device), (whole, "cpu")):
        model.train()
        loss = (model(x.to(place)).float() - y.to(place)).pow(2).mean()
        loss.backward()
        losses.append(float(loss))
        gradients.append({n: p.grad.float().cpu() for n, p in model.named_parameters() if p.requires_grad})
    if not abs(losses[0] - losses[1]) < 0.05 * abs(losses[1]):
        return {"outcome": "failed", "detail": "the loss is {:.4g}, the reference says {:.4g}".format(*losses)}
    for name, expected in gradients[1].items():
        got = gradients[0].get(name)
        if got is None:
            return {"outcome": "failed", "detail": f"{name} has no gradient"}
        off = float((got - expected).norm() / expected.norm())
        if not off < 0.1:
            return {"outcome": "failed", "detail": f"the gradient of {name} is off by {off:.1%}"}
    return {"outcome": "ok"}
