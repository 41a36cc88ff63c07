"""The loader and trainer of QLoRA Doctor. Importing it does not import torch.

from qlora_core import load_quantized
model, processor = load_quantized("Qwen/Qwen3-0.6B")
"""

from __future__ import annotations

from qlora_core.adapters import attach, prepare
from qlora_core.errors import LoadBlocked, ModelProblem, NotVerified, TrainingStopped
from qlora_core.guard import NanGuard
from qlora_core.load import Loaded, load_quantized
from qlora_core.report import Change, LoadReport
from qlora_core.settings import Settings
from qlora_core.train import TrainResult, train
from qlora_core.verify import Verification, verify

__all__ = [
    "Change",
    "LoadBlocked",
    "LoadReport",
    "Loaded",
    "ModelProblem",
    "NanGuard",
    "NotVerified",
    "Settings",
    "TrainResult",
    "TrainingStopped",
    "Verification",
    "attach",
    "load_quantized",
    "prepare",
    "train",
    "verify",
]
