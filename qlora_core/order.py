"""The order of the training data, the same for one seed whatever happens between; and which rows a batch is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ROWS = "qlora_rows"
# Rows are sorted by length within this many batches: padding is nearly gone, chance is not.
POOL = 50


@dataclass(frozen=True, slots=True)
class Numbered:
    """A dataset whose items know their place, so that a stop can name rows."""

    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.items[index]


@dataclass(frozen=True, slots=True)
class Collated:
    """A collator for `Numbered` items: the batch of the inner collator, with the places under `qlora_rows`."""

    inner: Callable[[list[Any]], Mapping[str, Any]]

    def __call__(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch = dict(self.inner([item for _, item in items]))
        batch[ROWS] = torch.tensor([index for index, _ in items])
        return batch


class LengthOrder(torch.utils.data.Sampler):  # type: ignore[misc]
    """Rows of like length, and of one modality, in one batch; drawn anew each epoch from the seed and the epoch alone.

    transformers draws it from the global random numbers, so that a resumed run would see another order.
    The first batch holds the longest row: what does not fit into memory shows at once.
    """

    def __init__(self, lengths: Sequence[int], batch: int, *, kinds: Sequence[Any] = (), seed: int = 0) -> None:
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, 0
        self.kinds = list(kinds) or [0] * len(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        shuffled = torch.randperm(len(self.lengths), generator=draw).tolist()
        whole: list[list[int]] = []
        rest: list[int] = []
        for kind in sorted(set(self.kinds)):
            mine = [i for i in shuffled if self.kinds[i] == kind]
            for start in range(0, len(mine), POOL * self.batch):
                pool = sorted(mine[start : start + POOL * self.batch], key=lambda i: -self.lengths[i])
                cut = [pool[at : at + self.batch] for at in range(0, len(pool), self.batch)]
                whole += [part for part in cut if len(part) == self.batch]
                rest += [i for part in cut if len(part) < self.batch for i in part]
        rest.sort(key=lambda i: -self.lengths[i])
        left = [rest[at : at + self.batch] for at in range(0, len(rest), self.batch)]
        whole += [part for part in left if len(part) == self.batch]
        order = torch.randperm(len(whole), generator=draw).tolist()
        mixed = [whole[i] for i in order]
        if mixed:
            longest = max(range(len(mixed)), key=lambda at: max(self.lengths[i] for i in mixed[at]))
            mixed[0], mixed[longest] = mixed[longest], mixed[0]
        mixed += [part for part in left if len(part) < self.batch]
        return (i for part in mixed for i in part)


def lengths_of(dataset: Any) -> tuple[list[int], list[Any]]:
    """For each row its tokens, and 1 where it has an image. A dataset's own `lengths` and `kinds` are taken if it has them."""
    own = getattr(dataset, "lengths", None)
    if own is not None:
        return list(own), list(getattr(dataset, "kinds", getattr(dataset, "modalities", ())))
    lengths, kinds = [], []
    for index in range(len(dataset)):
        row = dataset[index]
        if isinstance(row, Mapping):
            lengths.append(len(row["input_ids"]))
            kinds.append(int("pixel_values" in row))
        else:
            lengths.append(len(row.input_ids))
            kinds.append(int(bool(getattr(row, "images", 0))))
    return lengths, kinds
