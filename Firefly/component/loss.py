"""Cross-entropy on the target tokens alone: sum over them, divided by the targets of the whole accumulated batch.

Prompt tokens have no loss, so their logits are never computed, and the targets' logits exist a chunk at a time: with
73,448 tokens of vocabulary the logits are the memory. Where the output layer is a plain matrix, a chunk's gradient is
taken at once, in the forward pass, so that its logits are computed once and not again for the backward pass (the idea
of Liger's fused loss, arXiv 2410.10989; Granite has none there). Dividing by ``num_items_in_batch`` makes accumulation
1, 4 and 8 the same step; a model that ignores it has loss and gradient multiplied by the accumulation count.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from .prompt import IGNORE_INDEX

# Architectures whose logits are lm_head(last hidden state), times the factor given: tests hold each to its own forward.
LOGITS_SCALE = {
    "granite": lambda config: 1.0 / config.logits_scaling,
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3", "bloom"), lambda config: 1.0),
}
CHUNK_BYTES = 64 << 20  # of float32 logits: 228 rows at MiniCPM4's vocabulary


def chunk_rows(vocab_size: int) -> int:
    """Rows of logits held at a time. Fewer make matrix products slow, more only cost memory."""
    return max(128, CHUNK_BYTES // (4 * vocab_size))


class _LossOfMatrix(torch.autograd.Function):
    """Summed cross-entropy of ``hidden @ weight.T``, whose gradients are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, scale: float, rows: int
    ) -> torch.Tensor:
        """hidden: (targets, hidden_size), any float dtype; weight: (vocab_size, hidden_size); targets: (targets,)."""
        dtype = _compute_dtype(hidden)
        matrix = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                states, wanted = (hidden[part] * scale).to(dtype), targets[part, None]
                log_p = F.log_softmax((states @ matrix.T).float(), dim=-1)
                total -= log_p.gather(1, wanted).sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                slope = log_p.exp_().scatter_add_(1, wanted, log_p.new_full(wanted.shape, -1.0)).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (slope @ matrix) * scale
                if grad_weight is not None and dtype == torch.float32:
                    grad_weight.addmm_(slope.T, states)
                elif grad_weight is not None:
                    grad_weight += slope.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def target_cross_entropy(
    hidden: torch.Tensor, targets: torch.Tensor, lm_head: torch.nn.Module, scale: float, rows: int | None = None
) -> torch.Tensor:
    """Return the summed cross-entropy of ``targets``, never holding more than ``rows`` rows of logits.

    Args:
        hidden: (num_targets, hidden_size), the states that predict the targets.
        targets: (num_targets,), int64.
        lm_head: maps hidden to (num_targets, vocab_size).
        scale: multiplies the logits.
    """
    sharded = any(hasattr(parameter, "ds_id") for parameter in lm_head.parameters())
    weight = plain_matrix(lm_head)
    if weight is not None:
        whole = functools.partial(_loss_of_matrix, weight=weight, targets=targets, scale=scale, rows=rows)
        return _as_forward(lm_head, whole, hidden) if sharded else whole(hidden)
    if sharded:  # ZeRO-3: as many calls of the layer in every process, for each gathers its weights from all
        rows = max(len(targets), 1)
    rows = rows or chunk_rows(getattr(lm_head, "out_features", hidden.shape[-1]))
    return _loss_of_calls(lm_head, hidden, targets, scale, rows)


def _loss_of_matrix(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, scale: float, rows: int | None
) -> torch.Tensor:
    rows = rows or chunk_rows(len(weight))
    if _compute_dtype(hidden) == torch.float16:  # needs the loss scaled before its gradient is taken
        return _loss_of_calls(functools.partial(F.linear, weight=weight), hidden, targets, scale, rows)
    weight = weight if torch.is_grad_enabled() else weight.detach()
    return _LossOfMatrix.apply(hidden, weight, targets, scale, rows)


def _loss_of_calls(
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
    rows: int,
) -> torch.Tensor:
    """Any output layer, a chunk at a time, whose logits are computed once more for the backward pass."""

    def chunk_loss(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(lm_head(h).float() * scale, t, reduction="sum")

    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return sum(chunk_loss(h, t) for h, t in chunks)
    return sum(checkpoint(chunk_loss, h, t, use_reentrant=False) for h, t in chunks)


def _as_forward(
    module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor
) -> torch.Tensor:
    """Call ``function`` as the module's forward: ZeRO-3 has its whole weight there, here and in the backward pass."""
    own = module.__dict__.get("forward")
    module.forward = function
    try:
        return module(hidden)
    finally:
        if own:
            module.forward = own
        else:
            del module.forward  # the class's shows again


def plain_matrix(lm_head: torch.nn.Module) -> torch.Tensor | None:
    """The weight when the layer is just a matrix product: no bias, no adapter, not quantised. ZeRO-3's may be empty."""
    if type(lm_head).__name__ == "TrainableTokensWrapper":
        weight = plain_matrix(lm_head.original_module)
        if weight is None or hasattr(weight, "ds_id"):
            return None
        return lm_head.weight  # PEFT's added tokens: their trained rows put into the base's, with a gradient to them
    if type(lm_head) is not torch.nn.Linear:
        return None
    weight, *bias = lm_head.parameters(recurse=False)  # under ZeRO-3 lm_head.weight would gather it, and keep it
    known = type(weight) in (torch.nn.Parameter, FakeTensor)  # fake: simulate.py
    return weight if known and weight.is_floating_point() and not bias else None


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def install_target_loss(model: torch.nn.Module, rows: int | None = None) -> bool:
    """Make the model's ``forward(labels=..., num_items_in_batch=...)`` return the loss above and no logits.

    Batches come from collator.py, with ``target_index``; without it, it is found from the labels. The forward itself is
    replaced, not the trainer's call of it, so DDP, DeepSpeed and PEFT wrappers keep working.

    Returns:
        False when the architecture is not one we know to be lm_head on the last hidden state: then its full logits
        are computed, and the loss is the same.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    original = base.forward
    known = LOGITS_SCALE.get(base.config.model_type)

    @functools.wraps(type(base).forward)  # generate() reads from the signature what it may pass
    def forward(
        self: Any,
        *args: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        target_index: torch.Tensor | None = None,
        **kwargs: Any,
    ):
        if labels is None:
            return original(*args, **kwargs)
        kwargs["use_cache"] = False
        if "cu_seq_lens_q" in kwargs and self.config._attn_implementation == "varlen":
            # any 4-d mask is passed on as it is: keeps transformers from building one of tokens x tokens
            kwargs["attention_mask"] = torch.zeros((1, 1, 1, 1), device=labels.device)
        if target_index is None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
            target_index = (shifted != IGNORE_INDEX).nonzero()[:, 0]
        targets = labels.flatten()[target_index + 1]
        if known:
            states = self.base_model(*args, **kwargs).last_hidden_state
            head, scale = self.get_output_embeddings(), known(self.config)
        else:
            states = original(*args, **kwargs).logits
            head, scale = torch.nn.Identity(), 1.0
        total = target_cross_entropy(states.flatten(0, 1)[target_index], targets, head, scale, rows)
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / count)

    base.forward = types.MethodType(forward, base)
    base.accepts_loss_kwargs = True  # tells transformers.Trainer that the loss is divided already
    return known is not None
