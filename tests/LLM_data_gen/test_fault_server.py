"""The server that the other tests trust: what it streams, and that each way of going wrong goes wrong that way."""

import asyncio
import json
import runpy
import time
from pathlib import Path

import aiohttp
import pytest

faults = runpy.run_path(str(Path(__file__).with_name("fault_server.py")))
FaultServer, good_samples, fault_plan = faults["FaultServer"], faults["good_samples"], faults["answers"].fault_plan
TOPIC = 'a "quoted" \\ 主题'


def post(server, timeout_s=2.0, times=1, **body):
    """Return [(status, text)] of ``times`` requests at once; an exception in place of one that failed."""
    message = {"role": "user", "content": f"请写出 2 条。\n主题：{TOPIC}\n"}

    async def one(session):
        async with session.post(f"{server.url}/chat/completions", json={"messages": [message], **body}) as response:
            return response.status, (await response.read()).decode()

    async def run():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout_s)) as session:
            return await asyncio.gather(*(one(session) for _ in range(times)), return_exceptions=True)

    return asyncio.run(run())


def events(text):
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(found, name="content"):
    return "".join(event["choices"][0]["delta"].get(name, "") for event in found if event["choices"])


def test_a_streamed_answer_comes_in_pieces_with_its_usage_last():
    with FaultServer() as server:
        [(status, text)] = post(server, stream=True, stream_options={"include_usage": True})
    found = events(text)
    assert status == 200
    assert len(found) == 12 + 2
    assert json.loads(joined(found)) == good_samples(TOPIC, 2)
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == round(0.6 * len(joined(found)))
    assert server.answered == [0]


def test_without_stream_it_is_one_object_and_the_second_answer_differs():
    with FaultServer() as server:
        texts = [post(server)[0][1] for _ in range(2)]
    answers = [json.loads(json.loads(text)["choices"][0]["message"]["content"]) for text in texts]
    assert answers == [good_samples(TOPIC, 2), good_samples(TOPIC, 2, 2)]


def test_reasoning_comes_first_and_texts_finish_and_usage_are_settable():
    plan = {"content": "答", "reasoning": "想了想", "pieces": 3, "finish_reason": "length", "usage": {"a": 1}}
    with FaultServer(lambda *_: plan) as server:
        [(_, text)] = post(server, stream=True, stream_options={"include_usage": True})
        [(_, bare)] = post(server, stream=True)
    found = events(text)
    assert [list(event["choices"][0]["delta"]) for event in found[:4]] == [["reasoning_content"]] * 3 + [["content"]]
    assert (joined(found, "reasoning_content"), joined(found)) == ("想了想", "答")
    assert found[4]["choices"][0]["finish_reason"] == "length"
    assert found[5]["usage"] == {"a": 1}
    assert len(events(bare)) == 5


def test_keep_alive_lines_and_slow_pieces_take_their_time():
    with FaultServer(lambda *_: {"keep_alive": (3, 0.05), "pieces": 2, "piece_delay_s": 0.05}) as server:
        started = time.monotonic()
        [(_, text)] = post(server, stream=True)
    assert time.monotonic() - started >= 0.25
    assert text.startswith(": keep-alive\n\n\n: keep-alive\n\ndata: ")
    assert json.loads(joined(events(text))) == good_samples(TOPIC, 2)


@pytest.mark.parametrize("fault", ["drop", {"drop_after": 3}, {"stall_after": 3}], ids=str)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_does_not_come_is_not_counted_as_given(fault, stream):
    with FaultServer(lambda *_: fault) as server:
        [outcome] = post(server, stream=stream, timeout_s=0.3)
        late = isinstance(outcome, asyncio.TimeoutError)
        assert late == (fault == {"stall_after": 3})
        assert late or isinstance(outcome, aiohttp.ClientError)
        time.sleep(0.05)
        assert (server.answered, server._at_once) == ([], 0)


def test_the_cap_lets_so_many_in_and_may_be_named_in_the_body_alone():
    with FaultServer(latency_s=0.1, cap=3, cap_in_body=True) as server:
        outcomes = post(server, times=8)
    assert sorted(status for status, _ in outcomes) == [200] * 3 + [429] * 5
    assert "max concurrency: 3" in max(outcomes)[1]
    assert (server.over_cap, server.most_at_once, len(server.asked)) == (5, 3, 8)


def test_the_mixture_of_faults_is_the_same_for_a_seed():
    replies, again = ([plan(i, "主题", 6) for i in range(4000)] for plan in (fault_plan(3), fault_plan(3)))
    assert replies == again
    shares = [
        sum(isinstance(r, dict) and r.get("status") == 429 for r in replies),
        sum(isinstance(r, dict) and r.get("status") == 500 for r in replies),
        sum(r == "drop" or r == {"drop_after": 5} for r in replies),
        sum(isinstance(r, str) and r != "drop" for r in replies),
    ]
    assert [round(share / 40) for share in shares] == pytest.approx([10, 5, 3, 5], abs=1)


def test_models_are_listed():
    async def get(url):
        async with aiohttp.ClientSession() as session, session.get(url + "/models") as response:
            return await response.json()

    with FaultServer(models=["甲", "乙"]) as server:
        assert [model["id"] for model in asyncio.run(get(server.url))["data"]] == ["甲", "乙"]
