"""Mix two sources in the share asked for, and say plainly when that share cannot be delivered.

allocate(available, total, hit_ratio) -> {"hit": n, "firefly": m}
split_eval(kept, size, seed) -> {"hit": [index, ...], "firefly": [...]}
pick(kept, held_out, allocated, seed) -> list[tuple[str, int]]     shuffled (source, index)
explain_share(available, allocated, total, hit_ratio) -> str | None    one sentence, None when the share is as asked
"""

import random


def allocate(available: dict[str, int], total: int | None, hit_ratio: float) -> dict[str, int]:
    """Return how many records to take of each source.

    With ``total``, HIT gets round(total * hit_ratio) and Firefly the rest; a source that is short gives all it has
    and the other fills up as far as it can. Without ``total`` everything is taken and the ratio is not applied.
    """
    if total is None:
        return dict(available)
    hit = min(round(total * hit_ratio), available["hit"])
    firefly = min(total - hit, available["firefly"])
    return {"hit": min(total - firefly, available["hit"]), "firefly": firefly}


def split_eval(kept: dict[str, int], size: float, seed: int) -> dict[str, list[int]]:
    """Choose held-out records, {source: sorted indices}: ``size`` below 1 is a share of each source, else a number.

    A number is spread over the sources by their sizes. Each source keeps at least one record for training, and the
    choice within a source depends on that source and the seed alone.
    """
    total = sum(kept.values())
    wanted = {name: n * size if size < 1 else n * size / max(1, total) for name, n in kept.items()}
    return {
        name: sorted(random.Random(f"{seed} eval {name}").sample(range(n), max(0, min(round(wanted[name]), n - 1))))
        for name, n in kept.items()
    }


def pick(
    kept: dict[str, int], held_out: dict[str, list[int]], allocated: dict[str, int], seed: int
) -> list[tuple[str, int]]:
    """Draw that many records of each source without replacement, none held out; the same seed, the same list."""
    rng = random.Random(seed)
    chosen = []
    for name in ("hit", "firefly"):
        barred = set(held_out[name])
        left = [i for i in range(kept[name]) if i not in barred]
        chosen += [(name, i) for i in rng.sample(left, allocated[name])]
    rng.shuffle(chosen)
    return chosen


def share(allocated: dict[str, int]) -> float:
    """HIT's share of what was taken; 0 when nothing was."""
    return allocated["hit"] / max(1, sum(allocated.values()))


def explain_share(
    available: dict[str, int], allocated: dict[str, int], total: int | None, hit_ratio: float
) -> str | None:
    """Say in one sentence why the mixture is not what was asked for and what to do; None when it is."""
    if total is None:
        best = largest_total(available, hit_ratio)
        advice = f"；要严格按比例，请加 --total {best}" if best else ""
        return f"没有给 --total，全部清洗后的数据都已使用，--hit-ratio {hit_ratio:g} 未生效{advice}。"
    wanted = round(total * hit_ratio)
    short = {"hit": wanted - available["hit"], "firefly": total - wanted - available["firefly"]}
    name = max(short, key=short.get)
    if short[name] <= 0:
        return None
    wanted_of = {"hit": wanted, "firefly": total - wanted}[name]
    other = {"hit": "Firefly", "firefly": "HIT"}[name]
    filled = sum(allocated.values())
    ending = f"其余用 {other} 补足" if filled == total else f"两个来源合计也只有 {filled} 条，少于 --total {total}"
    best = largest_total(available, hit_ratio)
    advice = f"；要保住比例，请改用 --total {best}，或补充数据" if best else "；请补充数据"
    return f"{name.upper() if name == 'hit' else 'Firefly'} 需要 {wanted_of} 条，只有 {available[name]} 条，{ending}{advice}。"


def largest_total(available: dict[str, int], hit_ratio: float) -> int:
    """A total, within one or two of the largest, at which ``allocate`` delivers ``hit_ratio`` as asked."""
    bounds = []
    if hit_ratio > 0:
        bounds.append(available["hit"] / hit_ratio)
    if hit_ratio < 1:
        bounds.append(available["firefly"] / (1 - hit_ratio))
    total = int(min(bounds) + 1e-9)
    while total > 0 and (
        round(total * hit_ratio) > available["hit"] or total - round(total * hit_ratio) > available["firefly"]
    ):
        total -= 1
    return total
