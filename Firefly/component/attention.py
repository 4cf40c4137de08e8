"""Attention over flat rows: the records of a batch laid end to end, each seeing itself alone, with no padding.

A padded batch of real records is half padding. Laid flat, every linear layer works on data only, and attention runs
record by record: in one call of PyTorch's own FlashAttention on a GPU in half precision, by one ``sdpa`` call a record
elsewhere (the square of the whole row, that a block-diagonal mask would cost, is never computed).
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Families whose attention is plain causal softmax (with or without a sliding window): tests hold flat rows equal to
# padded ones for each. ALiBi (bloom), soft caps and sinks are not in here.
FLAT_FAMILIES = ("granite", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3")
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each record of a flat row; without ``cu_seq_lens_q`` (generation), plain sdpa.

    Args:
        query: (1, heads, tokens, head_dim); key and value: (1, kv_heads, tokens, head_dim).
        cu_seq_lens_q: (records + 1,) int32, where each record starts, and the row's length.
        max_length_q: tokens of the longest record.

    Returns:
        (1, tokens, heads, head_dim), and None for the weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if query.is_cuda:
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
        if half != torch.float32:
            out = _flash(
                query.to(half), key.to(half), value.to(half), cu_seq_lens_q, max_length_q, scaling, sliding_window
            )
            return out, None
    lengths = cu_seq_lens_q.diff().tolist()
    pieces = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    out = torch.cat([_one_record(q, k, v, scaling, sliding_window) for q, k, v in pieces], dim=2)
    return out.transpose(1, 2), None


def _one_record(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    if window and length > window:
        distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        band = (distance >= 0) & (distance < window)
        return F.scaled_dot_product_attention(query, key, value, band, scale=scaling, enable_gqa=grouped)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head_dim)
    left = window - 1 if window else -1
    out = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.unsqueeze(0)


def use_flat_rows(model: torch.nn.Module, attn_implementation: str | None, padding_free: bool | None) -> bool:
    """Decide whether batches are laid flat, and set the model's attention for it.

    An implementation that the user named is kept: FlashAttention takes flat rows itself; sdpa and eager take them
    when ``padding_free`` is true, through a block-diagonal mask, and get padded batches otherwise.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config
    plain = config.model_type in FLAT_FAMILIES and not getattr(config, "attention_dropout", 0.0)
    if not plain or padding_free is False:
        return False
    if attn_implementation is None:
        base.set_attn_implementation("varlen")
        return True
    return attn_implementation in (*FLASH, "varlen") or padding_free is True


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", sdpa_mask)
