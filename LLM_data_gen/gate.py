"""What all requests share: how many may be in flight, and when everyone must wait.

    await gate.enter() ... gate.leave()       a slot for one request; Stopped once stop() was called
    gate.succeeded() / gate.failed(...)       what the request met
    await gate.sleep(seconds)                 a jittered wait that stop() cuts short

Two ideas. Busy (429) lowers the number in flight by a quarter, once for each round trip, and every success raises it
a little: additive increase, multiplicative decrease. Failures in a row, from whichever topics, mean that the service
is down and not that a request is bad: everyone waits, one probe at a time goes out, and no topic pays a try for it.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

from sft_data.errors import UserError

_FAILING = 5  # so many requests failing, with no success between them, make an outage
_FAILING_AT_LEAST = 3  # with fewer in flight; one or two bad requests alone must never look like an outage
_LONGEST_PAUSE_S = 30
_FIRST_PATIENCE_S = 30  # for a run that has had no answer at all: most likely a wrong address, so do not wait long


class Stopped(Exception):
    """The run is stopping: send nothing more."""


class Gate:
    def __init__(self, limit: int, retry_wait_s: float, max_outage_s: float, say: Callable[[str], None]):
        self.limit = float(limit)
        self._most, self._retry_wait_s, self._max_outage_s, self._say = limit, retry_wait_s, max_outage_s, say
        self.in_flight = 0
        self._room = asyncio.Event()
        self._stop = asyncio.Event()
        self._rng = random.Random(0)
        self._paused_until = 0.0
        self._lowered_at = 0.0
        self._failing: set[int] = set()  # requests that failed since the last success of any
        self._probes = 0
        self._told_to_wait = 0.0
        self._down_since: float | None = None  # set while the service is down
        self._answered = False

    async def enter(self) -> None:
        """Wait for a slot and for the end of any pause, then take the slot."""
        while True:
            if self._stop.is_set():
                raise Stopped
            pause = self._paused_until - time.monotonic()
            if pause > 0:
                await self._wait(self._stop, pause)
            elif self.in_flight < (1 if self._down_since is not None else int(self.limit)):
                self.in_flight += 1
                return
            else:
                self._room.clear()
                await self._room.wait()

    def leave(self) -> None:
        self.in_flight -= 1
        self._room.set()

    def stop(self) -> None:
        """Let nothing more out; whoever waits gets Stopped."""
        self._stop.set()
        self._room.set()

    async def sleep(self, seconds: float) -> None:
        await self._wait(self._stop, seconds * self._rng.uniform(0.5, 1.5))
        if self._stop.is_set():
            raise Stopped

    def succeeded(self) -> None:
        if self._down_since is not None:
            self._say(f"服务已恢复，停了 {time.monotonic() - self._down_since:.0f} 秒。")
            self._down_since = None
        self._answered, self._probes = True, 0
        self._failing.clear()
        self.limit = min(self._most, self.limit + 1 / self.limit)

    def failed(self, request: int, reason: str, sent_at: float, busy: bool, retry_after: float | None) -> bool:
        """Note that ``request`` (its number) failed. True: the service is down, so the request keeps its tries.

        Raises UserError when the service has been down for too long.
        """
        now = time.monotonic()
        if busy and sent_at > self._lowered_at:
            self.limit = max(1.0, min(self.limit, self.in_flight + 1) * 0.75)
            self._lowered_at = now
        if retry_after:
            self._paused_until = max(self._paused_until, now + min(retry_after, self._max_outage_s))
        self._failing.add(request)
        if len(self._failing) < max(_FAILING_AT_LEAST, min(_FAILING, self._most)):
            return False
        if self._down_since is None:
            self._down_since, self._probes, self._told_to_wait = now, 0, 0.0
            self._say(f"服务连续失败，全体暂停，之后逐个试探：{reason}")
        elif sent_at < self._down_since:
            return True  # was in flight when the outage began: tells nothing new
        self._give_up_after_long(now, reason, retry_after or 0.0)
        pause = min(self._retry_wait_s * 2**self._probes, _LONGEST_PAUSE_S) * self._rng.uniform(0.9, 1.1)
        self._probes += 1
        self._paused_until = max(self._paused_until, now + pause)
        return True

    def _give_up_after_long(self, now: float, reason: str, told_to_wait: float) -> None:
        """Raise UserError when the outage has outlasted our patience; waiting that we were told to do is not counted."""
        patience = self._max_outage_s if self._answered else min(_FIRST_PATIENCE_S, self._max_outage_s)
        down = now - self._down_since
        if down - self._told_to_wait <= patience:
            self._told_to_wait += told_to_wait
            return
        raise UserError(
            f"服务连续 {down:.0f} 秒没有给出回答（{reason}）；"
            "已完成的都已保存，请检查 --base-url 和网络，稍后用同一条命令继续。"
        )

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
