"""Pack whole records into rows of max_seq_length tokens, best fit: hardly a token of a row is left empty.

After Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830): bins are filled by best-fit
decreasing, so no record is cut to fill a row. Attention stays within each record, see collator.flatten_batch.
"""

import heapq
import math
from typing import Any

import numpy as np
import torch

from .dataset import TokenDataset


def best_fit_bins(lengths: np.ndarray, max_seq_length: int, seed: int) -> list[np.ndarray]:
    """Put each record into the open bin that it fills best, longest records first.

    Records of equal length come in random order, so that neighbours in the file do not share a row by rule, and so do
    the bins; of two bins with the same room the older one is taken.

    Args:
        lengths: (records,) tokens, each at most ``max_seq_length``.

    Returns:
        The records' indices in each bin, ascending.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    bin_of = np.empty(len(lengths), np.int64)
    with_room: list[list[int]] = [[] for _ in range(max_seq_length + 1)]  # heaps of bins, by the tokens still free
    rooms = 0  # bit r is set while a bin has r tokens free: finding the smallest room that will do is one shift
    n_bins = 0
    for record, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = heapq.heappop(with_room[room])
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, number, n_bins = max_seq_length, n_bins, n_bins + 1
        bin_of[record] = number
        if left := room - length:
            heapq.heappush(with_room[left], number)
            rooms |= 1 << left
    members = np.argsort(bin_of, kind="stable")
    bins = np.split(members, np.cumsum(np.bincount(bin_of, minlength=n_bins))[:-1])
    return [bins[number] for number in rng.permutation(n_bins)]


class PackedDataset(torch.utils.data.Dataset):
    """Row ``i`` is the list of records that share it; the attributes are TokenDataset's, one value a row.

    bins: index arrays into ``dataset``; lengths: (rows,) int32, tokens; target_counts: (rows,) int32.
    """

    def __init__(self, dataset: TokenDataset, max_seq_length: int, seed: int):
        self.dataset, self.max_seq_length = dataset, max_seq_length
        self.bins = best_fit_bins(dataset.lengths, max_seq_length, seed)
        self.lengths, self.target_counts = (
            np.array([counts[members].sum() for members in self.bins], np.int32)
            for counts in (dataset.lengths, dataset.target_counts)
        )
        self.dropped, self.n_truncated = dataset.dropped, dataset.n_truncated

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, index: int) -> list[dict[str, np.ndarray]]:
        return [self.dataset[record] for record in self.bins[index].tolist()]

    @property
    def category(self) -> list[str]:
        """The categories in each row, joined by a plus sign."""
        names = self.dataset.category
        return ["+".join(sorted({names[record] for record in members})) for members in self.bins]

    @property
    def n_records(self) -> int:
        return len(self.dataset)

    @property
    def fill(self) -> float:
        """Tokens over places for them."""
        return float(self.lengths.sum(dtype=np.int64) / (len(self) * self.max_seq_length))

    def count_tokens(self) -> tuple[int, int]:
        """Return (all tokens, target tokens)."""
        return self.dataset.count_tokens()


def packing_notice(packed: PackedDataset, args: Any) -> str:
    """Say, in Chinese, what packing does to a step, and what that means for the learning rate.

    args: TrainingArguments. The square root rule is for Adam (Malladi et al. 2022, arXiv 2205.10287).
    """
    each = len(packed.dataset) / len(packed)
    micro, accumulation, world = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    rows = micro * accumulation * world
    before, after = (steps_per_epoch(n, micro * world, accumulation) for n in (len(packed.dataset), len(packed)))
    text = (
        f"packing：{len(packed.dataset)} 条装进 {len(packed)} 行，每行 {packed.max_seq_length} 个 token，填满 {packed.fill:.1%}。"
        f"一步有 {rows} 行，平均 {rows * each:.1f} 条（不打包时 {rows} 条）；每轮 {after} 步（不打包时 {before} 步）。"
    )
    if args.max_steps > 0:
        text += f"max_steps={args.max_steps} 不变，会看 {each:.1f} 倍的数据。"
    if each < 1.5:
        return text
    scaled = args.learning_rate * math.sqrt(each)
    advice = [f"保持每步的行数，learning_rate 乘以 √{each:.1f}，即 {args.learning_rate:g} 改为 {scaled:.1e}"]
    fewer, times = smaller_batch(micro, accumulation, each)
    if fewer * times < micro * accumulation:
        advice.insert(
            0,
            f"学习率不变，改 per_device_train_batch_size={fewer}、gradient_accumulation_steps={times}，"
            f"一步仍约 {fewer * times * world * each:.0f} 条",
        )
    return text + f"一步的条数是原来的 {each:.1f} 倍，经验做法：{'；或者'.join(advice)}。"


def smaller_batch(micro: int, accumulation: int, times_more: float) -> tuple[int, int]:
    """Return the batch size and accumulation that hold as many records as before, in rows of ``times_more`` each."""
    fewer = max(1, round(micro / times_more))
    return fewer, max(1, round(micro * accumulation / times_more / fewer))


def steps_per_epoch(n_rows: int, batch: int, accumulation: int) -> int:
    """Optimizer steps of an epoch, as transformers counts them: the last of each may be smaller."""
    return math.ceil(math.ceil(n_rows / batch) / accumulation)
