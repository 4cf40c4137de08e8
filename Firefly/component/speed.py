"""How fast a run is: tokens, padding, seconds waiting for data, and the share of the machine's arithmetic in use."""

import time
from typing import Any

import torch

# Dense bf16 (fp16 where there is no bf16) tensor-core TFLOP/s by a part of the device's name, from the vendors' data sheets.
PEAK_TFLOPS = {
    "H200": 989, "H100": 989, "H800": 989, "H20": 148, "A100": 312, "A800": 312, "L40S": 362, "L20": 119, "L4": 121,
    "A10": 125, "A30": 165, "RTX 5090": 209, "RTX 5080": 113, "RTX 4090": 165, "RTX 4080": 97, "RTX 4070": 58,
    "RTX 4060": 31, "RTX 3090": 71, "RTX 3080": 60, "RTX 3060": 26, "V100": 125, "T4": 65,
}  # fmt: skip


class Meter:
    """Counts one process's training steps; ``figures`` makes rates of it. Saving and evaluation do not count as time."""

    def __init__(self, model: torch.nn.Module, peak_flops: float):
        self.per_token, self.per_target, self.per_pair = flops_of(model)
        self.peak_flops = peak_flops
        self.tokens = self.targets = self.places = self.flops = 0.0  # may become tensors: a GPU is not waited for
        self.busy_s = self.data_wait_s = 0.0
        self._started, self._logged = 0.0, (0.0, 0.0)

    def start(self) -> None:
        """A step begins, with the wait for its data."""
        self._started = time.perf_counter()

    def got_data(self, batches: list[dict[str, Any]]) -> None:
        """Its micro-batches, made by collator.py, are here."""
        self.data_wait_s += time.perf_counter() - self._started
        for batch in batches:
            self.count(batch)

    def stop(self) -> None:
        """The step is done."""
        self.busy_s += time.perf_counter() - self._started

    def count(self, batch: dict[str, Any]) -> None:
        targets = len(batch["target_index"])
        flat = "cu_seq_lens_q" in batch
        lengths = batch["cu_seq_lens_q"].diff() if flat else batch["attention_mask"].sum(1)
        tokens = batch["input_ids"].numel() if flat else lengths.sum()
        pairs = (lengths.double() ** 2).sum() / 2  # causal: half of the square
        self.flops = self.flops + self.per_token * tokens + self.per_target * targets + self.per_pair * pairs
        self.tokens = self.tokens + tokens
        self.targets += targets
        self.places += batch["input_ids"].numel()

    def tokens_per_second(self) -> float:
        """Of this process since the last call."""
        now = (float(self.tokens), self.busy_s)
        tokens, seconds = now[0] - self._logged[0], now[1] - self._logged[1]
        self._logged = now
        return round(tokens / max(seconds, 1e-9), 1)

    def figures(self, world_size: int = 1) -> dict[str, float]:
        """Rates of the whole run, over all processes on the assumption that each did the same work."""
        seconds, tokens = max(self.busy_s, 1e-9), float(self.tokens)
        return {
            "train_tokens_per_second": round(tokens * world_size / seconds, 1),
            "train_target_tokens_per_second": round(self.targets * world_size / seconds, 1),
            "mfu": round(float(self.flops) / seconds / self.peak_flops, 4),
            "padding_share": round(1 - tokens / max(self.places, 1), 4),
            "data_wait_s": round(self.data_wait_s, 3),
        }


def flops_of(model: torch.nn.Module) -> tuple[float, float, float]:
    """Return the floating-point operations that training needs: per token, per target token, per pair of tokens.

    Two for each weight forward, two for the gradient of its input, two for its own gradient where it is trained (so 6,
    or 4 for a frozen weight); embedding look-ups cost none, recomputed activations do not count. A pair of tokens
    costs 2 x 2 x hidden_size a layer forward and twice that backward (Chowdhery et al. 2022, PaLM, appendix B).
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    embedding, head = (getattr(end, "original_module", end).weight for end in ends)  # PEFT wraps them for added tokens
    body = 0.0
    for parameter in model.parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor
        if parameter is embedding or parameter is head or len(shape) < 2:
            continue
        n = weights_in(parameter)
        body += n * (6 if parameter.requires_grad else 4)
    config = base.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_pair = 12.0 * config.num_hidden_layers * config.num_attention_heads * width
    rows, columns = getattr(head, "ds_shape", head.shape)
    per_target = rows * columns * (6.0 if head.requires_grad else 4.0)
    return body, per_target, per_pair


def weights_in(parameter: torch.Tensor) -> int:
    """Weights in a parameter; bitsandbytes packs two of 4 bits into a byte, ZeRO-3 leaves an empty tensor."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else getattr(parameter, "ds_numel", parameter.numel())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that ``device`` can do: the data sheet's for a known GPU, else measured with a product."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for part, tflops in PEAK_TFLOPS.items():
            if part in name:
                return tflops * 1e12
    n = 4096 if device.type == "cuda" else 1024
    x = torch.ones((n, n), dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        (x @ x)[0, 0].item()  # item() waits for the GPU
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
