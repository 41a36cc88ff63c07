"""The examples under each command's `--help`: a line to copy, and what it is for."""

from __future__ import annotations

from qlora_doctor.i18n import said, tr

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "chat": (
        ("qlora-core chat Qwen/Qwen2.5-0.5B-Instruct --adapter run/adapter", "talk with what was trained"),
        ("qlora-core chat llava-hf/llava-1.5-7b-hf --image cat.jpg", "the first question is about a picture"),
    ),
    "convert": (
        (
            "qlora-core convert liuhaotian-llava-v1.5-7b llava-hf-layout",
            "the authors' layout into that of transformers",
        ),
    ),
    "data": (
        ("qlora-core data train.jsonl", "what is wrong with the rows"),
        ("qlora-core data train.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --rows 2", "the tokens too, two rows shown"),
    ),
    "demo": (("qlora-core demo", "three tiny models with the usual faults, on any machine"),),
    "diagnose": (("qlora-core diagnose run/adapter", "what a trained adapter's answers show"),),
    "generate": (
        ("qlora-core generate Qwen/Qwen2.5-0.5B-Instruct --adapter run/adapter --prompt 'Who are you?'", "one answer"),
        ("qlora-core generate Qwen/Qwen2.5-0.5B-Instruct --file prompts.txt --format json", "one for each line"),
    ),
    "merge": (
        ("qlora-core merge --adapter run/adapter --output merged", "one model in the place of base and adapter"),
    ),
    "train": (
        (
            "qlora-core train Qwen/Qwen2.5-0.5B-Instruct train.jsonl --output run --dry-run",
            "the plan; no model is loaded",
        ),
        ("qlora-core train Qwen/Qwen2.5-0.5B-Instruct train.jsonl --output run --preset 8gb", "for a card of 8 GB"),
        ("qlora-core train Qwen/Qwen2.5-0.5B-Instruct train.jsonl --output run --resume", "go on where it stopped"),
    ),
    "verify": (
        ("qlora-core verify Qwen/Qwen2.5-0.5B-Instruct", "load it, and see that it is really 4-bit"),
        ("qlora-core verify models/llava --adapter run/adapter --deep", "the gradients of an adapter too"),
    ),
}


def epilog(command: str) -> str:
    """The examples of a command as click's epilog."""
    lines = [f"  # {said(why)}\n  {line}" for line, why in EXAMPLES.get(command, ())]
    return "\b\n" + tr("Examples:") + "\n" + "\n".join(lines) if lines else ""
