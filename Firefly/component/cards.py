"""Graphics cards by name or by size, and what DeepSpeed's ZeRO leaves of a model's memory on each of several."""

import dataclasses
from typing import Any, NamedTuple

from .errors import UserError
from .machine import zero_config
from .speed import PEAK_TFLOPS

GIB = 1 << 30
CONTEXT_GIB = 0.6  # what CUDA and its libraries take before the first tensor
FRAGMENTS = 1.05  # reserved over allocated: holes between blocks that the allocator can't hand out

# GiB that a program sees, which is less than what the box says where error correction takes its part.
CARDS = {
    "5090": 31.8, "5080": 15.9, "4090": 24, "4080": 16, "4070": 12, "4060": 8, "3090": 24, "3080": 10, "3060": 12,
    "A100-40": 40, "A100": 80, "A800": 80, "A30": 24, "A10": 22.5, "H100": 79.6, "H800": 79.6, "H200": 140, "H20": 95.5,
    "L40S": 45, "L20": 45, "L4": 22.5, "V100": 32, "V100-16": 16, "T4": 15,
}  # fmt: skip


class Card(NamedTuple):
    name: str
    gib: float
    tflops: float | None  # of dense bf16, where the name says which card it is


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step. ``activations`` is all that the other three are not: logits and temporaries too.

    trained: the number of trained weights.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    trained: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def needed(self) -> float:
        """GiB of a card that are taken, with CUDA's own part and fragmentation."""
        return self.total * FRAGMENTS / GIB + CONTEXT_GIB


class Zero(NamedTuple):
    """What of a DeepSpeed config decides about memory. Buckets are in elements."""

    stage: int
    offload_optimizer: bool = True
    offload_weights: bool = False
    bucket: float = 2e8
    live: float = 1e9


def find_card(text: str) -> Card:
    """Read "24", "24GiB", "4090", "RTX 4090" or "A100-40".

    Raises:
        UserError: neither a size nor a card in the table.
    """
    word = text.upper().replace(" ", "").removeprefix("NVIDIA").removeprefix("RTX")
    if word in CARDS:
        family = word.partition("-")[0]
        tflops = next((f for name, f in PEAK_TFLOPS.items() if name.removeprefix("RTX ") == family), None)
        return Card(word, CARDS[word], tflops)
    try:
        size = float(word.removesuffix("B").removesuffix("I").removesuffix("G"))
    except ValueError:
        size = 0.0
    if not 0.5 <= size <= 1024:
        raise UserError(f"--estimate {text}：请给出显存（GiB，例如 24）或显卡型号（{'、'.join(CARDS)}）。")
    return Card("显卡", size, None)


def read_zero(deepspeed: Any) -> Zero | None:
    """Read the value of the key ``deepspeed``, a path or the config itself; None where it shards nothing."""
    if not deepspeed:
        return None
    part = zero_config(deepspeed)

    def number(key: str, default: float) -> float:
        return default if part.get(key, "auto") == "auto" else float(part[key])

    def offloads(key: str) -> bool:
        return (part.get(key) or {}).get("device", "none") != "none"

    stage = part.get("stage", 0)
    bucket = number("reduce_bucket_size", 2e8 if stage < 3 else 1e7)
    zero = Zero(
        stage,
        offloads("offload_optimizer"),
        offloads("offload_param"),
        bucket,
        number("stage3_max_live_parameters", 1e9),
    )
    return zero if stage else None


def shard(memory: Memory, zero: Zero, cards: int) -> tuple[Memory, int]:
    """Return what one of ``cards`` cards holds, and the bytes that all of them put into the machine's memory.

    memory: of one card without ZeRO, weights in half precision. DeepSpeed keeps a float32 copy of what is trained
    beside the optimizer's state. Stage 1 divides both, 2 the gradients too, 3 the weights too (Rajbhandari et al. 2020,
    arXiv 1910.02054); of weights that are elsewhere, at most ``zero.live`` are gathered at a time. Two buckets of
    gradients are on their way at a time.
    """
    optimizer = memory.optimizer + 4 * memory.trained
    weights, gradients, host, buckets = memory.weights, memory.gradients, 0, 2 * int(zero.bucket) * 2
    if zero.stage >= 2:
        gradients //= cards
    if zero.stage >= 3:
        gathered = min(memory.weights, int(zero.live) * 2)
        weights = gathered if zero.offload_weights else min(memory.weights, memory.weights // cards + gathered)
        host += memory.weights * zero.offload_weights
    if zero.offload_optimizer:  # gradients go down to it as they come
        host += optimizer + memory.gradients
        gradients = optimizer = 0
    buckets = min(buckets, 2 * memory.gradients)
    sharded = dataclasses.replace(
        memory,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer // cards,
        activations=memory.activations + buckets,
    )
    return sharded, host
