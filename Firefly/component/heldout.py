"""Held-out loss of each record: cross-entropy summed over its target tokens, for evaluation."""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .loss import IGNORE_INDEX, LOGITS_SCALE

CHUNK_TOKENS = 1024


def record_losses(
    model: Any, encoded: list[tuple[list[int], list[int]]], batch_size: int, pad_id: int, name: str
) -> list[float]:
    """Return the summed cross-entropy of each record's target tokens, in the order of ``encoded``: (input_ids, labels) pairs."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    sums = [0.0] * len(encoded)
    bar = tqdm(total=len(order), desc=f"{name} 损失", unit="条", disable=None, file=sys.stderr)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for i, value in zip(batch, batch_losses(model, [encoded[i] for i in batch], pad_id), strict=True):
            sums[i] = value
        bar.update(len(batch))
    bar.close()
    return sums


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
