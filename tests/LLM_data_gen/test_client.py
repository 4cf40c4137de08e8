import asyncio
import json
import runpy
import time
from pathlib import Path

import pytest

from LLM_data_gen import network
from LLM_data_gen.client import Client, Settings, TriesUsedUp
from LLM_data_gen.prompt import build_messages
from LLM_data_gen.settings import Teacher
from sft_data.errors import UserError

faults = runpy.run_path(str(Path(__file__).with_name("fault_server.py")))
FaultServer, completion = faults["FaultServer"], faults["completion"]
KEY = "sk-test-0123456789"


def ask(server, thinking=None, run=asyncio.run, **settings):
    """Ask once; return (answer or exception, the client's usage)."""

    async def once():
        teacher = Teacher(server.url, "model-x", thinking, KEY)
        async with Client(teacher, Settings(**{"retry_wait_s": 0.01, **settings}), lambda message: None) as client:
            try:
                return await client.ask(build_messages("主题", 2), 100), client.usage
            except (UserError, TriesUsedUp) as error:
                return error, client.usage

    return run(once())


def test_what_is_sent_and_what_is_read():
    with FaultServer() as server:
        answer, usage = ask(server, thinking=False)
    sent, headers = server.bodies[0], server.headers[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("model-x", 0.8, 100)
    assert sent["thinking"] == {"type": "disabled"}
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert len(json.loads(answer.text)) == 2
    assert (usage.requests, usage.answers) == (1, 1)
    assert answer.usage["prompt_tokens"] > answer.usage["cached_tokens"] > 0
    assert answer.usage["completion_tokens"] > 100
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})


def test_thinking_is_not_mentioned_when_nothing_is_said_about_it():
    with FaultServer() as server:
        ask(server)
    assert "thinking" not in server.bodies[0]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 301])
def test_refusals_stop_at_once_and_never_show_the_key(status):
    with FaultServer(lambda *_: {"status": status, "body": f"bad key {KEY}"}) as server:
        error, usage = ask(server)
    assert isinstance(error, UserError)
    assert str(status) in str(error)
    assert KEY not in str(error)
    assert usage.requests == 1


def test_no_money_said_with_429_is_a_refusal_too():
    with FaultServer(lambda *_: {"status": 429, "body": '{"error":{"code":"insufficient_quota"}}'}) as server:
        error, usage = ask(server)
    assert isinstance(error, UserError)
    assert usage.requests == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 429},
        {"status": 408},
        "drop",
        {"body": "<html>busy</html>"},
        {"body": '{"error": {"message": "try later"}}'},
        {"body": '{"choices": []}'},
        {"delay_s": 0.6},
    ],
    ids=["500", "429", "408", "drop", "html", "error in 200", "no choice", "late"],
)
def test_troubles_are_retried(fault):
    with FaultServer(lambda number, topic, n: fault if number < 2 else None) as server:
        answer, usage = ask(server, timeout_s=0.3)
    assert len(json.loads(answer.text)) == 2
    assert usage.requests == 3
    assert sum(usage.failed.values()) == 2


def test_tries_are_bounded_and_their_last_failure_named():
    with FaultServer(lambda *_: {"status": 500, "body": f"boom {KEY}"}) as server:
        error, usage = ask(server, max_tries=3)
    assert isinstance(error, TriesUsedUp)
    assert "HTTP 500（boom ***）" in str(error)
    assert usage.requests == 3


def test_retry_after_is_obeyed():
    reply = {"status": 429, "headers": {"Retry-After": "1"}}
    start = time.monotonic()
    with FaultServer(lambda number, topic, n: None if number else reply) as server:
        ask(server)
    assert time.monotonic() - start >= 0.95
    assert len(server.asked) == 2


def test_blank_lines_before_the_answer_and_a_key_in_it():
    body = "\n\n   \n" + json.dumps(completion(f"[] {KEY}"))
    with FaultServer(lambda *_: {"body": body}) as server:
        answer, _ = ask(server)
    assert answer.text == "[] ***"


def test_missing_content_is_an_empty_answer():
    data = completion("")
    data["choices"][0]["message"] = {"role": "assistant", "content": None, "reasoning_content": "想了很久"}
    data["usage"] = None
    with FaultServer(lambda *_: {"body": json.dumps(data)}) as server:
        answer, usage = ask(server)
    assert (answer.text, answer.reasoning) == ("", "想了很久")
    assert answer.usage == {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}


def test_silence_is_a_timeout_and_a_long_answer_with_signs_of_life_is_not():
    slow = {"keep_alive": (8, 0.1), "pieces": 4, "piece_delay_s": 0.1}
    with FaultServer(lambda *_: slow) as server:
        answer, usage = ask(server, timeout_s=0.35)
    assert len(json.loads(answer.text)) == 2
    assert (usage.requests, answer.complete) == (1, True)


@pytest.mark.parametrize("run", [asyncio.run, network.run])
def test_an_answer_that_breaks_off_is_returned_with_what_had_come(run):
    """All of it, also what came just before the break, when nobody was looking."""
    texts = set()
    for how in ({}, {"piece_delay_s": 0.004}, {"piece_delay_s": 0.03}):
        for fault in ({"drop_after": 6}, {"stall_after": 6}):
            with FaultServer(lambda *_, fault=fault | how: fault) as server:
                answer, usage = ask(server, run=run, timeout_s=0.3)
            assert not answer.complete
            assert answer.text.startswith("[{")
            assert (usage.requests, usage.answers, usage.broken) == (1, 1, 1)
            texts.add(answer.text)
    assert len(texts) == 1


def test_thinking_comes_apart_from_the_text():
    with FaultServer(lambda *_: {"reasoning": "先想一想", "content": "[]"}) as server:
        answer, _ = ask(server, thinking=True)
    assert (answer.text, answer.reasoning) == ("[]", "先想一想")


def test_json_mode_is_asked_for():
    async def run(server):
        async with Client(Teacher(server.url, "m", None, KEY), Settings(), print) as client:
            return await client.ask(build_messages("主题", 2, json_mode=True), 0, json_mode=True)

    with FaultServer() as server:
        asyncio.run(run(server))
    assert server.bodies[0]["response_format"] == {"type": "json_object"}
    assert "max_tokens" not in server.bodies[0]


def test_a_field_that_the_service_does_not_take_is_left_out_after_one_refusal():
    def plan(number, topic, n):
        unknown = "stream_options" in server.bodies[number]
        return {"status": 400, "body": "Unrecognized request argument: stream_options"} if unknown else None

    with FaultServer(plan) as server:
        answer, usage = ask(server)
    assert usage.requests == 2
    assert len(json.loads(answer.text)) == 2


def test_an_unknown_model_names_those_that_are_there():
    unknown = {"status": 404, "body": '{"error": {"message": "The model `x` does not exist"}}'}
    with FaultServer(lambda *_: unknown, models=["model-a", "model-b"]) as server:
        error, _ = ask(server)
    assert "model-a、model-b" in str(error)


def test_other_endpoints_answer_through_the_same_retry_layer():
    async def run(server):
        async with Client(Teacher(server.url, "m", None, KEY), Settings(retry_wait_s=0.01), print) as client:
            return await client.call("/chat/completions", {"messages": [{"role": "user", "content": "主题：甲"}]})

    with FaultServer(lambda number, *_: None if number else {"status": 500}) as server:
        data = asyncio.run(run(server))
    assert data["choices"]
    assert len(server.asked) == 2
