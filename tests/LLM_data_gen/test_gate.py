import asyncio
import random
import statistics
import time

import pytest

from LLM_data_gen import gate as gate_module
from LLM_data_gen.gate import Gate, Stopped
from sft_data.errors import UserError


def gate(limit=50, retry_wait_s=0.01, max_outage_s=60.0):
    said = []
    return Gate(limit, retry_wait_s, max_outage_s, said.append), said


def fail(gate, request, busy=False, retry_after=None):
    return gate.failed(request, "HTTP 503", time.monotonic(), busy, retry_after)


def test_no_more_than_the_limit_are_let_in():
    async def run():
        g, _ = gate(limit=2)
        await g.enter()
        await g.enter()
        third = asyncio.create_task(g.enter())
        await asyncio.sleep(0.02)
        assert not third.done()
        g.leave()
        await asyncio.wait_for(third, 1)

    asyncio.run(run())


def test_failures_of_many_are_an_outage_and_of_one_are_not():
    g, said = gate()
    assert not any(fail(g, 7) for _ in range(20))
    assert [fail(g, number) for number in (1, 2, 3, 4)] == [False, False, False, True]  # with 7, the fifth request
    assert len(said) == 1
    g.succeeded()
    assert "恢复" in said[1]
    assert not fail(g, 5)


def test_in_an_outage_one_probe_at_a_time_goes_out():
    async def run():
        g, _ = gate()
        g.succeeded()
        for number in range(5):
            fail(g, number)
        entered = []

        async def caller(i):
            await g.enter()
            entered.append(i)

        callers = [asyncio.create_task(caller(i)) for i in range(10)]
        await asyncio.sleep(0.1)
        assert len(entered) == 1
        g.succeeded()
        g.leave()
        await asyncio.wait_for(asyncio.gather(*callers), 1)

    asyncio.run(run())


def test_endless_outage_ends_the_run_but_told_waits_are_not_held_against_the_service():
    g, _ = gate(max_outage_s=0.05)
    for number in range(5):
        fail(g, number, retry_after=0.2)
    time.sleep(0.1)
    assert fail(g, 9)  # was told to wait 0.2 s
    time.sleep(0.3)
    with pytest.raises(UserError, match="没有给出回答"):
        fail(g, 10)


def test_the_number_in_flight_trebles_each_round_trip_until_the_service_is_busy():
    g, _ = gate(limit=500)
    assert g.limit == 64
    for _ in range(64):
        g.succeeded()
    assert g.limit == 192
    for _ in range(192):
        g.succeeded()
    assert g.limit == 500
    g.failed(1, "HTTP 429", time.monotonic(), True, None)
    before = g.limit
    g.succeeded()
    assert before < g.limit < before + 1.01


def test_a_burst_that_is_refused_tells_what_the_service_bears():
    g, _ = gate(limit=200)
    sent = time.monotonic()
    for left in range(63, 38, -1):  # of 64 in flight 25 are refused, one after the other
        g.in_flight = left
        g.failed(left, "HTTP 429", sent, True, None)
    assert g.limit == 39


def test_busy_lowers_the_limit_by_a_third_of_the_share_refused_once_a_round_trip():
    g, _ = gate(limit=40)
    g._growing = False
    g.in_flight = 30
    before_all, g._began = time.monotonic() - 1, time.monotonic()
    for request in range(10):  # ten of twenty, all sent before this round trip began
        g.failed(request % 2, "HTTP 429", before_all, True, None)
        g.succeeded(before_all)
    assert 39 < g.limit <= 40
    g.succeeded(time.monotonic())  # the share is 10 of 21, and averaged with the 0 of before
    assert g.limit == pytest.approx(40 * (1 - 10 / 21 / 6), abs=0.1)
    for _ in range(400):
        g.succeeded()
    assert g.limit == 40


def round_trips(g, monkeypatch, refuses, n=400):
    """The limit after each of ``n`` round trips with a service in which ``refuses(place in the round trip)``, and the share refused."""
    now, refused, asked, limits = 0.0, 0, 0, []
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: now)
    for _ in range(n):
        now += 1.0
        sent, g.in_flight = now, int(g.limit)
        results = [refuses(place) for place in range(g.in_flight)]
        for _ in range(sum(results)):  # these come at once
            g.failed(1, "HTTP 429", sent, True, None)
        now += 0.2
        for _ in range(results.count(False)):
            g.succeeded(sent)
        refused, asked = refused + sum(results), asked + len(results)
        limits.append(g.limit)
    return limits, refused / asked


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_refusals_by_chance_do_not_lower_the_number(monkeypatch, share):
    g, said = gate(limit=50)
    rng = random.Random(1)
    limits, _ = round_trips(g, monkeypatch, lambda _: rng.random() < share)
    assert statistics.mean(limits[100:]) > 40
    assert "与并发数无关" in said[0]


def test_refusals_by_number_lower_it_to_the_cap(monkeypatch):
    g, said = gate(limit=200)
    limits, refused = round_trips(g, monkeypatch, lambda place: place >= 39)
    assert 36 < statistics.mean(limits[50:]) < 43
    assert refused < 0.1  # half as many when those who rest keep their slots
    assert not said


def test_a_cap_is_found_behind_chance_and_chance_that_ends_is_forgotten(monkeypatch):
    g, said = gate(limit=200)
    rng = random.Random(2)
    limits, _ = round_trips(g, monkeypatch, lambda place: place >= 100 or rng.random() < 0.1)
    assert 70 < statistics.mean(limits[100:]) < 130
    assert said
    limits, refused = round_trips(g, monkeypatch, lambda place: place >= 100)
    assert 90 < statistics.mean(limits[50:]) < 110
    assert refused < 0.05


def test_a_cap_that_is_named_is_kept_for_good():
    g, said = gate(limit=200)
    g.failed(1, "HTTP 429", time.monotonic(), True, None, cap=20)
    assert g.limit <= 20
    for _ in range(1000):
        g.succeeded()
    assert g.limit == 20
    assert "最多 20 个" in said[0]


def test_refusals_while_others_are_in_flight_are_no_outage():
    g, said = gate(limit=50)
    g.in_flight = 10
    assert not any(fail(g, request, busy=True) for request in range(20))
    assert not said
    g.in_flight = 0
    assert fail(g, 20, busy=True)


def test_a_caller_who_gives_up_does_not_take_the_turn_of_another():
    async def run():
        g, _ = gate(limit=1)
        await g.enter()
        first, second = asyncio.create_task(g.enter()), asyncio.create_task(g.enter())
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        g.leave()
        await asyncio.wait_for(second, 1)

    asyncio.run(run())


def test_retry_after_holds_everyone():
    async def run():
        g, _ = gate()
        fail(g, 1, busy=True, retry_after=0.15)
        start = time.monotonic()
        await g.enter()
        assert time.monotonic() - start >= 0.14

    asyncio.run(run())


def test_stop_wakes_all_who_wait():
    async def run():
        g, _ = gate(limit=1)
        await g.enter()
        waiting = [asyncio.create_task(g.enter()), asyncio.create_task(g.sleep(60))]
        await asyncio.sleep(0.01)
        g.stop()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
        assert [type(result) for result in results] == [Stopped, Stopped]

    asyncio.run(run())


def test_whether_others_were_answered_since_is_known():
    """Who fails while others are answered fails alone, and waits no longer each time."""
    (g, _), start = gate(), time.monotonic()
    assert not g.succeeded_since(start)
    g.succeeded()
    assert g.succeeded_since(start)
    time.sleep(0.001)
    assert not g.succeeded_since(time.monotonic())


@pytest.mark.parametrize(
    ("answer_s", "times", "least", "most"), [(0.0, 1, 0.05, 0.15), (0.01, 1, 0.02, 0.06), (0.01, 2, 0.04, 0.12)]
)
def test_a_refused_request_rests_as_long_as_some_answers_take(answer_s, times, least, most):
    async def rest():
        g, _ = gate(retry_wait_s=0.1)
        g._answer_s = answer_s
        start = time.monotonic()
        await g.rest(times)
        return time.monotonic() - start

    assert least <= asyncio.run(rest()) <= most + 0.05
