import asyncio
import email.utils
import json
import runpy
import time
from pathlib import Path

import pytest

from LLM_data_gen.client import Client, Settings, TriesUsedUp, retry_after
from LLM_data_gen.prompt import build_messages
from LLM_data_gen.settings import Teacher
from sft_data.errors import UserError

faults = runpy.run_path(str(Path(__file__).with_name("fault_server.py")))
FaultServer, completion = faults["FaultServer"], faults["completion"]
KEY = "sk-test-0123456789"


def ask(server, thinking=None, **settings):
    """Ask once; return (answer or exception, the client's usage)."""

    async def run():
        teacher = Teacher(server.url, "model-x", thinking, KEY)
        async with Client(teacher, Settings(**{"retry_wait_s": 0.01, **settings}), lambda message: None) as client:
            try:
                return await client.ask(build_messages("主题", 2), 100), client.usage
            except (UserError, TriesUsedUp) as error:
                return error, client.usage

    return asyncio.run(run())


def test_what_is_sent_and_what_is_read():
    with FaultServer() as server:
        answer, usage = ask(server, thinking=False)
    sent, headers = server.bodies[0], server.headers[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("model-x", 0.8, 100)
    assert sent["thinking"] == {"type": "disabled"}
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert len(json.loads(answer.text)) == 2
    assert (usage.requests, usage.answers, usage.prompt_tokens, usage.completion_tokens) == (1, 1, 100, 200)


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


def test_retry_after_forms():
    assert retry_after("2.5") == 2.5
    assert retry_after("-3") == 0
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert 8 < retry_after(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10


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
    assert usage.completion_tokens == 0
