"""Judging: checks x facts x requests -> outcomes and findings. Reads nothing of the world."""

from qlora_doctor.judge.runner import Case, Verdict, judge

__all__ = ["Case", "Verdict", "judge"]
