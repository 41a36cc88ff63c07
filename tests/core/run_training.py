"""One training run in a process of its own, for tests that kill it: run_training.py MODEL OUT STEPS [--resume].

Prints "step N" after each step, and on a stop its kind and exit code as the command line would.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path


def main() -> int:
    model, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    import torch
    import transformers

    sys.path.insert(0, str(Path(__file__).parent))
    from training import arguments, collate, make_rows, tiny_lora

    from qlora_core import checkpoints
    from qlora_core.errors import TrainingStopped
    from qlora_core.trainer import Trainer

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    class Say(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            print("step", state.global_step, flush=True)

    args = arguments(out, max_steps=steps, save_strategy="steps", save_steps=2, save_total_limit=2, learning_rate=2e-3)
    trainer = Trainer(
        model=tiny_lora(model, dropout=0.1),
        args=args,
        train_dataset=make_rows(),
        data_collator=collate,
        callbacks=[Say()],
    )
    try:
        trainer.train("--resume" in sys.argv and checkpoints.latest(out) is not None)
    except TrainingStopped as stop:
        print("stopped", stop.kind, stop.adapter, flush=True)
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
