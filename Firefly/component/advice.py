"""What a run will take on one card, and what to change, from the mildest on, when it takes more than there is."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from .argument import CustomizedArguments
from .cards import GIB, Memory, Zero, shard
from .errors import UserError
from .simulate import simulate

OURS = {f.name for f in dataclasses.fields(CustomizedArguments)}
FUSED = "adamw_torch_fused"
ZERO = {
    "train_args/ds_z2_config.json": Zero(2),
    "train_args/ds_z3_config.json": Zero(3, offload_weights=True, bucket=1e7),
}


Group = list[tuple[dict[str, Any], str]]  # changes and what they cost, each taking less memory than the one before


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run as far as its memory goes. args: TrainingArguments; data: TokenDataset or PackedDataset."""

    custom: Any
    args: Any
    tokenizer: Any
    data: Any
    zero: Zero | None = None
    cards: int = 1
    known: dict[Any, Any] = dataclasses.field(default_factory=dict)  # what was simulated already

    def changed(self, **changes: Any) -> "Setup":
        """Return a copy with other values for keys of the train_args file, ``zero`` or ``cards``."""
        custom = dataclasses.replace(self.custom, **{k: v for k, v in changes.items() if k in OURS})
        args = copy.copy(self.args)
        for key, value in changes.items():
            if key not in OURS and key not in ("zero", "cards"):
                setattr(args, key, value)
        zero = changes.get("zero", self.zero)
        args.deepspeed = zero and "on"  # decides the precision of the weights
        return dataclasses.replace(self, custom=custom, args=args, zero=zero, cards=changes.get("cards", self.cards))


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change that makes a run fit: its keys, what it costs, what it then takes, and the machine's memory it takes."""

    changes: dict[str, Any]
    cost: str
    memory: Memory
    host_gib: float = 0.0
    cards: int = 1


def worst_batch(data: Any, rows: int, max_tokens: int | None = None) -> list[Any]:
    """Return the ``rows`` longest rows, of equally long ones those with most targets, cut at ``max_tokens``."""
    order = worst_rows(data, rows)
    return [_cut(data[i], max_tokens) for i in order.tolist()]


def worst_rows(data: Any, rows: int) -> np.ndarray:
    """Return the indices of the rows of worst_batch, (rows,); a small dataset's are repeated."""
    return np.resize(np.lexsort((data.target_counts, data.lengths))[::-1], rows)


def _cut(item: Any, max_tokens: int | None) -> Any:
    if max_tokens is None:
        return item
    if isinstance(item, list):
        ends = np.cumsum([len(row["input_ids"]) for row in item])
        kept = [_cut(row, max_tokens - int(end) + len(row["input_ids"])) for row, end in zip(item, ends, strict=True)]
        return [row for row in kept if len(row["input_ids"])]
    return {name: values[: max(max_tokens, 0)] for name, values in item.items()}


def predict(setup: Setup) -> tuple[Memory, int, Any]:
    """Return the peak of a step on one card, the bytes of the machine's memory that ZeRO takes, and the fake model."""
    custom, args = setup.custom, setup.args
    micro, accumulates = args.per_device_train_batch_size, args.gradient_accumulation_steps > 1
    key = (
        custom.train_mode, custom.max_seq_length, custom.gradient_checkpointing_offload, args.gradient_checkpointing,
        micro, accumulates, args.optim, bool(setup.zero),
    )  # fmt: skip
    if key not in setup.known:
        items = worst_batch(setup.data, micro, custom.max_seq_length)
        setup.known[key] = simulate(custom, args, setup.tokenizer, items)
    memory, model = setup.known[key]
    if setup.zero:
        return (*shard(memory, setup.zero, setup.cards), model)
    if setup.cards > 1:  # DDP sends gradients from buckets of their own
        memory = dataclasses.replace(memory, activations=memory.activations + memory.gradients)
    return memory, 0, model


def advise(setup: Setup, budget_gib: float, gpu: bool = True) -> list[Advice]:
    """Return the changes that fit, each enough by itself, those that change the result least first.

    gpu: False leaves out what moves memory from a card to the machine.
    """
    found = [_first_that_fits(setup, group, budget_gib) for group in _mild(setup, gpu)]
    least = _least(setup)
    if not any(found) and len(least) > 2:
        both = [({**least, **_batch(setup, m)}, "结果不变，几样一起改，较慢") for m in _pieces(setup) or [1]]
        found.append(_first_that_fits(setup, both, budget_gib))
    enough = any(found)
    for group in _harsher(setup, gpu):
        advice = _first_that_fits(setup, group, budget_gib)
        if not advice and not enough:
            changes, cost = group[-1]
            advice = _first_that_fits(setup, [({**least, **changes}, cost)], budget_gib)
        found.append(advice)
    return [advice for advice in found if advice]


def _first_that_fits(setup: Setup, group: Group, budget_gib: float) -> Advice | None:
    def attempt(changes: dict[str, Any], cost: str) -> Advice:
        values = {k: v for k, v in changes.items() if k != "deepspeed"}
        if "deepspeed" in changes:
            values["zero"] = ZERO.get(changes["deepspeed"])
        changed = setup.changed(**values)
        memory, host, _ = predict(changed)
        keys = {k: v for k, v in changes.items() if k != "cards" and (v is not None or setup.zero)}
        return Advice(keys, cost, memory, host / GIB, changed.cards)

    try:
        if not group or attempt(*group[-1]).memory.needed > budget_gib:
            return None
        return next(advice for pair in group if (advice := attempt(*pair)).memory.needed <= budget_gib)
    except UserError:  # a mode that this model doesn't know, or that can't be worked out
        return None


def _pieces(setup: Setup) -> list[int]:
    """Smaller batches that divide this one, the largest first."""
    micro = setup.args.per_device_train_batch_size
    return [m for m in range(micro - 1, 0, -1) if micro % m == 0]


def _batch(setup: Setup, micro: int) -> dict[str, Any]:
    """The same records a step, in pieces of ``micro``."""
    rows = setup.args.per_device_train_batch_size * setup.args.gradient_accumulation_steps
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": rows // micro}


def _least(setup: Setup) -> dict[str, Any]:
    """All at once that leaves the result as it is."""
    fused = {"optim": FUSED} if _optimizer(setup) == "adamw_torch" and not setup.zero else {}
    less = {} if setup.args.gradient_checkpointing else {"gradient_checkpointing": True}
    return {**_batch(setup, 1), **less, **fused}


def _optimizer(setup: Setup) -> str:
    return str(getattr(setup.args.optim, "value", setup.args.optim))


def _mild(setup: Setup, gpu: bool) -> Iterator[Group]:
    """Changes after which the run learns the same."""
    if gpu and "optim" in _least(setup):
        yield [({"optim": FUSED}, "结果不变，优化器更新时少占一份临时空间")]
    yield [(_batch(setup, micro), "结果不变，稍慢") for micro in _pieces(setup)]
    if not setup.args.gradient_checkpointing:
        yield [({"gradient_checkpointing": True}, "结果不变，约慢三成")]
    elif gpu and not setup.custom.gradient_checkpointing_offload:
        yield [({"gradient_checkpointing_offload": True}, "结果不变，激活放到内存里，更慢")]


def _harsher(setup: Setup, gpu: bool) -> Iterator[Group]:
    """Changes of the optimizer, of the machine, of what is trained, and of the data."""
    mode = setup.custom.train_mode
    if "8bit" not in _optimizer(setup) and not setup.zero:
        yield [({"optim": "paged_adamw_8bit"}, "结果几乎不变，优化器状态用 8 位存")]
    if mode == "full":
        for path, zero in ZERO.items() if gpu else ():
            cards = [n for n in (1, 2, 4, 8) if n > setup.cards or (n == setup.cards and not setup.zero)]
            cost = f"结果不变，ZeRO-{zero.stage}，优化器状态放到内存里，更慢"
            yield [({"deepspeed": path, "cards": n}, cost) for n in cards]
        yield [({"train_mode": "lora", "deepspeed": None}, "只训练适配器，结果不同，learning_rate 约 2e-4")]
    if mode != "qlora":
        cost = "权重用 4 位存，只训练适配器，结果不同，learning_rate 约 2e-4"
        yield [({"train_mode": "qlora", "deepspeed": None}, cost)]
    lengths = np.asarray(getattr(setup.data, "dataset", setup.data).lengths)
    shorter = [int(setup.custom.max_seq_length * share) for share in (0.75, 0.5, 0.25)]
    yield [({"max_seq_length": n}, f"{(lengths > n).mean():.1%} 的记录会被截短") for n in shorter]
