"""Rows to a batch: padded on the right, pads neither read nor learned, images one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_core.data.labels import SKIP
from qlora_core.data.rows import Encoded

# One value a token, padded with 0; everything else of a row is stacked image after image.
BY_TOKEN = ("mm_token_type_ids", "qformer_input_ids", "qformer_attention_mask")
Batch = dict[str, Any]


def make_collator(processor: Any, config: Any) -> Callable[[Sequence[Encoded]], Batch]:
    """The collator of a model: `Encoded` rows to the tensors of its forward.

    Keys: input_ids, attention_mask and labels (batch, longest row); with images what their processor gives, for
    Qwen-VL mm_token_type_ids, for InstructBLIP the Q-Former's ids. An encoder-decoder's labels are padded by themselves.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    qformer = getattr(processor, "qformer_tokenizer", None)
    pads = {"qformer_input_ids": getattr(qformer, "pad_token_id", None) or 0}

    def collator(rows: Sequence[Encoded]) -> Batch:
        return collate(rows, pad=int(pad), pads=pads)

    return collator


def collate(rows: Sequence[Encoded], *, pad: int, pads: Mapping[str, int] | None = None) -> Batch:
    """A batch of rows; `pads` are the paddings of keys that are not padded with 0."""
    import torch

    ids = [_tensor(row.input_ids) for row in rows]
    batch: Batch = {
        "input_ids": _padded(ids, pad),
        "attention_mask": _padded([torch.ones_like(one) for one in ids], 0),
        "labels": _padded([_tensor(row.labels) for row in rows], SKIP),
    }
    for name in dict.fromkeys(name for row in rows for name in row.extras):
        values = [row.extras.get(name) for row in rows]
        if name in BY_TOKEN:
            filled = [torch.zeros_like(one) if v is None else _tensor(v) for one, v in zip(ids, values, strict=True)]
            batch[name] = _padded(filled, (pads or {}).get(name, 0))
        else:
            batch[name] = _stacked([value for value in values if value is not None])
    return batch


def _tensor(values: Any) -> Any:
    import torch

    return values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=torch.long)


def _padded(rows: Sequence[Any], value: int) -> Any:
    import torch

    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _stacked(values: Sequence[Any]) -> Any:
    """Images of several rows along the first axis; LLaVA 1.6 makes more or fewer tiles of each, so those are filled up."""
    import torch

    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) == 1:
        return torch.cat(list(values))
    tiles = max(value.shape[1] for value in values)
    return torch.cat([_with_tiles(value, tiles) for value in values])


def _with_tiles(value: Any, tiles: int) -> Any:
    import torch

    missing = value.new_zeros((value.shape[0], tiles - value.shape[1], *value.shape[2:]))
    return torch.cat([value, missing], dim=1)
