"""Held-out loss of each record: cross-entropy summed over its target tokens, for evaluation."""

import sys
from collections.abc import Container, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .loss import IGNORE_INDEX, LOGITS_SCALE

CHUNK_TOKENS = 1024


def record_losses(
    model: Any,
    encoded: list[tuple[list[int], list[int]]],
    batch_size: int,
    pad_id: int,
    name: str,
    known: Container[int] = (),
) -> Iterator[dict[int, float]]:
    """Yield {record: summed cross-entropy of its target tokens}, a batch at a time; ``encoded``: (input_ids, labels) pairs.

    Batches of which every record is ``known`` are left out; the others are the same as without it.
    """
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    with tqdm(total=len(order), desc=f"{name} 损失", unit="条", disable=None, file=sys.stderr) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            if not all(i in known for i in batch):
                yield dict(zip(batch, batch_losses(model, [encoded[i] for i in batch], pad_id), strict=True))
            bar.update(len(batch))


def batch_losses(model: Any, batch: list[tuple[list[int], list[int]]], pad_id: int) -> list[float]:
    """Summed cross-entropy per row; logits are made for target tokens only, a chunk at a time."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in batch])  # (rows, width)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [IGNORE_INDEX] * (width - len(labels)) for _, labels in batch])[:, 1:]
    keep = labels != IGNORE_INDEX
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    scale_of = LOGITS_SCALE.get(base.config.model_type)
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}
    with torch.inference_mode():
        if scale_of:
            states, head, scale = (
                base.base_model(**inputs).last_hidden_state,
                base.get_output_embeddings(),
                scale_of(base.config),
            )
        else:
            states, head, scale = base(**inputs).logits, torch.nn.Identity(), 1.0
        states, targets = states[:, :-1][keep.to(states.device)], labels[keep].to(states.device)
        chunks = zip(states.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
        each = torch.cat([F.cross_entropy(head(h).float() * scale, t, reduction="none") for h, t in chunks])
    rows = keep.nonzero()[:, 0]
    return torch.zeros(len(batch), dtype=torch.float64).index_add(0, rows, each.double().cpu()).tolist()
