"""The memory estimate against real training steps on the CPU: every tensor's bytes, counted as they come and go.

    python benchmarks/memory.py [--runs 30] [--seed N] [--family NAME] [--json FILE]

Tiny models of every family are quantised, given LoRA and trained for two steps under a dispatch mode that adds up the live
storages. A fixed grid comes first; as many runs are then drawn at random. Needs the train extra. Real shapes, without
data: benchmarks/memory_fake.py.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import statistics
import sys
import tempfile
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

from qlora_doctor.memory.formula import estimate
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import shape_of

FAMILIES = ("llama", "qwen2", "qwen3", "llava", "qwen2_vl", "qwen2_5_vl", "instructblip", "instructblip_t5")
SIDE, PATCH, QUERIES = 56, 14, 8


@dataclass(frozen=True)
class Run:
    family: str
    settings: Settings
    hidden: int = 128
    layers: int = 4
    vocabulary: int = 2048

    @property
    def title(self) -> str:
        s = self.settings
        words = [
            f"b{s.batch} s{s.length} r{s.rank} h{self.hidden} L{self.layers} V{self.vocabulary}",
            s.optimizer,
            s.targets,
        ]
        words += [f"images {s.images}"] if s.images else []
        words += ["ckpt"] if s.checkpointing else []
        words += ["autocast"] if s.autocast else []
        words += ["prepared"] if s.prepared else []
        return " ".join(words)


def config(run: Run) -> dict[str, Any]:
    """The configuration of a tiny model; the estimate reads the same one."""
    h, v = run.hidden, run.vocabulary
    text: dict[str, Any] = {
        "model_type": "llama", "vocab_size": v, "hidden_size": h, "intermediate_size": 3 * h,
        "num_hidden_layers": run.layers, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if run.family == "llama":
        return text
    if run.family.startswith("qwen") and not run.family.endswith("vl"):
        return {
            **text,
            "model_type": run.family,
            "num_key_value_heads": 2,
            **({"head_dim": h // 4} if run.family == "qwen3" else {}),
        }
    if run.family == "llava":
        clip = {
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": 64,
        }
        return {"model_type": "llava", "text_config": text, "vision_config": clip, "image_token_index": 5}
    if run.family.endswith("vl"):
        rope = {"rope_type": "default", "mrope_section": [h // 32, 3 * h // 64, 3 * h // 64], "rope_theta": 10000.0}
        inner = {**text, "model_type": f"{run.family}_text", "num_key_value_heads": 2, "rope_parameters": rope}
        inner.pop("tie_word_embeddings")
        vision: dict[str, Any] = {
            "depth": 2,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "hidden_size": h,
        }
        vision |= (
            {"embed_dim": 64, "mlp_ratio": 2}
            if run.family == "qwen2_vl"
            else {
                "hidden_size": 64,
                "out_hidden_size": h,
                "intermediate_size": 128,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            }
        )
        return {
            "model_type": run.family,
            "text_config": inner,
            "vision_config": vision,
            "tie_word_embeddings": False,
            "image_token_id": 5,
            "video_token_id": 6,
            "vision_start_token_id": 7,
            "vision_end_token_id": 8,
        }
    vision = {
        "model_type": "instructblip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.02,
    }
    query = {
        "model_type": "instructblip_qformer",
        "vocab_size": 500,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 64,
    }
    if run.family.endswith("t5"):
        # transformers 5 ties T5's head whatever the configuration says, unless the checkpoint holds another one.
        text = {
            "model_type": "t5",
            "vocab_size": v,
            "d_model": h,
            "d_kv": h // 4,
            "d_ff": 3 * h,
            "num_layers": run.layers,
            "num_decoder_layers": run.layers,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }
    return {
        "model_type": "instructblip",
        "text_config": text,
        "vision_config": vision,
        "qformer_config": query,
        "num_query_tokens": QUERIES,
        "image_token_index": 5,
    }


def load(run: Run, folder: str) -> Any:
    """A random model of the configuration, quantised as `load_quantized` does it, with LoRA."""
    import torch
    import transformers as t

    from qlora_core.adapters import attach, prepare, spare_cpu
    from qlora_doctor.families import BY_TYPE

    given = config(run)
    kind = given["model_type"]
    made = t.CONFIG_MAPPING[kind](**{k: v for k, v in given.items() if k != "model_type"})
    made.save_pretrained(folder)
    family = BY_TYPE[kind]
    cls = getattr(t, family.classes[0])
    torch.manual_seed(0)
    cls(made).to(torch.bfloat16).save_pretrained(folder)
    quantisation = t.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(family.kept()),
    )  # fmt: skip
    model = cls.from_pretrained(folder, quantization_config=quantisation, dtype=torch.bfloat16, device_map={"": "cpu"})
    spare_cpu(model)
    s = run.settings
    if s.prepared:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, s.checkpointing, {"use_reentrant": False})
        model.train()
    else:
        prepare(model, checkpointing=s.checkpointing)
    targets = {
        "Q-Former": r".*qformer\..*\.(query|key|value)",
        "q,v": r".*(language_model|model)\..*\.(q_proj|v_proj|q|v)",
    }
    return attach(model, r=s.rank, targets=targets.get(s.targets))


def batch(run: Run, model: Any) -> dict[str, Any]:
    """One batch of random tokens and pixels."""
    import torch

    s = run.settings
    ids = torch.randint(9, 400, (s.batch, s.length))
    made: dict[str, Any] = {}
    count = s.images or 0
    if run.family == "llava":
        per = (SIDE // PATCH) ** 2
        ids = torch.cat([torch.full((s.batch, per * count), 5), ids], 1)
        if count:
            made["pixel_values"] = torch.randn(s.batch * count, 3, SIDE, SIDE, dtype=torch.bfloat16)
    elif run.family.endswith("vl"):
        grid = 8
        # A token of text between two images, as every template has it.
        image = torch.cat([torch.full((s.batch, grid * grid // 4), 5), torch.full((s.batch, 1), 7)], 1)
        ids = torch.cat([*[image] * count, ids], 1)
        if count:
            made["pixel_values"] = torch.randn(s.batch * count * grid * grid, 3 * 2 * PATCH * PATCH)
            made["image_grid_thw"] = torch.tensor([[1, grid, grid]] * (s.batch * count))
            made["mm_token_type_ids"] = (ids == 5).int()
    elif run.family.startswith("instructblip"):
        made["qformer_input_ids"] = torch.randint(9, 400, (s.batch, min(s.length, 128)))
        made["qformer_attention_mask"] = torch.ones_like(made["qformer_input_ids"])
        ids = torch.cat([torch.full((s.batch, QUERIES), 5), ids], 1)
        made["pixel_values"] = torch.randn(s.batch, 3, SIDE, SIDE, dtype=torch.bfloat16)
    made |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made["labels"] = torch.randint(9, 400, (s.batch, s.answer)) if run.family.endswith("t5") else ids.clone()
    return made


def counter() -> Any:
    """A dispatch mode that keeps the sum of the live storages in `live` and its maximum in `peak`."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[int, int] = {}
            self.live = self.peak = 0
            self.where = ""
            self.log: list[tuple[str, int, int]] | None = None

        def add(self, tensor: Any) -> None:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.seen:
                return
            size = storage.nbytes()
            self.seen[key] = size
            self.live += size
            weakref.finalize(storage, self.drop, key)

        def drop(self, key: int) -> None:
            self.live -= self.seen.pop(key, 0)

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            before = self.live
            for leaf in tree_leaves(out):
                if type(leaf).__name__ in ("Tensor", "Parameter", "Params4bit", "FakeTensor"):
                    self.add(leaf)
            if self.log is not None:
                self.log.append((str(function), self.live - before, self.live))
            if self.live > self.peak:
                self.peak, self.where = self.live, str(function)
            return out

    return Counter()


def held(model: Any) -> list[Any]:
    """A model's parameters, buffers and the tensors of its quantisation states."""
    found = list(itertools.chain(model.parameters(), model.buffers()))
    for tensor in tuple(found):
        state = getattr(tensor, "quant_state", None)
        for inner in (state, getattr(state, "state2", None)):
            found += [v for v in (vars(inner).values() if inner is not None else ()) if hasattr(v, "untyped_storage")]
    return found


def measure(run: Run, log: bool = False) -> tuple[int, Any]:
    """The real peak of the second training step in bytes."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model = load(run, folder)
    s = run.settings
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=1e-4) if s.optimizer == "sgd" else torch.optim.AdamW(learnt, lr=1e-4)
    inputs = batch(run, model)
    gc.collect()
    mode = counter()
    with mode:
        # Views of a weight must not count as new memory, so what is there already is told to the counter first.
        for value in (*held(model), *inputs.values()):
            mode.add(value)
        for step in range(2):
            mode.peak = mode.live
            if step == 1 and log:
                mode.log = []
            with torch.autocast("cpu", torch.bfloat16, enabled=s.autocast):
                loss = model(**inputs).loss
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
    return mode.peak, mode


def settings_of(**more: Any) -> Settings:
    return Settings(device="cpu", adapter_bytes=4, width=8 * PATCH, height=8 * PATCH, max_pixels=10**6, **more)


def grid() -> list[Run]:
    """The fixed half."""
    runs = []
    for family in FAMILIES:
        images = None if family in ("llama", "qwen2", "qwen3") else 1
        for checkpointing, autocast in ((True, True), (False, True), (True, False), (False, False)):
            s = settings_of(
                batch=2,
                length=128,
                rank=8,
                images=images or 0,
                checkpointing=checkpointing,
                autocast=autocast,
                answer=32,
            )
            runs.append(Run(family, s))
    return runs


def drawn(seed: int, count: int) -> list[Run]:
    """The random half."""
    r = random.Random(seed)
    runs = []
    for _ in range(count):
        family = r.choice(FAMILIES)
        text = family in ("llama", "qwen2", "qwen3")
        images = 0 if text else 1 if family.startswith("instruct") else r.choice((0, 1, 2))
        targets = r.choice(
            ("language model", "q,v", "Q-Former") if family.startswith("instruct") else ("language model", "q,v")
        )
        s = settings_of(
            batch=r.choice((1, 2, 3, 4)), length=r.choice((32, 64, 100, 200, 384, 512)), rank=r.choice((4, 8, 16, 32, 64)),
            images=images, checkpointing=r.random() < 0.5, autocast=r.random() < 0.6, optimizer=r.choice(("adamw", "sgd")),
            targets=targets, prepared=r.random() < 0.15, answer=r.choice((16, 64)),
        )  # fmt: skip
        runs.append(Run(family, s, r.choice((64, 128, 192)), r.choice((2, 4, 6)), r.choice((512, 2048, 8000))))
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=32, help="how many random runs follow the grid")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--family", default="")
    parser.add_argument("--only", choices=["grid", "random"], default=None)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.WARNING)
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"seed {options.seed}", flush=True)
    halves = [("grid", grid()), ("random", drawn(options.seed, options.runs))]
    rows = []
    for half, runs in halves:
        for run in runs:
            if (options.family and run.family != options.family) or options.only not in (None, half):
                continue
            real, _ = measure(run)
            guess = estimate(shape_of(config(run)), run.settings)
            error = guess.allocated / real - 1
            rows.append(
                {
                    "half": half,
                    "family": run.family,
                    "run": run.title,
                    "measured": real,
                    "expected": guess.allocated,
                    "error": error,
                }
            )
            print(
                f"{half:6} {run.family:16} {run.title:66} {real / 2**20:8.2f} {guess.allocated / 2**20:8.2f} MiB {error:+7.1%} {guess.phase}",
                flush=True,
            )
    for half in ("grid", "random", ""):
        errors = sorted(abs(row["error"]) for row in rows if half in ("", row["half"]))
        if errors:
            print(
                f"{half or 'all'}: {len(errors)} runs, median {statistics.median(errors):.1%}, worst {errors[-1]:.1%}"
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"seed": options.seed, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
