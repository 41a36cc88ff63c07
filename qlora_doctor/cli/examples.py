"""The examples under each command's `--help`: a line to copy, and what it is for."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "check": (
        ("qlora-doctor check train.py", "a script and the environment it would run in"),
        (
            "qlora-doctor check --model llava-hf/llava-1.5-7b-hf --gpu 'RTX 4060'",
            "a model, for a card that is not here",
        ),
        ("qlora-doctor check run.yaml data.jsonl --python .venv/bin/python", "settings and data, another environment"),
        ("qlora-doctor check train.py --select QD1,QD5 --format json", "some checks, for a program to read"),
    ),
    "clean": (
        ("qlora-doctor clean", "what could go, the largest first"),
        ("qlora-doctor clean --delete NAME --dry-run", "what deleting it would free"),
    ),
    "compare": (
        ("qlora-doctor facts --save here.json", "on each machine"),
        ("qlora-doctor compare here.json there.json", "works here, fails there"),
    ),
    "completion": (
        ('eval "$(qlora-doctor completion bash)"', "in ~/.bashrc"),
        ('eval "$(qlora-doctor completion zsh)"', "in ~/.zshrc"),
        ("qlora-doctor completion fish > ~/.config/fish/completions/qlora-doctor.fish", "once"),
    ),
    "diagnose": (
        ("qlora-doctor diagnose train.log", "why a run failed"),
        ("python train.py 2>&1 | qlora-doctor diagnose", "the same, from a pipe"),
        ("qlora-doctor diagnose slurm-42.out --elsewhere --exit-code 137", "a log of another machine"),
    ),
    "download": (
        ("qlora-doctor download Qwen/Qwen2.5-0.5B-Instruct", "what a load reads, into the usual cache"),
        ("qlora-doctor download llava-hf/llava-1.5-7b-hf --to models/llava", "into a folder, to carry it elsewhere"),
    ),
    "explain": (
        ("qlora-doctor explain QD101", "the page of a check"),
        ('qlora-doctor explain "CUDA out of memory"', "what is known of a message"),
    ),
    "facts": (
        ("qlora-doctor facts", "all that is known of this environment, without secrets"),
        ("qlora-doctor facts --save here.json", "to judge it elsewhere: qlora-doctor check --facts here.json"),
    ),
    "fix": (
        ("qlora-doctor fix train.py", "what would be changed; nothing is"),
        ("qlora-doctor fix train.py --apply", "change it; qlora-doctor undo takes it back"),
        ("qlora-doctor fix --from-log train.log", "repair what a failed run says"),
    ),
    "list": (("qlora-doctor list", "every check"), ("qlora-doctor list --format json", "the same for a program")),
    "plan": (
        ("qlora-doctor plan --model Qwen/Qwen3-8B --gpu 'RTX 4060' --fit", "the best settings that fit"),
        ("qlora-doctor plan --model Qwen/Qwen3-8B --gpu all", "which cards can train it"),
        ("qlora-doctor plan --gpu 8gb", "which models a card can train"),
    ),
    "report": (("qlora-doctor report --log train.log --script train.py", "what a bug report needs, without secrets"),),
    "repro": (("qlora-doctor repro --script train.py", "the smallest script that asks for the same"),),
    "run": (
        ("qlora-doctor run -- python train.py", "as before, with an explanation where it fails"),
        ("qlora-doctor run --check -- accelerate launch train.py", "judged first"),
    ),
    "setup": (
        ("qlora-doctor setup my-env", "a new environment for this machine"),
        ("qlora-doctor setup my-env --gpu 'RTX 4060' --dry-run", "only show what would be installed"),
    ),
    "undo": (
        ("qlora-doctor undo --list", "what can be taken back"),
        ("qlora-doctor undo", "take the last change back"),
    ),
}


def epilog(command: str) -> str:
    """The examples of a command as click's epilog, "" where there are none; a form feed keeps the lines as they are."""
    rows = EXAMPLES.get(command, ())
    if not rows:
        return ""
    return "\b\nExamples:\n" + "\n".join(f"  # {why}\n  {line}" for line, why in rows)
