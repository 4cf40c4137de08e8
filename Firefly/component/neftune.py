"""NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise on the embeddings while training.

A record of L tokens of d dimensions gets noise of at most alpha / sqrt(L * d). transformers takes the row's length for
L, which padding lengthens and a flat row of many records multiplies; here it is each record's own.
"""

from typing import Any

import torch


def install_neftune(model: torch.nn.Module, alpha: float) -> None:
    """Add the noise to the model's input embeddings whenever it trains; evaluation is left alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch: dict[str, Any] = {}  # of the forward pass under way

    def note_batch(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        batch.update({key: kwargs.get(key) for key in ("attention_mask", "position_ids")})

    def add_noise(module: Any, args: tuple, embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        length = record_lengths(embedded, **batch)
        bound = alpha / (length * embedded.shape[-1]).sqrt().to(embedded.dtype)
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * bound[..., None]

    base.base_model.register_forward_pre_hook(note_batch, with_kwargs=True)
    base.get_input_embeddings().register_forward_hook(add_noise)


def record_lengths(
    embedded: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the length of the record that each token belongs to, in a shape that broadcasts to (rows, tokens).

    Args:
        embedded: (rows, tokens, hidden_size).
        attention_mask: (rows, tokens) of a padded batch, a record a row; another shape says nothing about lengths.
        position_ids: (rows, tokens) of a flat batch, from 0 for each record.
    """
    if attention_mask is not None and attention_mask.dim() == 2:
        return attention_mask.sum(1, keepdim=True)
    if position_ids is None:
        return torch.tensor([[embedded.shape[1]]], device=embedded.device)
    record = (position_ids.flatten() == 0).cumsum(0) - 1  # (rows * tokens,), which record a token is in
    size = torch.zeros_like(record).index_add_(0, record, torch.ones_like(record))
    return size[record].view_as(position_ids)
