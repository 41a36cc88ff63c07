"""`train` as each process of a launcher runs it: run_distributed.py SPEC.json, under torchrun or alone.

SPEC: model, data, out, settings, and `fsdp` for a run that is really sharded. Rank 0 writes RESULT beside OUT:
the losses, and what kind of run it was.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    from qlora_core import trainer as trainers
    from qlora_core.train import train

    seen: dict[str, Any] = {}
    if spec.get("fsdp"):
        really_sharded()
    plain = trainers.Trainer.training_step

    def look(self: Any, model: Any, *given: Any, **more: Any) -> Any:
        weights = [type(p).__name__ for p in model.parameters()]
        seen["fsdp2"] = bool(getattr(self.accelerator, "is_fsdp2", False))
        seen["wrapper"] = type(model).__name__
        seen["dtensors"], seen["weights"] = weights.count("DTensor"), len(weights)
        return plain(self, model, *given, **more)

    trainers.Trainer.training_step = look  # type: ignore[method-assign]
    done = train(spec["model"], spec["data"], spec["out"], resume=spec.get("resume", False), **spec["settings"])
    if os.environ.get("RANK", "0") == "0":
        seen["losses"], seen["adapter"] = [loss for _, loss in done.losses], str(done.adapter)
        Path(spec["result"]).write_text(json.dumps(seen))


def really_sharded() -> None:
    """accelerate turns FSDP without a GPU into DDP, without a word: the losses are right and nothing is sharded."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from qlora_core import trainer as trainers

    first = trainers.Trainer.__init__

    def init(self: Any, *given: Any, **more: Any) -> None:
        # The device is asked for first: that makes the state, which is then taken for that of GPUs.
        assert more["args"].device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        first(self, *given, **more)

    trainers.Trainer.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
