"""Put records of different length into one batch."""

from typing import Any

import torch

from .prompt import IGNORE_INDEX


def pad_batch(records: list[dict[str, Any]], pad_token_id: int, multiple: int = 8) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest record, rounded up to ``multiple`` (tensor cores like that).

    Args:
        records: each with "input_ids" and "labels", (seq_len,) int arrays.

    Returns:
        input_ids, attention_mask and labels, each (batch, padded_len) int64; labels are -100 on padding.
    """
    longest = max(len(record["input_ids"]) for record in records)
    length = -(-longest // multiple) * multiple
    batch = {
        "input_ids": torch.full((len(records), length), pad_token_id),
        "attention_mask": torch.zeros((len(records), length), dtype=torch.int64),
        "labels": torch.full((len(records), length), IGNORE_INDEX),
    }
    for row, record in enumerate(records):
        n = len(record["input_ids"])
        batch["input_ids"][row, :n] = torch.as_tensor(record["input_ids"])
        batch["attention_mask"][row, :n] = 1
        batch["labels"][row, :n] = torch.as_tensor(record["labels"])
    return batch
