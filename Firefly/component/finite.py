"""A loss or gradient that is no number is seen at its step, and never saved."""

import copy
from typing import Any

import torch

from .callbacks import StopOnNan


class NoNan:
    """For a Trainer: StopOnNan at every step, not only where the loss is logged.

    On a GPU the figures of a step are looked at one step later, so that the GPU need not wait for the CPU, but at once
    where they would be logged or the weights saved. With fp16 an infinite gradient is normal: its scaler skips that step.
    """

    _pending: tuple[int, torch.Tensor, Any] | None = None

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        self._look(tr_loss, grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _look(self, tr_loss: torch.Tensor, grad_norm: Any) -> None:
        """tr_loss: (), the sum since the last log, in which a NaN stays; grad_norm: (), or None."""
        if hasattr(grad_norm, "full_tensor"):  # FSDP's: each process holds a part
            grad_norm = grad_norm.full_tensor()
        norm = torch.as_tensor(0.0 if grad_norm is None or self.args.fp16 else grad_norm, device=tr_loss.device)
        pair = torch.stack([tr_loss.detach().float(), norm.detach().float()])
        flow = self.control
        if pair.device.type != "cuda" or flow.should_save or flow.should_log or flow.should_training_stop:
            return self._judge(self.state.global_step, pair)
        there = torch.empty(2, pin_memory=True).copy_(pair, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        before, self._pending = self._pending, (self.state.global_step, there, arrived)
        if before:
            before[2].synchronize()
            self._judge(*before[:2])

    def _judge(self, step: int, pair: torch.Tensor) -> None:
        state = copy.copy(self.state)
        state.global_step = step
        StopOnNan().on_log(self.args, state, self.control, dict(zip(("loss", "grad_norm"), pair.tolist(), strict=True)))
