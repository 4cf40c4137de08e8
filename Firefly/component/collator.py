"""Put records of different length into one batch: laid flat end to end, or padded where the model needs a rectangle."""

from typing import Any

import numpy as np
import torch

from .prompt import IGNORE_INDEX

Row = dict[str, np.ndarray]


def flatten_batch(items: list[Row | list[Row]]) -> dict[str, Any]:
    """Lay records end to end in one row, with what keeps them apart.

    Args:
        items: records with "input_ids" and "labels", (seq_len,) int arrays each; or lists of them (packed rows).

    Returns:
        input_ids, position_ids (from 0 for each record) and labels, each (1, tokens) int64, a record's first label -100
        since nothing before it may predict it; target_index (targets,) int64, the positions that predict a target;
        cu_seq_lens_q and _k (records + 1,) int32 and max_length_q and _k, which transformers hands to the attention.
    """
    rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
    lengths = np.array([len(row["input_ids"]) for row in rows])
    starts = np.concatenate([[0], lengths.cumsum()])
    labels = np.concatenate([row["labels"] for row in rows]).astype(np.int64)
    labels[starts[:-1]] = IGNORE_INDEX
    ids = np.concatenate([row["input_ids"] for row in rows]).astype(np.int64)
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    cu_seq_lens, longest = torch.from_numpy(starts.astype(np.int32)), int(lengths.max())
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "labels": torch.from_numpy(labels)[None],
        "target_index": torch.from_numpy(np.flatnonzero(labels != IGNORE_INDEX) - 1),
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def pad_batch(rows: list[Row], pad_token_id: int, multiple: int = 8) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest record, rounded up to ``multiple`` (tensor cores like that).

    Returns:
        input_ids, attention_mask and labels, each (batch, padded_len) int64, labels -100 on padding; target_index
        (targets,) int64, the positions in the flattened batch that predict a target.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    length = -(-longest // multiple) * multiple
    batch = {
        "input_ids": torch.full((len(rows), length), pad_token_id),
        "attention_mask": torch.zeros((len(rows), length), dtype=torch.int64),
        "labels": torch.full((len(rows), length), IGNORE_INDEX),
    }
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        batch["input_ids"][i, :n] = torch.as_tensor(row["input_ids"])
        batch["attention_mask"][i, :n] = 1
        batch["labels"][i, :n] = torch.as_tensor(row["labels"])
    batch["labels"][:, 0] = IGNORE_INDEX
    batch["target_index"] = (batch["labels"].flatten() != IGNORE_INDEX).nonzero()[:, 0] - 1
    return batch
