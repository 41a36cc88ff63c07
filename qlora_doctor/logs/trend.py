"""What the losses of a training log do: pseudo-lines that signatures match like any other (`@loss zero spike`)."""

from __future__ import annotations

import math
import re

_LOSS = re.compile(rb"loss['\"]?\s?[:=]\s?['\"]?(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|nan|NaN|inf|None)")
MOST = 200_000


class LossTrend:
    """Collects the training losses in the order in which they were printed (evaluation's are left out)."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.none = False

    def add(self, block: bytes) -> None:
        """Takes a piece of a log."""
        if len(self.values) > MOST:
            del self.values[MOST // 2 : -1000]
        for match in _LOSS.finditer(block):
            if block[max(0, match.start() - 6) : match.start()].endswith((b"eval_", b"train_", b"val_", b"stop_")):
                continue
            if match[1] == b"None":
                self.none = True
            else:
                self.values.append(float(match[1]))

    def words(self) -> tuple[str, ...]:
        """The pseudo-lines."""
        values = self.values
        found = ["@loss none"] if self.none else []
        if not values:
            return tuple(found)
        bad = next((i for i, v in enumerate(values) if not math.isfinite(v)), None)
        if bad is not None:
            # The first printed step may still be finite: AdamW spoils the weights when it first steps.
            found.append("@loss nan first" if len(values) > 1 and bad <= 1 else "@loss nan later")
            return tuple(found)
        zero = next((i for i, v in enumerate(values) if v == 0.0), None)
        if zero is not None and all(v == 0.0 for v in values[zero:]):
            # Before it is all zero, a loss that breaks down jumps up once.
            spike = zero > 0 and (values[zero - 1] > 8 or values[zero - 1] > 2 * min(values[:zero]))
            found.append("@loss zero spike" if spike else "@loss zero")
            return tuple(found)
        lowest = min(range(len(values)), key=values.__getitem__)
        after = values[lowest:]
        if len(values) >= 6 and min(after[-3:]) > max(3 * values[lowest], values[lowest] + 1.5):
            found.append("@loss rises")
        elif values[-1] > 5 and values[-1] >= values[0] and len(values) < 6:
            found.append("@loss high")
        return tuple(found)
