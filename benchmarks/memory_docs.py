"""Writes docs/memory.md: the error tables of the memory estimate, and the guides' figures replayed.

python benchmarks/memory_docs.py [--measured FILE.json]    FILE is what benchmarks/memory.py --json wrote
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_doctor.gather.cards import find_card
from qlora_doctor.memory.fit import fit
from qlora_doctor.memory.formula import GIB, estimate
from qlora_doctor.memory.known import shipped_shape
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape, shape_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "memory.md"
MEASURED = HERE / "memory_measured.json"
FAKE = HERE / "memory_fake.json"


@dataclass(frozen=True)
class Row:
    name: str
    figure: float
    unit: str
    measured: str
    expected: float
    error: float
    inside: bool
    source: str


def published() -> list[Row]:
    """The rows of published.toml beside the estimate."""
    data = tomllib.loads((HERE / "published.toml").read_text(encoding="utf-8"))
    rows = []
    for row in data["row"]:
        shape = shape_of(data["model"][row["model"]]) if row["model"] in data["model"] else shipped_shape(row["model"])
        assert shape is not None, row["model"]
        b = estimate(shape, Settings(**row["settings"]))
        unit = 1e9 if row["unit"] == "GB" else GIB
        expected = b.measured(row["measured"]) / unit
        inside = b.low <= row["figure"] * unit <= b.high
        error = expected / row["figure"] - 1
        rows.append(
            Row(row["name"], row["figure"], row["unit"], row["measured"], expected, error, inside, row["source"])
        )
    return rows


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]


def known(name: str) -> Shape:
    shape = shipped_shape(name)
    assert shape is not None
    return shape


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def summary(errors: list[float]) -> str:
    low = sorted(abs(e) for e in errors)
    return (
        f"{len(low)} rows: median {statistics.median(low):.1%}, worst {low[-1]:.1%}, "
        f"within 15 %: {sum(e <= 0.15 for e in low)} of {len(low)}"
    )


def guides() -> list[str]:
    """The guides' figures, replayed."""
    llava, vl = known("llava-hf/llava-1.5-7b-hf"), known("Qwen/Qwen2-VL-7B-Instruct")
    blip = known("Salesforce/instructblip-vicuna-7b")
    s16 = Settings(rank=16, kept=(), prepared=False)
    b = estimate(llava, s16)
    weights = sum(i.bytes for i in b.items if i.name.startswith(("quantised", "16-bit")))
    r8 = Settings(rank=8, kept=(), optimizer="paged-adamw-8bit")
    b8 = estimate(llava, r8)
    text = estimate(llava, Settings(length=64, images=0, kept=()))
    full, lora = estimate(llava, Settings(method="full", bits=16)), estimate(llava, Settings(method="lora", bits=16))

    def batches(targets: str, room: int) -> int:
        best = 0
        for batch in range(1, 65):
            s = Settings(batch=batch, length=128, targets=targets, bits=16, method="lora", checkpointing=False, kept=())
            if estimate(blip, s).expected > room:
                break
            best = batch
        return best

    room = 24 * GIB
    rows = [
        [
            "first: model in 4 bit",
            "3.38 GB",
            f"{weights / 1e9:.2f} GB ({gib(weights)} GiB)",
            "too low: it is the 4-bit part's half bytes alone; scales, embeddings and head come on top",
        ],
        [
            "first: LoRA adapters",
            "0.20 GB",
            f"{b.part('adapters') / 1e9:.2f} GB",
            "right for float32 adapters on all linears at rank 16 to 20",
        ],
        [
            "first: optimizer",
            "0.40 GB",
            f"{b.part('optimizer') / 1e9:.2f} GB",
            "right: two float32 moments, twice the adapters",
        ],
        [
            "fourth: optimizer",
            "0.04 GB",
            f"{b8.part('optimizer') / 1e9:.2f} GB",
            "right for an 8-bit optimizer at rank 8; the two guides disagree by the optimizer (8 against 2 bytes) and the rank",
        ],
        [
            "first: activations",
            "0.50 GB",
            f"{(b.allocated - weights - b.part('adapters') - b.part('optimizer')) / 1e9:.2f} GB",
            "the right size for one row of 512 tokens and an image",
        ],
        [
            "first: total",
            "4.68 GB",
            f"{b.allocated / 1e9:.2f} GB allocated, {b.expected / 1e9:.2f} GB on the card",
            "a sum of the above without the CUDA context",
        ],
        [
            "first: measured in training",
            "4.32 GB",
            f"{text.allocated / 1e9:.2f} GB allocated (64 tokens of text, no image)",
            "believable for a test of five short steps, as max_memory_allocated",
        ],
        [
            "first: reserved",
            "5.06 GB",
            f"{text.measured('reserved') / 1e9:.2f} GB",
            "reserved is what the allocator holds; 4.32 and 5.06 are two readings of one run, not a contradiction",
        ],
        [
            "fourth: total",
            "4.2 GB",
            f"{b8.allocated / 1e9:.2f} GB allocated",
            "leaves out the scales, the 16-bit head and embeddings, and the context",
        ],
        [
            "fourth: full fine-tuning",
            "~50 GB",
            f"{full.expected / 1e9:.1f} GB",
            "right for weights, gradients and moments in 16 bit (8 bytes a parameter); float32 masters double it",
        ],
        [
            "fourth: LoRA",
            "~35 GB",
            f"{lora.expected / 1e9:.1f} GB",
            "more than twice too high: frozen weights have neither gradients nor moments",
        ],
        ["fourth: QLoRA", "~7 GB", f"{b.expected / 1e9:.1f} GB", "a fair bound; LLaVA at rank 16"],
    ]
    for what, said, shape, s in (
        ["fourth: Qwen-VL, rank 8, RTX 3060", 5.2, vl, r8],
        ["fourth: Qwen-VL, rank 8, RTX 4060", 5.8, vl, r8],
        ["fourth: LLaVA-7B, rank 16, RTX 3060", 7.5, llava, s16],
        ["fourth: LLaVA-7B, rank 8, RTX 4060", 6.9, llava, r8],
    ):
        assert isinstance(shape, Shape) and isinstance(s, Settings)
        x = estimate(shape, s)
        inside = x.low <= float(str(said)) * GIB <= x.high
        note = "inside the range" if inside else "outside: the guide does not say length, image size or optimizer"
        if "Qwen" in str(what):
            note += "; Qwen-VL itself (9.6e9 parameters, remote code) has no shape here, Qwen2-VL-7B stands in"
        rows.append([str(what), f"{said} GB", f"{gib(x.expected)} GiB ({gib(x.low)} to {gib(x.high)})", note])
    only, every = batches("Q-Former", room), batches("language model", room)
    rows.append(
        [
            "fifth: batch with LoRA on the Q-Former and the language model",
            "10",
            f"{every} on 24 GB, 16 bit, no checkpointing, 128 tokens",
            "the guide names no card",
        ]
    )
    rows.append(
        [
            "fifth: batch with LoRA on the Q-Former alone",
            "16-20",
            str(only),
            "memory does not halve: the gradient still goes back through every layer of the language model",
        ]
    )
    return table(["figure", "guide", "estimate", "what is true of it"], rows)


def proposals() -> list[str]:
    """What the search finds for the usual sizes."""
    rows = []
    for name in (
        "llava-hf/llava-1.5-7b-hf",
        "Qwen/Qwen3-8B",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Salesforce/instructblip-vicuna-7b",
    ):
        for size in (8, 12, 16, 24):
            found = fit(known(name), Settings(batch=8, length=2048), find_card(f"{size}gb").room)
            if found is None:
                rows.append([name, f"{size} GB", "nothing fits", "", ""])
                continue
            s, b = found.settings, found.breakdown
            words = f"batch {s.batch} x {found.accumulation}, length {s.length}, rank {s.rank}, {s.optimizer}, loss {s.loss}"
            words += ", vision tower in 4 bit" if s.kept is not None and "vision tower" not in s.kept else ""
            words += f", max_pixels {s.max_pixels}" if s.max_pixels else ""
            rows.append([name, f"{size} GB", words, gib(b.expected), gib(b.high)])
    return table(
        ["model", "card", "settings (asked for: batch 8, length 2048, rank 16)", "expected GiB", "high GiB"], rows
    )


def again() -> list[str]:
    """A further draw, where one was made after the rows of the table."""
    path = HERE / "memory_again.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    errors = [row["error"] for row in data["rows"]]
    return [f"A later draw (seed {data['seed']}), after which nothing was changed: {summary(errors)}.", ""]


def fake() -> list[dict[str, Any]]:
    """The rows of benchmarks/memory_fake.py."""
    rows: list[dict[str, Any]] = json.loads(FAKE.read_text(encoding="utf-8"))
    return rows


def page(measured: dict[str, Any]) -> str:
    """The whole document."""
    rows = published()
    real = measured["rows"]
    families = Counter(r["family"] for r in real)
    by_family = [
        [
            f,
            str(n),
            f"{statistics.median(abs(r['error']) for r in real if r['family'] == f):.1%}",
            f"{max(abs(r['error']) for r in real if r['family'] == f):.1%}",
        ]
        for f, n in sorted(families.items())
    ]
    halves = {half: [r["error"] for r in real if r["half"] == half] for half in ("grid", "random")}
    lines = [
        "<!-- Written by benchmarks/memory_docs.py; do not edit. -->",
        "# The memory estimate, and how far it is off",
        "",
        (
            "`qlora-doctor plan` tells what a run takes from config.json and the settings alone. Weights, scales and adapters are exact. "
            "What a step adds follows from the operations that transformers, PEFT and bitsandbytes run, counted tensor by tensor "
            "(`qlora_doctor/memory/blocks.py`). Three constants are not derived: the CUDA context (0.45 GiB, 0.3 to 0.7), the "
            "workspace of the matrix library (16 MiB) and the allocator's slack (5 % of what comes and goes, 0 to 15 %). They are the "
            "same for every model and were not fitted to any row below."
        ),
        "",
        "## Exact: weights and adapters",
        "",
        (
            "The bytes of packed weights, scales, code tables and all that stays in 16 bit, and the number of trainable parameters, equal "
            "those of loaded tiny models of 12 kinds (LLaVA 1.5 and 1.6, Llama, Qwen2, Qwen3, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InstructBLIP with "
            "Vicuna and T5, BLIP-2 with OPT and T5), to the byte: error 0 in all 57 comparisons (`tests/memory/test_exact.py`)."
        ),
        "",
        "## Measured: real training steps on the CPU",
        "",
        (
            f"`benchmarks/memory.py`: tiny models of every family, two real steps, every live tensor's bytes. {len(halves['grid'])} runs on a grid, "
            f"{len(halves['random'])} drawn at random afterwards (seed {measured['seed']})."
        ),
        "",
        f"- grid: {summary(halves['grid'])}",
        f"- random: {summary(halves['random'])}",
        "",
        *table(["family", "runs", "median error", "worst error"], by_family),
        "",
        (
            "Two earlier draws missed the goal of 12 % at worst. The first (seed 365921, 40 runs) had a median of 2.9 % and a worst error of "
            "39.1 %, on InstructBLIP with T5: T5 computes its loss in the logits' own dtype, and ties its head. The second had a worst error of "
            "12.7 %. What they showed was read off transformers' code and written into the blocks; the rows above are a new draw, made after that."
        ),
        "",
        *again(),
        "No GPU was at hand: allocator slack, the CUDA context and kernel workspaces are not measured here.",
        "",
        "## Real shapes, without data",
        "",
        (
            "`benchmarks/memory_fake.py`: transformers' and PEFT's own code at the real widths, on tensors without data (FakeTensorMode), counted like "
            "the runs above at 1 and 3 layers and carried on to the full depth. bitsandbytes' Linear4bit cannot be made of such tensors; a matrix of "
            "the same bytes stands in for it. LLaVA's image is as many text tokens, after its vision tower was run."
        ),
        "",
        *table(
            ["run", "layers", "counted GiB", "estimate GiB", "error"],
            [
                [r["run"], str(r["layers"]), gib(r["measured"]), gib(r["expected"]), f"{r['error']:+.1%}"]
                for r in fake()
            ],
        ),
        "",
        "## Published: other people's peaks on GPUs",
        "",
        summary([r.error for r in rows])
        + f"; inside the range from low to high: {sum(r.inside for r in rows)}; with its sign the median is "
        + f"{statistics.median(r.error for r in rows):+.1%}. The aim was 15 % on 90 % and a median of 6 %: **it is not met**.",
        "",
        (
            "This table once said 10.2 % and 32 of 37, with recipes that were wrong in three places. The sources say: (1) Qwen's script trains under "
            "DeepSpeed ZeRO-2 with fp16, whose engine halves again what the preparation made float32, keeps float32 masters and a copy of the "
            "accumulated gradients, and holds two gradient buckets of 0.4 GB; and its GPTQ matrices are unpacked by torch operations, so that autograd keeps the 16-bit matrices of a layer. A float32 "
            "head that was not there had stood for matrices that were. (2) litgpt runs its head in chunks, but keeps the logits of all. "
            "(3) `StableLM 3B` is stablelm-base-alpha-3b, a GPT-NeoX of 16 layers of 4096. All three are in `benchmarks/published.toml` now."
        ),
        "",
        (
            "What is left has one sign: nearly every row is published higher than it is estimated. Of litgpt's rows, its own attention keeps more than "
            "transformers' (the fused query-key-value stays for its last third, and index_copy keeps its source: 1.6 hidden widths a layer and token, "
            "counted on its code), which is a third of their gap; the rest is not explained. In the Qwen rows 1 to 2 GB are missing, of 1.8B as of 72B, "
            "which nvidia-smi counts and no code read here allocates (context, NCCL, what the allocator does not give back). A larger slack would "
            "bring all rows near and meet both aims; that would be fitting the constants to the rows, and is not done. None of these rows is of "
            "transformers and bitsandbytes as they are now, which the two tables above measure."
        ),
        "",
        *table(
            ["row", "published", "as", "estimate", "error", "in range"],
            [
                [
                    r.name,
                    f"{r.figure} {r.unit}",
                    r.measured,
                    f"{r.expected:.2f}",
                    f"{r.error:+.1%}",
                    "yes" if r.inside else "no",
                ]
                for r in rows
            ],
        ),
        "",
        "## The guides' figures, replayed",
        "",
        "LLaVA-1.5-7B, one image, 512 tokens, rank 16, everything but the head in 4 bit (what a plain load does), where nothing else is said.",
        "",
        *guides(),
        "",
        "## What fits on the usual cards",
        "",
        "Found by `--fit`: the high figure fits. Nothing here is typed in.",
        "",
        *proposals(),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measured", default="", help="take these measured rows from now on")
    options = parser.parse_args()
    if options.measured:
        data = json.loads(Path(options.measured).read_text(encoding="utf-8"))
        MEASURED.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    DOCS.write_text(page(json.loads(MEASURED.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{DOCS} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
