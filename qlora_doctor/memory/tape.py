"""A small autograd engine that counts bytes: which tensors are alive when, forward and backward, through one block.

A block (a transformer layer, the loss) is written down operation by operation as transformers and PEFT carry it out.
From that follow its peak without a graph (checkpointing, frozen towers), what it saves for the backward, and the peak of
its backward. So nothing here is fitted: a number changes only when the code that runs changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of one block, its input not counted.

    `forward`: the peak while nothing is saved. `training`: the peak of a forward that saves. `saved`: what stays until
    the backward; `keeps_input` says whether the input must stay too. `backward`: the peak of the backward, with what
    was saved, the gradient of the output, and the gradients of parameters so far, which are `grads` at its end. `out`:
    the block's output.
    """

    forward: int
    training: int
    saved: int
    backward: int
    grads: int
    out: int
    keeps_input: bool


@dataclass(frozen=True, slots=True)
class _Op:
    ins: tuple[int, ...]
    out: int
    saves: tuple[int, ...]
    forward: int
    backward: int
    grads: int
    passes: bool


class Tape:
    """Write operations with `op`, then ask for `cost`. Tensors are numbers; number 0 is the block's input."""

    def __init__(self, size: int, grad: bool = True) -> None:
        self.sizes = [size]
        self.needs = [grad]
        self.born = [-1]
        self.last = [-1]
        self.ops: list[_Op] = []

    def outside(self, size: int) -> int:
        """A tensor that the block makes itself and that takes no gradient (a mask, a cast weight)."""
        return self._tensor(size, False)

    def op(
        self,
        ins: Sequence[int],
        size: int,
        saves: Sequence[int] = (),
        *,
        forward: int = 0,
        backward: int = 0,
        grads: int = 0,
        passes: bool = False,
        itself: bool = False,
    ) -> int:
        """One operation, and the tensor that it makes.

        `saves` stay alive for its backward. `forward` and `backward` are bytes of workspace; `grads` those of gradients
        of parameters. `passes`: the gradient of its output serves as that of its inputs, without a copy (add, view).
        `itself`: its backward needs its own result.
        """
        needs = grads > 0 or any(self.needs[i] for i in ins)
        out = self._tensor(size, needs)
        index = len(self.ops)
        self.born[out] = self.last[out] = index
        for i in ins:
            self.last[i] = index
        kept = (*saves, out) if itself else tuple(saves)
        self.ops.append(_Op(tuple(ins), out, kept if needs else (), forward, backward, grads, passes))
        return out

    def hold(self, *tensors: int) -> None:
        """The tensors are still referred to here (a local variable), though no operation reads them."""
        for i in tensors:
            self.last[i] = max(self.last[i], len(self.ops) - 1)

    def cost(self) -> Cost:
        end = len(self.ops) - 1
        out = self.ops[-1].out
        self.last[out] = end
        saved_at: dict[int, int] = {}
        for index, op in enumerate(self.ops):
            for i in op.saves:
                saved_at.setdefault(i, index)
                if self.born[i] < 0 < i:
                    self.born[i] = self.last[i] = index
        comes = [0] * (end + 2)
        stays = [0] * (end + 2)
        for i in range(1, len(self.sizes)):
            if self.last[i] >= self.born[i] >= 0:
                comes[self.born[i]] += self.sizes[i]
                comes[self.last[i] + 1] -= self.sizes[i]
            if i in saved_at:
                stays[max(saved_at[i], self.last[i] + 1)] += self.sizes[i]
        plain = training = live = kept = 0
        for index, op in enumerate(self.ops):
            live += comes[index]
            kept += stays[index]
            plain = max(plain, live + op.forward)
            training = max(training, live + kept + op.forward)
        saved = sum(self.sizes[i] for i in saved_at if i)
        backward, grads = self._backward(out, saved)
        return Cost(plain, training, saved, backward, grads, self.sizes[out], 0 in saved_at)

    def _backward(self, out: int, saved: int) -> tuple[int, int]:
        uses: dict[int, int] = {}
        for op in self.ops:
            for i in op.saves:
                uses[i] = uses.get(i, 0) + 1
        # Tensor -> the buffer of its gradient; several tensors may share one.
        buffers: dict[int, int] = {out: 0}
        size, refs = [self.sizes[out]], [1]
        live, peak, grads = self.sizes[out], saved + self.sizes[out], 0
        for op in reversed(self.ops):
            if op.out not in buffers:
                continue
            mine = buffers.pop(op.out)
            wanted = [i for i in op.ins if self.needs[i]]
            made, moment = 0, op.backward
            for i in wanted:
                shared = op.passes and self.sizes[i] == size[mine]
                if shared and i not in buffers:
                    buffers[i] = mine
                    refs[mine] += 1
                    continue
                if not shared:
                    moment += self.sizes[i]
                if i in buffers:
                    old = buffers[i]
                    if refs[old] > 1 and op.passes:
                        refs[old] -= 1
                        made += self.sizes[i]
                        buffers[i] = len(size)
                        size.append(self.sizes[i])
                        refs.append(1)
                    continue
                made += self.sizes[i]
                buffers[i] = len(size)
                size.append(self.sizes[i])
                refs.append(1)
            peak = max(peak, saved + live + max(moment, made) + grads + op.grads)
            grads += op.grads
            live += made
            refs[mine] -= 1
            if refs[mine] == 0:
                live -= size[mine]
            for i in op.saves:
                uses[i] -= 1
                if uses[i] == 0 and i:
                    saved -= self.sizes[i]
        return peak, grads

    def _tensor(self, size: int, needs: bool) -> int:
        self.sizes.append(size)
        self.needs.append(needs)
        self.born.append(-1)
        self.last.append(-2)
        return len(self.sizes) - 1
