"""Which of two models is ahead on the same questions: the exact sign test, its interval, and a sentence that claims no more.

Who is ahead is said by the questions on which the two differ alone. Under "neither is better" each of them is a fair
coin, and the share of wins among them has the exact interval of Clopper and Pearson. By how much also depends on how
many questions differ, which has such an interval too: the bounds of the difference are the worst of both. Test and
interval come from the same binomial tails and always agree: the interval excludes 0 exactly when p < alpha.
"""

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Comparison:
    """``net`` is (wins - losses) / total with its interval ``low``..``high`` at level 1 - ``alpha``."""

    wins: int
    ties: int
    losses: int
    net: float
    low: float
    high: float
    p_value: float
    alpha: float

    @property
    def verdict(self) -> str:
        """ "better" or "worse" when the interval supports it, else "unclear"."""
        return "unclear" if self.low <= 0 <= self.high else "better" if self.low > 0 else "worse"

    def to_json(self) -> dict:
        return {**asdict(self), "verdict": self.verdict}


def compare(wins: int, losses: int, total: int, alpha: float = 0.05) -> Comparison:
    """Compare by wins and losses over ``total`` questions; the rest are ties. Divide ``alpha`` by the number of comparisons."""
    low, high = (2 * share - 1 for share in share_interval(wins, wins + losses, alpha))
    least, most = share_interval(wins + losses, total, alpha)
    return Comparison(
        wins=wins,
        ties=total - wins - losses,
        losses=losses,
        net=(wins - losses) / total if total else 0.0,
        low=low * (least if low > 0 else most),
        high=high * (most if high > 0 else least),
        p_value=sign_test(wins, losses),
        alpha=alpha,
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p: how often fair coins would fall as unevenly as this or more."""
    return min(1.0, 2 * _lower_tail(min(wins, losses), _log_choose(wins + losses), 0.5))


def share_interval(hits: int, total: int, alpha: float = 0.05) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share at level 1 - ``alpha``; (0, 1) when there is nothing to count."""
    return 1 - _upper_bound(total - hits, total, alpha), _upper_bound(hits, total, alpha)


def _upper_bound(hits: int, total: int, alpha: float) -> float:
    """The p at which as few as ``hits`` of ``total`` become a chance of alpha / 2."""
    if hits == total:
        return 1.0
    logs, low, high = _log_choose(total), 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _lower_tail(hits, logs, middle) > alpha / 2:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _log_choose(total: int) -> list[float]:
    return [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(total + 1)]


def _lower_tail(hits: int, log_choose: list[float], p: float) -> float:
    """P(X <= hits) of a binomial."""
    total, yes, no = len(log_choose) - 1, math.log(p), math.log1p(-p)
    return math.fsum(math.exp(log_choose[k] + k * yes + (total - k) * no) for k in range(hits + 1))


def say(name: str, against: str, result: Comparison, what: str, comparisons: int = 1) -> str:
    """One Chinese sentence: who is ahead and by how much, or that the interval does not allow to say."""
    if not result.wins + result.losses:
        return f"{what}：不能说 {name} 与 {against} 有高下（没有一题分出胜负）。"
    level = f"{100 * (1 - result.alpha):.4g}%"
    figures = (
        f"差 {100 * result.net:+.1f} 个百分点，{level} 区间 [{100 * result.low:+.1f}, {100 * result.high:+.1f}]，"
        f"符号检验 p={result.p_value:.2g}"
    )
    if comparisons > 1:
        figures += f"，区间已按 {comparisons} 次比较校正"
    if result.verdict == "unclear":
        return f"{what}：不能说 {name} 与 {against} 有高下（{figures}；区间含 0）。"
    return f"{what}：{name} {'好于' if result.verdict == 'better' else '差于'} {against}（{figures}）。"
