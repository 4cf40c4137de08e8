"""Several processes train on each record once an epoch, just as one process does.

accelerate makes the last batches of an epoch go round by taking records from its beginning a second time. Here the
records that are left are shared out as they are; a process for which there is none gets a row without targets, for it
has to take part in every collective step.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.distributed.fsdp import MixedPrecisionPolicy

from .prompt import IGNORE_INDEX


class EvenBatches(BatchSamplerShard):
    """The batches of one process: every n-th, and of the last, incomplete round every n-th record."""

    def __iter__(self) -> Iterator[list[int]]:
        turn: list[list[int]] = []
        for batch in self.batch_sampler:
            turn.append(batch)
            if len(turn) == self.num_processes:
                yield turn[self.process_index]
                turn = []
        if turn and not self.drop_last:
            yield [i for batch in turn for i in batch][self.process_index :: self.num_processes]


class Evenly:
    """For a Trainer whose collator takes rows of datasets (component/collator.py)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        fsdp = getattr(self.accelerator.state, "fsdp_plugin", None)
        if fsdp and fsdp.mixed_precision_policy:  # accelerate's rounds the loss to 16 bits, and adds gradients in them
            half = fsdp.mixed_precision_policy.param_dtype
            fsdp.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        if self.args.world_size > 1 and self.train_dataset:
            self.data_collator = functools.partial(collate, self.data_collator, without_targets(self.train_dataset[0]))

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        loader = super().get_train_dataloader()
        if type(loader.batch_sampler) is BatchSamplerShard:
            loader.batch_sampler.__class__ = EvenBatches
        return loader


def collate(collator: Callable[[list], dict[str, Any]], stand_in: Any, rows: list) -> dict[str, Any]:
    return collator(rows or [stand_in])


def without_targets(row: dict[str, np.ndarray] | list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The first tokens of a row (of a packed one: of its first record), none of which is a target."""
    ids = (row[0] if isinstance(row, list) else row)["input_ids"][:2]
    return {"input_ids": ids, "labels": np.full_like(ids, IGNORE_INDEX)}
