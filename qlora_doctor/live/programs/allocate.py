"""Allocates on one GPU, computes there, and compares the result with the CPU's."""

from __future__ import annotations


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the device (`cuda:0`, `xpu:0`, `mps`)."""
    import torch

    device = arguments[0]
    torch.manual_seed(0)
    left = torch.randn(256, 256)
    right = torch.randn(256, 256)
    block = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    result = (left.to(device) @ right.to(device)).cpu()
    error = float((result - left @ right).abs().max())
    del block
    if not error < 0.5:
        return {"outcome": "failed", "detail": f"a matrix product is off by {error:.3g}"}
    kind = getattr(torch, device.partition(":")[0])
    return {"outcome": "ok", "detail": kind.get_device_name(device) if hasattr(kind, "get_device_name") else ""}
