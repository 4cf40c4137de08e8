"""What all requests share: how many may be in flight, and when everyone must wait.

    await gate.enter() ... gate.leave()       a slot for one request; Stopped once stop() was called
    gate.succeeded() / gate.failed(...)       what the request met
    await gate.sleep(seconds) / rest(seconds) a jittered wait that stop() cuts short

Two ideas. The number in flight starts at 64 and trebles every round trip until the service is busy (429) for the first time;
then it falls to what the service bears, rises by one a round trip, and falls by a third of the share of the round trip's
requests that were refused: slow start, additive increase, multiplicative decrease as DCTCP has it (Alizadeh et al. 2010),
which stays close under a cap. Some services refuse a share of all requests whatever their number: when refusals go on, half
as many are let out for a while, and if about as large a share of them is refused, only what is refused beyond it counts.
Failures in a row, from whichever topics, mean that the service is down and not that a request is bad: everyone waits, one
probe at a time goes out, and no topic pays a try for it.
"""

import asyncio
import collections
import contextlib
import dataclasses
import random
import time
from collections.abc import Callable

from sft_data.errors import UserError

_FIRST = 64  # in flight before anything is known of the service
_FAILING = 5  # so many requests failing, with no success between them, make an outage
_FAILING_AT_LEAST = 3  # with fewer in flight; one or two bad requests alone must never look like an outage
_LONGEST_PAUSE_S = 30
_LONGEST_REST_S = 8
_LONGEST_RETRY_S = 4
_FIRST_PATIENCE_S = 30  # for a run that has had no answer at all: most likely a wrong address, so do not wait long
_CHANCE = (0.05, 0.3)  # shares refused that may be chance: fewer do no harm, more are too many in any case
_TRIAL_ANSWERS = 100
_TRIAL_EVERY = 50  # round trips
_FEWEST_TRIED = 8  # in flight: of fewer there is no half to speak of


class Stopped(Exception):
    """The run is stopping: send nothing more."""


@dataclasses.dataclass
class _Trial:
    """limit: before it; share: refused of those sent then, 0 until it is known. draining: those sent before are not answered yet."""

    limit: float
    share: float = 0.0
    draining: bool = False
    answers: int = 0
    refused: int = 0


class Gate:
    def __init__(self, limit: int, retry_wait_s: float, max_outage_s: float, say: Callable[[str], None]):
        self.limit = float(min(limit, _FIRST))
        self._most, self._retry_wait_s, self._max_outage_s, self._say = limit, retry_wait_s, max_outage_s, say
        self.in_flight = self._resting = 0
        self._waiting: collections.deque[asyncio.Future] = collections.deque()
        self._stop = asyncio.Event()
        self._rng = random.Random(0)
        self._growing, self._burst = True, False  # no 429 so far; the round trip of the first ones
        self._paused_until = 0.0
        self._began, self._answers, self._refused, self._share, self._floor = 0.0, 0, 0, 0.0, 1.0  # of the round trip
        self._chance = 0.0  # share that is refused whatever the number in flight
        self._trial: _Trial | None = None
        self._since_trial = _TRIAL_EVERY
        self._failing: set[int] = set()  # requests that failed since the last success of any
        self._probes = 0
        self._told_to_wait = 0.0
        self._down_since: float | None = None  # set while the service is down
        self._answered, self._succeeded_at = False, 0.0
        self._answer_s = 0.0  # how long an answer takes, roughly

    @property
    def _patience_s(self) -> float:
        return self._max_outage_s if self._answered else min(_FIRST_PATIENCE_S, self._max_outage_s)

    @property
    def open_slots(self) -> int:
        """How many more may go out now."""
        return (1 if self._down_since is not None else int(self.limit)) - self.in_flight - self._resting

    async def enter(self) -> None:
        """Wait for a slot and for the end of any pause, then take the slot."""
        while True:
            if self._stop.is_set():
                raise Stopped
            pause = self._paused_until - time.monotonic()
            if pause > 0:
                await self._wait(self._stop, pause)
            elif self.open_slots > 0:
                self.in_flight += 1
                return
            else:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                try:
                    await turn
                except asyncio.CancelledError:
                    if turn.done() and not turn.cancelled():
                        self._wake(1)  # hands the turn on
                    raise

    def leave(self) -> None:
        self.in_flight -= 1
        self._wake(self.open_slots)

    def lower(self, most: int) -> None:
        """Never let more than so many out at once, at least one."""
        self._most = max(1, most)
        self.limit = min(self.limit, float(self._most))

    def stop(self) -> None:
        """Let nothing more out; whoever waits gets Stopped."""
        self._stop.set()
        self._wake(len(self._waiting))

    async def sleep(self, seconds: float) -> None:
        await self._wait(self._stop, seconds * self._rng.uniform(0.5, 1.5))
        if self._stop.is_set():
            raise Stopped

    async def rest(self, times: int) -> None:
        """The wait of a request that was refused as one too many: four times what an answer takes, the first of ``times``, then
        longer. It keeps its slot meanwhile, or the next one would take it and be refused in a millisecond; but for those of
        the first burst, which were far too many, and of those refused by chance.
        """
        kept = not self._burst and (not self._chance or self._share > self._chance + _CHANCE[0])
        self._resting += kept
        seconds = min(4 * self._answer_s, self._retry_wait_s) if self._answer_s else self._retry_wait_s
        try:
            await self.sleep(
                max(min(seconds * 2 ** min(times - 1, 10), _LONGEST_RETRY_S), min(self._answer_s, _LONGEST_REST_S))
            )
        finally:
            self._resting -= kept
            self._wake(self.open_slots)

    def succeeded_since(self, when: float) -> bool:
        """Whether any request has been answered since then: if so, who fails fails alone, and need not wait ever longer."""
        return self._succeeded_at >= when

    def succeeded(self, sent_at: float = 0.0) -> None:
        if self._down_since is not None:
            self._say(f"服务已恢复，停了 {time.monotonic() - self._down_since:.0f} 秒。")
            self._down_since = None
        self._answered, self._probes, self._succeeded_at = True, 0, time.monotonic()
        self._failing.clear()
        if sent_at:
            self._answer_s = 0.8 * self._answer_s + 0.2 * (time.monotonic() - sent_at)
        self.limit = min(self._most, self.limit + (2 if self._growing else 1 / self.limit))
        self._round_trip(sent_at, busy=False)

    def failed(
        self, request: int, reason: str, sent_at: float, busy: bool, retry_after: float | None, cap: int | None = None
    ) -> bool:
        """Note that ``request`` (its number) failed. True: the service is down, so the request keeps its tries.

        cap: the most in flight that the service says it bears. Raises UserError when it has been down for too long.
        """
        now = time.monotonic()
        if cap and cap < self._most:
            self._say(f"服务说同时最多 {cap} 个请求，并发数降到 {cap}。")
            self.lower(cap)
        if busy:
            self._round_trip(sent_at, busy=True)
        if retry_after:
            self._paused_until = max(self._paused_until, now + min(retry_after, self._max_outage_s))
        self._failing.add(request)
        if len(self._failing) < max(_FAILING_AT_LEAST, min(_FAILING, self._most)) or (busy and self.in_flight):
            return False  # who is busy with others of ours is not down
        if self._down_since is None:
            self._down_since, self._probes, self._told_to_wait = now, 0, 0.0
            self._say(f"服务连续失败，全体暂停，之后逐个试探，最多等 {self._patience_s:g} 秒：{reason}")
        elif sent_at < self._down_since:
            return True  # was in flight when the outage began: tells nothing new
        self._give_up_after_long(now, reason, retry_after or 0.0)
        pause = min(self._retry_wait_s * 2**self._probes, _LONGEST_PAUSE_S) * self._rng.uniform(0.9, 1.1)
        self._probes += 1
        self._paused_until = max(self._paused_until, now + pause)
        return True

    def _round_trip(self, sent_at: float, busy: bool) -> None:
        """Count the answer; at the end of a round trip, lower by what was refused in it. A refusal comes at once, so it is the
        first success sent in the round trip that ends it, or as many answers as are allowed in flight.
        """
        if busy and self._growing:  # the first burst that is refused tells how many the service does bear
            self._growing, self._burst, self._floor = False, True, max(1.0, min(self.limit, self.in_flight + 1) * 0.5)
            self._began, self._answers, self._refused = time.monotonic(), 0, 0
        if busy and self._burst:
            self.limit = max(self._floor, min(self.limit, float(self.in_flight)))
        self._answers += 1
        self._refused += busy
        if (not busy and sent_at > self._began) or self._answers > 2 * self.limit + 1:
            self._share = (self._share + self._refused / self._answers) / 2
            self._since_trial += 1
            if self._trial:
                self._go_on_with_trial(self._trial)
            elif not self._burst:
                self._lower()
            self._began, self._answers, self._refused, self._burst = time.monotonic(), 0, 0, False

    def _lower(self) -> None:
        if self._share < self._chance / 3:
            self._chance = 0.0
        if self._refused:
            self.limit = max(1.0, self.limit * (1 - max(0.0, self._share - self._chance) / 3))
        if self._share >= _CHANCE[0] and self.limit >= _FEWEST_TRIED and self._since_trial >= _TRIAL_EVERY:
            self._trial = _Trial(self.limit)

    def _go_on_with_trial(self, trial: "_Trial") -> None:
        """Count enough answers as it is, then, once those sent before are answered, enough with half as many in flight."""
        self.limit = min(float(self._most), trial.limit / 2 if trial.share else trial.limit)
        if trial.draining:
            trial.draining = False
            return
        trial.answers, trial.refused = trial.answers + self._answers, trial.refused + self._refused
        if trial.answers < _TRIAL_ANSWERS:
            return
        share = trial.refused / trial.answers
        if not trial.share and _CHANCE[0] <= share <= _CHANCE[1]:
            self._trial = _Trial(trial.limit, share, draining=True)
            self.limit = min(self.limit, trial.limit / 2)
            return
        self._trial, self._since_trial = None, 0
        if not trial.share:
            return
        chance = (share + trial.share) / 2 if share >= trial.share / 2 else 0.0
        if chance and not self._chance:
            self._say(f"提示：服务拒绝约 {chance:.0%} 的请求（429），与并发数无关，不因此降低并发。")
        self._chance = chance
        self.limit = min(float(self._most), trial.limit if chance else trial.limit * (1 - trial.share))
        self._wake(self.open_slots)

    def _give_up_after_long(self, now: float, reason: str, told_to_wait: float) -> None:
        """Raise UserError when the outage has outlasted our patience; waiting that we were told to do is not counted."""
        down = now - self._down_since
        if down - self._told_to_wait <= self._patience_s:
            self._told_to_wait += told_to_wait
            return
        raise UserError(
            f"服务连续 {down:.0f} 秒没有给出回答（{reason}）；"
            "已完成的都已保存，请检查 --base-url 和网络，稍后用同一条命令继续。"
        )

    def _wake(self, most: int) -> None:
        """Give the turn to those who wait longest. One that finds no slot waits again."""
        while most > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled
                turn.set_result(None)
                most -= 1

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
