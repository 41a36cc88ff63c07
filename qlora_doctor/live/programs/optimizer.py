"""A step of a bitsandbytes optimizer: the weights move against the gradient and stay finite."""

from __future__ import annotations


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the class in `bitsandbytes.optim`, the device."""
    import bitsandbytes
    import torch

    optimizer = getattr(bitsandbytes.optim, arguments[0], None)
    if optimizer is None:
        return {"outcome": "absent", "detail": f"this bitsandbytes has no {arguments[0]}"}
    torch.manual_seed(0)
    # Below 4096 elements the 8-bit optimizers keep 32-bit states.
    weight = torch.nn.Parameter(torch.randn(128, 128, device=arguments[1]))
    before = float(weight.detach().pow(2).mean())
    stepper = optimizer([weight], lr=0.05)
    for _ in range(3):
        weight.grad = None
        weight.pow(2).mean().backward()
        stepper.step()
    after = float(weight.detach().pow(2).mean())
    if not after < before:
        return {"outcome": "failed", "detail": f"the loss went from {before:.4g} to {after:.4g}"}
    return {"outcome": "ok"}
