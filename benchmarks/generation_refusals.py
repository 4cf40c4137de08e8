"""Services that refuse (429) for reasons that differ, for bench_generation.py: what a client should do differs too."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

Plan = Callable[[int, str, int], Any]
_REFUSED = {"status": 429, "body": "engine overloaded"}


def services() -> Iterator[tuple[str, Plan, int | None, int, int]]:
    """Yield (name, plan, most in flight, concurrency asked for, topics)."""
    yield "随机拒绝 10 %", by_chance(0.1), None, 50, 3000
    yield "随机拒绝 10 %", by_chance(0.1), None, 200, 4000
    yield "随机拒绝 20 %", by_chance(0.2), None, 50, 2000
    yield "最多 39 个在途", by_chance(0.0), 39, 200, 2000
    yield "最多 39 个在途，又随机拒绝 10 %", by_chance(0.1), 39, 200, 2000
    yield "每秒 100 个", by_rate(100), None, 50, 1500
    yield "每秒 40 个", by_rate(40), None, 50, 800


def by_chance(share: float) -> Plan:
    rng = random.Random(0)
    return lambda *_: _REFUSED if rng.random() < share else None


def by_rate(per_s: float, saved: float = 10.0) -> Plan:
    """A token bucket: ``per_s`` requests a second, and as many as ``saved`` at once after a pause."""
    tokens, since = saved, time.monotonic()

    def plan(*_: Any) -> Any:
        nonlocal tokens, since
        now = time.monotonic()
        tokens, since = min(saved, tokens + (now - since) * per_s), now
        if tokens < 1:
            return _REFUSED | {"delay_s": 0.005}
        tokens -= 1
        return None

    return plan
