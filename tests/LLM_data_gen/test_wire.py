"""What a service sends, in each of its forms; what a refusal says."""

import email.utils
import json
import time

import pytest

from LLM_data_gen.wire import Answer, Dialect, Failure, cap_in, read_refusal, read_reply, retry_after

USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}}
COUNTS = {"prompt_tokens": 7, "cached_tokens": 5, "completion_tokens": 9}


def events(*chunks, done=True):
    lines = [b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) for chunk in chunks]
    return b"\n\n".join([*lines, *([b"data: [DONE]"] if done else [])]) + b"\n\n"


def delta(finish=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def test_a_stream_with_thinking_usage_and_keep_alive_lines():
    raw = b": keep-alive\n\n\n\n" + events(
        delta(role="assistant", content=""),
        delta(reasoning_content="先想"),
        delta(reasoning_content="一想"),
        delta(content="你"),
        delta(content="好", finish="stop"),
        {"choices": [], "usage": USAGE},
    )
    assert read_reply(raw) == Answer("你好", "stop", "先想一想", COUNTS)
    assert read_reply(raw.replace(b"\n", b"\r\n")) == Answer("你好", "stop", "先想一想", COUNTS)


def test_a_stream_that_was_cut_gives_what_had_come():
    raw = events(delta(content="一"), delta(content="二"), done=False)
    cut = raw + b'data: {"choices": [{"delta": {"content": "\xe4\xb8'
    answer = read_reply(cut, broken=True)
    assert (answer.text, answer.complete) == ("一二", False)
    assert isinstance(read_reply(events(delta(role="assistant"), done=False), broken=True), Failure)


def test_a_pair_split_over_two_events_is_one_character_again():
    raw = events(b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude00"}}]}')
    assert read_reply(raw).text == "😀"


def test_an_error_in_the_middle_of_a_stream_is_a_failure():
    raw = events(delta(content="一"), {"error": {"message": "engine died"}}, done=False)
    failure = read_reply(raw)
    assert isinstance(failure, Failure)
    assert "engine died" in failure.reason


def test_one_json_object_though_a_stream_was_asked_for():
    message = {"role": "assistant", "content": None, "reasoning": "想"}
    data = {"choices": [{"message": message, "finish_reason": "length"}], "usage": USAGE}
    assert read_reply(b"\n  \n" + json.dumps(data).encode()) == Answer("", "length", "想", COUNTS)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": "x"}]}'])
def test_what_is_no_completion_is_a_failure(raw):
    assert isinstance(read_reply(raw), Failure)


@pytest.mark.parametrize(
    ("said", "cap"),
    [
        ("Your account reached max organization concurrency: 3, please try again after 1 seconds", 3),
        ("at most 39 requests in flight", 39),
        ("Too many concurrent requests (limit 20)", 20),
        ("并发数超过上限 15，请稍后再试", 15),
        ("同时最多 8 个并发请求", 8),
        ("Rate limit reached: 500 requests per minute", None),
        ("too many requests, try again in 20s", None),
        ("", None),
    ],
)
def test_a_cap_named_in_the_body_is_understood(said, cap):
    assert cap_in(said) == cap


def test_waits_in_every_form():
    assert retry_after("2.5") == 2.5
    assert retry_after("-3") == 0
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert 8 < retry_after(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10
    assert retry_after(None, "Please try again in 20s.") == 20
    assert retry_after(None, "please try again after 1 seconds") == 1
    assert retry_after(None, "Please try again in 250ms") == 0.25
    assert retry_after(None, "请 2 分钟后重试") == 120
    assert retry_after("3", "try again in 20s") == 3


def test_a_refusal_is_fatal_but_for_those_that_pass():
    fatal = {
        status: read_refusal(status, "x", {}, "u").fatal for status in (301, 400, 401, 402, 404, 408, 422, 429, 500)
    }
    assert [status for status, is_fatal in fatal.items() if not is_fatal] == [408, 429, 500]
    assert "充值" in read_refusal(429, '{"code":"insufficient_quota"}', {}, "u").reason
    busy = read_refusal(429, "max concurrency: 3", {"Retry-After": "2"}, "u")
    assert (busy.retry_after, busy.cap) == (2, 3)
    assert read_refusal(503, "max concurrency: 3", {}, "u").cap is None


def test_a_dialect_learns_what_a_service_does_not_take():
    dialect = Dialect()
    body = dialect.body("m", [], 0.8, 100)
    assert body["stream_options"] == {"include_usage": True}
    assert (body["temperature"], body["max_tokens"]) == (0.8, 100)
    assert dialect.adapt(body, "unknown parameter: stream_options")
    assert dialect.adapt(body, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    assert dialect.adapt(body, "'temperature' does not support 0.8, only the default (1)")
    assert dialect.body("m", [], 0.8, 100) == {
        "model": "m",
        "messages": [],
        "stream": True,
        "max_completion_tokens": 100,
    }
    assert dialect.adapt(body, "the messages are too long") is None
