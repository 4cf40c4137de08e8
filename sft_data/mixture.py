"""Mix sources in the shares asked for, and say plainly when a share cannot be delivered.

    shares_of(weights, hit_ratio) -> {name: share}               HIT gets its ratio, the others the rest by weight
    allocate(available, total, shares, on_shortage, max_repeat) -> {name: records}
    largest_total(available, shares) -> int                      the largest total at which every share is delivered
    explain(available, allocated, total, shares) -> str | None   one sentence, None when the mixture is as asked
    held_out(available, size) -> {name: records}                 how many of each source are for evaluation
    draw(prints, count, seed, name) -> (count,) int64            which ones: those whose keyed hash is smallest

A draw depends on the records' contents and the seed, not on their order or on how many there are of another source.
"""

import hashlib
import math

import numpy as np

from .errors import UserError
from .simhash import mix

ON_SHORTAGE = ("backfill", "shrink", "repeat", "fail")
LABEL = {"hit": "HIT", "firefly": "Firefly"}


def shares_of(weights: dict[str, float], hit_ratio: float) -> dict[str, float]:
    """Return the share of each source, adding up to 1; weights: of the sources other than HIT."""
    whole = sum(weights.values())
    return {"hit": hit_ratio if whole else 1.0} | {
        name: (1 - hit_ratio) * weight / whole for name, weight in weights.items()
    }


def allocate(
    available: dict[str, int], total: int | None, shares: dict[str, float], on_shortage: str, max_repeat: int
) -> dict[str, int]:
    """Return how many records to take of each source; more than are available means that some are repeated.

    Without ``total`` everything is taken and no share applies, but for "shrink": then it is the largest total that
    delivers the shares. A source that is short gives all it has, "repeat": up to ``max_repeat`` times, and the others
    fill up as far as they can. Raises UserError for "fail" when a source is short.
    """
    if total is None and on_shortage != "shrink":
        return dict(available)
    wanted = split_total(largest_total(available, shares) if total is None else total, shares)
    if all(wanted[name] <= n for name, n in available.items()):
        return wanted
    if on_shortage == "shrink":
        return split_total(largest_total(available, shares), shares)
    if on_shortage == "fail":
        raise UserError(f"{explain(available, available, total, shares)}没有写任何文件。")
    limits = {name: n * (max_repeat if on_shortage == "repeat" else 1) for name, n in available.items()}
    got = {name: min(wanted[name], limits[name]) for name in shares}
    while short := min(total - sum(got.values()), sum(available[name] - got[name] for name in _spare(available, got))):
        spare = _spare(available, got)
        weights = {name: shares[name] for name in spare}
        if not any(weights.values()):
            weights = {name: available[name] - got[name] for name in spare}
        more = split_total(short, {name: weight / sum(weights.values()) for name, weight in weights.items()})
        for name, n in more.items():
            got[name] = min(got[name] + n, available[name])
    return got


def _spare(available: dict[str, int], got: dict[str, int]) -> list[str]:
    return [name for name, n in available.items() if got[name] < n]


def split_total(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Return whole numbers that add up to ``total``, each within one of its share; the largest remainders round up."""
    exact = {name: total * share for name, share in shares.items()}
    whole = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    names = sorted(exact, key=lambda name: whole[name] - exact[name])  # stable: the first source wins a tie
    for name in names[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def largest_total(available: dict[str, int], shares: dict[str, float]) -> int:
    """The largest total, within one or two, at which every source has enough for its share."""
    total = int(min((available[name] / share for name, share in shares.items() if share > 0), default=0) + 1e-9)
    while total > 0 and any(n > available[name] for name, n in split_total(total, shares).items()):
        total -= 1
    return total


def explain(
    available: dict[str, int], allocated: dict[str, int], total: int | None, shares: dict[str, float]
) -> str | None:
    """Say in one sentence why the mixture is not what was asked for and what to do; None when it is."""
    best = largest_total(available, shares)
    if total is None:
        if split_total(sum(allocated.values()), shares) == allocated:
            return None
        advice = f"；要严格按比例，请加 --total {best} 或 --on-shortage shrink" if best else ""
        return f"没有给 --total，全部清洗后的数据都已使用，--hit-ratio {shares['hit']:g} 未生效{advice}。"
    wanted = split_total(total, shares)
    if allocated == wanted and all(n <= available[name] for name, n in allocated.items()):
        return None
    short = [name for name, n in wanted.items() if n > available[name]]
    needs = "，".join(f"{label(name)} 需要 {wanted[name]} 条，只有 {available[name]} 条" for name in short)
    advice = f"要保住比例，请改用 --total {best}（或 --on-shortage shrink），或补充数据。" if best else "请补充数据。"
    if allocated == split_total(sum(allocated.values()), shares):
        advice = "比例没有变；要更多，请补充数据。"
    return f"{needs}；{_what_was_done(available, allocated, total, short)}{advice}"


def _what_was_done(available: dict[str, int], allocated: dict[str, int], total: int, short: list[str]) -> str:
    filled = sum(allocated.values())
    repeated = [f"{label(name)} 平均重复 {allocated[name] / available[name]:.1f} 次" for name in short
                if available[name] and allocated[name] > available[name]]  # fmt: skip
    if allocated == available and filled < total:
        return f"全部来源合计也只有 {filled} 条，少于 --total {total}；"
    if filled < total:
        return f"总数缩到了 {filled} 条；"
    if repeated:
        return "，".join(repeated) + "；"
    others = "、".join(label(name) for name in allocated if name not in short)
    return f"其余用 {others} 补足；"


def label(name: str) -> str:
    return LABEL.get(name, name)


def delivered(allocated: dict[str, int]) -> dict[str, float]:
    """The share of each source in what was taken; 0 when nothing was."""
    return {name: n / max(1, sum(allocated.values())) for name, n in allocated.items()}


def held_out(available: dict[str, int], size: float) -> dict[str, int]:
    """``size`` below 1 is a share of each source, else a number, spread over the sources by their sizes; each keeps at
    least one record for training.
    """
    total = max(1, sum(available.values()))
    wanted = {name: n * size if size < 1 else n * size / total for name, n in available.items()}
    return {name: max(0, min(round(wanted[name]), n - 1)) for name, n in available.items()}


def draw(prints: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """prints: (records, 2) uint64. Return ``count`` indices in ascending order, all of them as often as goes, then some."""
    if not count:
        return np.zeros(0, np.int64)
    again, rest = divmod(count, len(prints))
    first = np.argsort(keys(prints, seed, f"draw {name}"), kind="stable")[:rest]
    return np.sort(np.concatenate([np.repeat(np.arange(len(prints)), again), first]))


def shuffled(prints: np.ndarray, seed: int) -> np.ndarray:
    """Return the order in which to write records: that of their keyed hashes. A record's copies are spread like others."""
    copies = _count_earlier(prints)
    return np.argsort(mix(keys(prints, seed, "shuffle") + copies.astype(np.uint64)), kind="stable")


def keys(prints: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """A random number for each record, uint64, of its fingerprint, the seed and the purpose."""
    salt = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return mix(prints[:, 0] ^ np.uint64(int.from_bytes(salt, "little")))


def _count_earlier(prints: np.ndarray) -> np.ndarray:
    """How many equal ones come before each."""
    order = np.argsort(prints[:, 0], kind="stable")
    ordered = prints[order, 0]
    new = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(prints)])
    counts = np.empty(len(prints), np.int64)
    counts[order] = np.arange(len(prints)) - np.repeat(new, np.diff(new, append=len(prints)))
    return counts
