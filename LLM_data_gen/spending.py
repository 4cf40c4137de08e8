"""What a run may cost and has cost: the price, the totals of all runs, the budget, and --dry-run.

settle_price(args, teacher, say) -> Price | None
Totals: of entries of the journal, or of one run
dry_run(args, teacher, output, todo, price)           says what it would ask and what that would cost
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sft_data.errors import UserError

from .cost import TOKENS_PER_CHAR, Price, Range, cost_of, describe_money, estimate, load_prices, price_of
from .output import Output
from .prompt import MOST_PER_REQUEST, build_messages
from .settings import Teacher
from .variety import angles

_ENOUGH = 20  # answers from which their mean cost says more than the estimate


@dataclass
class Totals:
    """``estimated``: answers whose service did not say what they used."""

    answers: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    currency: str | None = None

    def add(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Take in an entry of the journal, and hand it on."""
        self.answers += 1
        self.estimated += bool(entry.get("usage_estimated"))
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + entry["usage"].get(name, 0))
        if entry.get("cost"):
            self.cost, self.currency = self.cost + entry["cost"], entry["currency"]
        return entry

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"cost": round(self.cost, 6) if self.currency else None}

    def __str__(self) -> str:
        tokens = f"{(self.prompt_tokens + self.completion_tokens) / 1000:.0f}k token"
        return f"{tokens} {describe_money(self.cost, self.currency)}" if self.currency else tokens


def settle_price(args: argparse.Namespace, teacher: Teacher, say: Callable[[str], None]) -> Price | None:
    price = price_of(load_prices(args.prices), teacher.base_url, teacher.model)
    if price is None and args.budget is not None:
        raise UserError(
            f"--budget {args.budget:g}：价格表里没有 {teacher.base_url} 的 {teacher.model}，算不出花费；"
            "请在 LLM_data_gen/prices.json 里加上，或用 --prices 给出。"
        )
    if price is None and not teacher.is_local:
        say(f"提示：价格表里没有 {teacher.model}，只统计 token，不算钱。")
    return price


def price_entry(entry: dict[str, Any], messages: list[dict[str, str]], price: Price | None, sent: datetime) -> None:
    """Write into the entry what the answer cost at the hour it was asked; what the service did not say it used is estimated."""
    if not any(entry["usage"].values()):
        said = len(entry["text"]) + len(entry.get("reasoning", ""))
        asked = sum(len(message["content"]) for message in messages)
        counts = (("prompt_tokens", asked), ("completion_tokens", said))
        entry["usage"] = {name: round(chars * TOKENS_PER_CHAR.likely) for name, chars in counts}
        entry["usage_estimated"] = True
    if price:
        entry["cost"] = round(cost_of(price, entry["usage"], sent), 8)
        entry["currency"] = price.currency


def over_budget(budget: float | None, totals: Totals, asking: int, likely: float) -> bool:
    """Tell whether one request more, with ``asking`` not answered yet, would pass the budget."""
    if budget is None:
        return False
    mean = totals.cost / totals.answers if totals.answers >= _ENOUGH else likely
    return totals.cost + (asking + 1) * mean > budget


def likely_cost(args: argparse.Namespace, teacher: Teacher, price: Price | None) -> float:
    """Of one request."""
    plan = _estimate(args, teacher, price, "主题" * 8, 1)
    return plan.cost.likely / plan.calls if plan.cost else 0.0


def dry_run(
    args: argparse.Namespace, teacher: Teacher, output: Output, todo: list[str], price: Price | None,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    plan = _estimate(args, teacher, price, max(todo, key=len), len(todo))
    say(
        f"要问 {len(todo)} 个主题，每个 {args.n_per_topic} 条，已有 {len(output)} 条；至少 {plan.calls} 次请求，没有发出任何请求。"
    )
    say(f"估计输入 {_range(plan.prompt_tokens)} token，输出 {_range(plan.completion_tokens)} token（最少–多半–最多）。")
    if plan.cost:
        low, likely, high = (describe_money(value, plan.currency) for value in plan.cost)
        say(f"按 {price.page_date} 的价格（{price.source}），估计 {low} – {likely} – {high}。")
    return 0


def _estimate(args: argparse.Namespace, teacher: Teacher, price: Price | None, topic: str, topics: int) -> Any:
    asked = min(args.n_per_topic, MOST_PER_REQUEST)
    messages = build_messages(topic, asked, (), angles(topic, asked), args.json_mode)
    chars = sum(len(message["content"]) for message in messages)
    now = datetime.now().astimezone()
    return estimate(topics, args.n_per_topic, MOST_PER_REQUEST, chars, bool(teacher.thinking), price, now)


def _range(tokens: Range) -> str:
    return " – ".join(f"{round(value):,}" for value in tokens)
