"""Cross-entropy on the target tokens alone: sum over them, divided by the targets of the whole accumulated batch.

Prompt tokens have no loss, so their logits are never computed, and the logits of the targets are made chunk by chunk
and made again in the backward pass: with 73,448 tokens of vocabulary the logits are the memory. Dividing by
``num_items_in_batch`` makes accumulation 1, 4 and 8 the same step; a model that ignores it has its loss and gradient
multiplied by the accumulation count.
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from .prompt import IGNORE_INDEX

# Architectures whose logits are lm_head(last hidden state), times the factor given: tests hold each to its own forward.
LOGITS_SCALE = {
    "granite": lambda config: 1.0 / config.logits_scaling,
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3", "bloom"), lambda config: 1.0),
}


def chunked_cross_entropy(
    hidden: torch.Tensor, targets: torch.Tensor, lm_head: torch.nn.Module, scale: float, chunk_tokens: int = 1024
) -> torch.Tensor:
    """Return the summed cross-entropy of ``targets``, never holding more than ``chunk_tokens`` rows of logits.

    Args:
        hidden: (num_targets, hidden_size), the states that predict the targets.
        targets: (num_targets,), int64.
        lm_head: maps hidden to (num_targets, vocab_size).
        scale: multiplies the logits.
    """

    def chunk_loss(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(lm_head(h).float() * scale, t, reduction="sum")

    if targets.numel() == 0:  # keeps the graph whole, so that DDP ranks without targets still take part
        return hidden.sum() * 0.0
    if targets.numel() <= chunk_tokens or not torch.is_grad_enabled():
        return sum(
            chunk_loss(h, t) for h, t in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
        )
    return sum(
        checkpoint(chunk_loss, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    )


def install_target_loss(model: torch.nn.Module, chunk_tokens: int = 1024) -> bool:
    """Make the model's ``forward(labels=..., num_items_in_batch=...)`` return the loss above and no logits.

    The forward itself is replaced, not the trainer's call of it, so DDP, DeepSpeed and PEFT wrappers keep working.

    Returns:
        False when the architecture is not one we know to be lm_head on the last hidden state: then its full logits
        are computed, and the loss is the same.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    original = base.forward
    known = LOGITS_SCALE.get(base.config.model_type)

    def forward(
        self: Any, *args: Any, labels: torch.Tensor | None = None, num_items_in_batch: Any = None, **kwargs: Any
    ):
        if labels is None:
            return original(*args, **kwargs)
        kwargs["use_cache"] = False
        keep = labels[:, 1:] != IGNORE_INDEX  # (batch, seq_len - 1): position i predicts token i + 1
        targets = labels[:, 1:][keep]
        if known:
            states = self.base_model(*args, **kwargs).last_hidden_state
            head, scale = self.get_output_embeddings(), known(self.config)
        else:
            states = original(*args, **kwargs).logits
            head, scale = torch.nn.Identity(), 1.0
        total = chunked_cross_entropy(states[:, :-1][keep], targets, head, scale, chunk_tokens)
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / count)

    base.forward = types.MethodType(forward, base)
    base.accepts_loss_kwargs = True  # tells transformers.Trainer that the loss is divided already
    return known is not None
