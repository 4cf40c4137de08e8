"""What the teacher's answers cost: prices from prices.json, usage as the services report it, an estimate beforehand.

load_prices(path) -> Prices                     UserError names the file and the key that is wrong
price_of(prices, base_url, model) -> Price      None where it is not known: then tokens are all there is to say
usage_of(response["usage"]) -> dict             prompt_tokens, cached_tokens (part of them), completion_tokens
cost_of(price, usage, at) -> float              in price.currency; ``at``: when the request was sent
is_peak(price, at) -> bool
estimate(...) -> Estimate                       calls, tokens and cost, low / likely / high
describe_money(value, currency) -> str          ¥1.23, $0.0042
"""

import json
import math
import re
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sft_data.errors import UserError

from .settings import is_local

PRICES_FILE = Path(__file__).with_name("prices.json")
_SYMBOLS = {"CNY": "¥", "USD": "$"}


class Range(NamedTuple):
    low: float
    likely: float
    high: float


# Where the numbers of an estimate come from.
# Tokens a Chinese character: 0.6 says DeepSeek (quick_start/token_usage), 1/1.6 Zhipu (guide/start/pricing), 2026-11.
TOKENS_PER_CHAR = Range(0.6, 0.65, 0.7)
# Characters a sample, the three fields together. 800 real HIT records: mean 416, and 347 for the leanest 5 % of
# groups of six. High: the longest that prompt.py asks for, 150 + 200 + 800 (the gates would let 1,700 pass).
CHARS_PER_SAMPLE = Range(350, 420, 1150)
# Names, quotes, braces and indentation of one JSON object: 66 characters on the same records, at 0.3 to 0.6.
TOKENS_OF_JSON = Range(20, 30, 40)
# Tokens of thought a call. An assumption, not a measurement; high is half of what prompt.py allows for it.
TOKENS_OF_THINKING = Range(500, 2000, 8000)
# Calls for each one planned: rejected and missing samples are asked for again. 1.3 is the bound the project holds.
CALLS_PER_PLANNED = Range(1.0, 1.1, 1.3)


class Rates(NamedTuple):
    """Per million tokens."""

    input: float
    cached_input: float
    output: float


@dataclass(frozen=True)
class PeakHours:
    """Hours are minutes since midnight in ``zone``, the end not included; weekdays 1 (Monday) to 7."""

    zone: tzinfo
    weekdays: frozenset[int]
    hours: tuple[tuple[int, int], ...]
    holidays: frozenset[date] = frozenset()


@dataclass(frozen=True)
class Price:
    provider: str
    currency: str
    source: str
    page_date: str
    rates: Rates
    peak_rates: Rates | None = None
    peak_hours: PeakHours | None = None


@dataclass(frozen=True)
class Prices:
    """``entries``: (host, model name with *, price)."""

    checked: str
    entries: tuple[tuple[str, str, Price], ...]


@dataclass(frozen=True)
class Estimate:
    """``calls`` are those planned; tokens and cost allow for some being repeated. No price, no cost."""

    calls: int
    prompt_tokens: Range
    completion_tokens: Range
    cost: Range | None
    currency: str | None


def price_of(prices: Prices, base_url: str, model: str) -> Price | None:
    """Return the price of ``model`` at this address, by the longest name that fits; None when it is not listed."""
    if is_local(base_url):
        return None
    host, model = urlsplit(base_url).hostname or "", model.lower()
    fits = [(len(name), price) for at, name, price in prices.entries if at == host and fnmatchcase(model, name)]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None


def usage_of(response_usage: Any) -> dict[str, int]:
    """Read a service's usage object, whatever its dialect. What is missing or is no count is 0.

    Cached tokens: prompt_tokens_details (OpenAI, Qwen, GLM), input_tokens_details (Responses API),
    prompt_cache_hit_tokens (DeepSeek), cached_tokens (Moonshot). All of them are part of the prompt's tokens.
    """
    if not isinstance(response_usage, dict):
        return {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
    get = response_usage.get
    prompt = _count(get("prompt_tokens")) or _count(get("input_tokens"))
    completion = _count(get("completion_tokens")) or _count(get("output_tokens"))
    cached = _count(get("prompt_cache_hit_tokens")) or _count(get("cached_tokens"))
    details = get("prompt_tokens_details") or get("input_tokens_details")
    if isinstance(details, dict):
        cached = cached or _count(details.get("cached_tokens"))
    return {"prompt_tokens": prompt, "cached_tokens": min(cached, prompt), "completion_tokens": completion}


def _count(value: Any) -> int:
    return int(value) if type(value) in (int, float) and 0 < value < 1e15 else 0  # not isinstance: True is an int too


def is_peak(price: Price, at: datetime) -> bool:
    """Tell whether ``at`` (naive: this machine's local time) lies in the provider's peak hours."""
    peak = price.peak_hours
    if peak is None or price.peak_rates is None:
        return False
    there = at.astimezone(peak.zone)
    if there.isoweekday() not in peak.weekdays or there.date() in peak.holidays:
        return False
    minute = there.hour * 60 + there.minute
    return any(start <= minute < end for start, end in peak.hours)


def cost_of(price: Price, usage: dict[str, int], at: datetime) -> float:
    """Return what ``usage`` costs in ``price.currency``, at the hour ``at`` which the request was sent."""
    rates = price.peak_rates if is_peak(price, at) else price.rates
    prompt = usage.get("prompt_tokens", 0)
    cached = min(usage.get("cached_tokens", 0), prompt)
    tokens = (prompt - cached, cached, usage.get("completion_tokens", 0))
    return sum(count * rate for count, rate in zip(tokens, rates, strict=True)) / 1e6


def estimate(
    topics: int,
    n_per_topic: int,
    per_request: int,
    prompt_chars: int,
    thinking: bool,
    price: Price | None,
    at: datetime,
) -> Estimate:
    """Estimate a run before it spends anything. ``prompt_chars``: of one request; no cache hits are counted on.

    The price is that of the hour ``at`` throughout, however long the run takes.
    """
    calls, samples = topics * math.ceil(n_per_topic / per_request), topics * n_per_topic
    prompt, completion = [], []
    for level in range(3):
        per_char, thought = TOKENS_PER_CHAR[level], TOKENS_OF_THINKING[level] if thinking else 0
        per_sample = CHARS_PER_SAMPLE[level] * per_char + TOKENS_OF_JSON[level]
        prompt.append(round(calls * prompt_chars * per_char * CALLS_PER_PLANNED[level]))
        completion.append(round((samples * per_sample + calls * thought) * CALLS_PER_PLANNED[level]))
    cost = None
    if price:
        usages = [{"prompt_tokens": p, "completion_tokens": c} for p, c in zip(prompt, completion, strict=True)]
        cost = Range(*(cost_of(price, usage, at) for usage in usages))
    return Estimate(calls, Range(*prompt), Range(*completion), cost, price.currency if price else None)


def describe_money(value: float, currency: str) -> str:
    """Write an amount to read: two decimals, four when it is small."""
    if 0 < value < 0.00005:
        return f"不到 {describe_money(0.0001, currency)}"
    amount = f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.4f}"
    symbol = _SYMBOLS.get(currency)
    return f"{symbol}{amount}" if symbol else f"{amount} {currency}"


def load_prices(path: Path | None = None) -> Prices:
    """Read a price file, the project's own when no ``path`` is given. What it must hold is said in its "about"."""
    path = path or PRICES_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}：找不到价格文件；请检查 --prices 的路径，或不给它，用自带的价格。") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}：不是 UTF-8 编码的文本；请另存为 UTF-8。") from None
    except (ValueError, RecursionError) as error:
        where = f"（第 {error.lineno} 行）" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}：不是合法的 JSON{where}；请对照自带的 {PRICES_FILE.name} 改正。") from None
    try:
        top = _Keys("", data, {"checked", "providers"}, {"about"})
        providers = [_provider(f"providers[{i}]", item) for i, item in enumerate(top.items("providers"))]
        return Prices(top.date("checked"), tuple(entry for entries in providers for entry in entries))
    except _WrongKey as error:
        raise UserError(f"{path}：{error}；请对照自带的 {PRICES_FILE.name} 改正。") from None


def _provider(where: str, data: Any) -> list[tuple[str, str, Price]]:
    keys = _Keys(where, data, {"name", "hosts", "currency", "source", "models"}, {"note", "peak_hours"})
    hours = _peak_hours(f"{where}.peak_hours", data["peak_hours"]) if "peak_hours" in data else None
    hosts = [host.lower() for host in keys.items("hosts", str)]
    entries = []
    for number, item in enumerate(keys.items("models")):
        at = f"{where}.models[{number}]"
        model = _Keys(at, item, {"names", "input", "output", "page_date"}, {"cached_input", "peak", "source", "note"})
        peak = None
        if "peak" in item:
            if hours is None:
                raise _WrongKey(f"{at}.peak 有高峰价，但 {where} 没有 peak_hours")
            peak = _Keys(f"{at}.peak", item["peak"], {"input", "output"}, {"cached_input"}).rates()
        source = (model if "source" in item else keys).text("source")
        about = keys.text("name"), keys.text("currency"), source, model.date("page_date")
        price = Price(*about, model.rates(), peak, hours if peak else None)
        entries += [(host, name.lower(), price) for host in hosts for name in model.items("names", str)]
    return entries


def _peak_hours(where: str, data: Any) -> PeakHours:
    keys = _Keys(where, data, {"time_zone", "weekdays", "hours"}, {"holidays"})
    if not re.fullmatch(r"[+-]([01]\d|2[0-3]):[0-5]\d", keys.text("time_zone")):
        raise _WrongKey(f"{where}.time_zone 应写成 +08:00 的样子")
    zone = datetime.fromisoformat("2000-01-01T00:00:00" + keys.text("time_zone")).tzinfo
    weekdays = keys.items("weekdays", int)
    if not all(1 <= day <= 7 for day in weekdays):
        raise _WrongKey(f"{where}.weekdays 应是 1（星期一）到 7 的整数")
    hours = []
    for text in keys.items("hours", str):
        match = re.fullmatch(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", text)
        start, end = (int(match[i]) * 60 + int(match[i + 1]) for i in (1, 3)) if match else (0, 0)
        if not start < end <= 24 * 60:
            raise _WrongKey(f"{where}.hours 里的 {text!r} 应写成 09:00-12:00 的样子，起点在终点之前")
        hours.append((start, end))
    try:
        holidays = (
            frozenset(map(date.fromisoformat, keys.items("holidays", str))) if "holidays" in data else frozenset()
        )
    except ValueError:
        raise _WrongKey(f"{where}.holidays 里的日期应写成 2026-10-01 的样子") from None
    return PeakHours(zone, frozenset(weekdays), tuple(hours), holidays)


_KINDS = {dict: "对象", str: "字符串", int: "整数"}
_MOST = 1_000_000  # per million tokens; more is a slip of the pen


class _WrongKey(Exception):
    """Says which key of a price file is wrong, and how."""


class _Keys:
    """Reads the keys of one object and raises _WrongKey for those that are missing, unknown or of the wrong kind.

    Unknown keys are refused: a misspelt "peak" would make a run look half as dear as it is.
    """

    def __init__(self, where: str, data: Any, needed: set[str], allowed: set[str]):
        self.prefix, self.data = where and f"{where}.", data
        if not isinstance(data, dict):
            raise _WrongKey(f"{where or '最外层'} 应是一个 JSON 对象")
        if missing := sorted(needed - data.keys()):
            raise _WrongKey(f"缺少 {self.prefix}{missing[0]}")
        if unknown := sorted(data.keys() - needed - allowed):
            raise _WrongKey(f"不认识 {self.prefix}{unknown[0]}")

    def text(self, key: str) -> str:
        value = self.data[key]
        if not isinstance(value, str) or not value.strip():
            raise _WrongKey(f"{self.prefix}{key} 应是非空的字符串")
        return value

    def date(self, key: str) -> str:
        try:
            return date.fromisoformat(self.text(key)).isoformat()
        except ValueError:
            raise _WrongKey(f"{self.prefix}{key} 应是 2026-11-26 这样的日期") from None

    def items(self, key: str, kind: type = dict) -> list[Any]:
        value = self.data[key]
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise _WrongKey(f"{self.prefix}{key} 应是由{_KINDS[kind]}组成的数组")
        return value

    def rates(self) -> Rates:
        given = {key: self.data[key] for key in Rates._fields if key in self.data}
        for key, value in given.items():
            if type(value) not in (int, float) or not 0 <= value <= _MOST:
                raise _WrongKey(f"{self.prefix}{key} 应是 0 到 {_MOST} 的数")
        return Rates(**{"cached_input": given["input"], **given})
