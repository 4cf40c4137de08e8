"""What a service sends, in each of its forms; what a refusal says."""

import json

import pytest

from LLM_data_gen.refusals import Failure
from LLM_data_gen.wire import Answer, Completion, Dialect

USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}}
COUNTS = {"prompt_tokens": 7, "cached_tokens": 5, "completion_tokens": 9}


def read_reply(raw, broken=False):
    """It comes to the same in whatever pieces it comes."""
    outcomes = []
    for size in (len(raw) or 1, 1, 2, 7, 64):
        completion = Completion()
        for at in range(0, len(raw), size):
            completion.feed(raw[at : at + size])
        outcomes.append(completion.finish(broken))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


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


@pytest.mark.parametrize(
    ("between", "after"),
    [
        (b"\n\n", b""),
        (b"\r\n\r\n", b"\r\n\r\n"),
        (b"\n\n: still here, data: none\n\n", b"\n\n: bye\n\n"),
        (b"\n\nevent: message\nid: 7\n", b"\n\n"),
        (b"\n", b"\n"),
    ],
)
@pytest.mark.parametrize("end", [b"[DONE]", b" [DONE] ", None])
def test_whatever_stands_between_events_they_are_the_same(between, after, end):
    """As fast as it goes where it is an empty line, one by one else; a text that looks like an event is none."""
    chunks = [delta(content="[DONE]\n\ndata: {}"), delta(content="好"), {"choices": [], "usage": USAGE}]
    lines = [b"data:" + json.dumps(chunk).encode() for chunk in chunks] + ([b"data:" + end] if end else [])
    answer = read_reply(between.join(lines) + after)
    assert answer == Answer("[DONE]\n\ndata: {}好", "", "", COUNTS, complete=end is not None)


def test_a_stream_that_was_cut_gives_what_had_come():
    raw = events(delta(content="一"), delta(content="二"), done=False)
    cut = raw + b'data: {"choices": [{"delta": {"content": "\xe4\xb8'
    answer = read_reply(cut, broken=True)
    assert (answer.text, answer.complete) == ("一二", False)
    assert isinstance(read_reply(events(delta(role="assistant"), done=False), broken=True), Failure)


def test_a_pair_split_over_two_events_is_one_character_again():
    raw = events(b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude00"}}]}')
    assert read_reply(raw).text == "😀"


def test_an_error_in_the_middle_of_a_stream_leaves_what_had_come():
    """It is paid for; an error before any text is a failure."""
    error = {"error": {"message": "engine died"}}
    answer = read_reply(events(delta(content="一"), error, done=False))
    assert (answer.text, answer.complete, answer.broken) == ("一", False, False)
    failure = read_reply(events(error, done=False))
    assert isinstance(failure, Failure)
    assert "engine died" in failure.reason


PARTS = [{"type": "text", "text": "你"}, {"type": "image"}, {"type": "text", "text": "好"}]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + events(delta(content="你好", finish="stop")),
        b"\xef\xbb\xbf" + json.dumps({"choices": [{"message": {"content": PARTS}, "finish_reason": "stop"}]}).encode(),
        events(delta(content=PARTS, finish="stop")),
        events({"choices": None}, {"choices": [None]}, delta(content="你好", finish="stop")),
        events(
            {"choices": 5, "usage": "none"},
            {"choices": {"0": 1}},
            {"choices": [{"delta": "x"}, {"delta": [1]}]},
            delta(content="你好", finish="stop"),
        ),
        events(delta(content="你好", finish="stop"), {"choices": [{"index": 1, "delta": {"content": "另一个"}}]}),
        events(delta(content="你好", finish="stop")).replace(b": [", b": \r\ndata: ["),
        events(delta(content="你好"), delta(finish="stop")).replace(b"\n\n", b"\r\r"),
        events(
            delta(content="你"),
            b'{"choices": [{"delta": {"content": "\xe5\xa5\xbd"}, "finish_reason": "stop"}], "id": "\xff"}',
        ),
    ],
    ids=[
        "bom",
        "bom json",
        "parts",
        "null choices",
        "odd types",
        "second choice",
        "lines of one event",
        "CR",
        "no UTF-8",
    ],
)
def test_odd_forms_of_an_answer(raw):
    answer = read_reply(raw)
    assert (answer.text, answer.finish_reason, answer.complete) == ("你好", "stop", True)


def test_thinking_beside_the_text_and_usage_in_the_choice():
    both = delta(content="[]", reasoning_content="想", finish="stop")
    both["choices"][0]["usage"] = USAGE
    assert read_reply(events(both)) == Answer("[]", "stop", "想", COUNTS)
    assert read_reply(json.dumps({"choices": [{"message": {"content": 5}}]}).encode()).text == ""


def test_one_json_object_though_a_stream_was_asked_for():
    message = {"role": "assistant", "content": None, "reasoning": "想"}
    data = {"choices": [{"message": message, "finish_reason": "length"}], "usage": USAGE}
    assert read_reply(b"\n  \n" + json.dumps(data).encode()) == Answer("", "length", "想", COUNTS)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": "x"}]}'])
def test_what_is_no_completion_is_a_failure(raw):
    assert isinstance(read_reply(raw), Failure)


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
    for said in ("invalid temperature: only 1 is allowed for this model", "temperature 只能为 1"):
        assert Dialect().adapt(body, said)


def test_a_service_that_does_not_know_thinking_is_not_told_of_it():
    dialect = Dialect()
    body = dialect.body("m", [], 0.8, 100, thinking=False)
    assert body["thinking"] == {"type": "disabled"}
    assert "--extra" in dialect.adapt(body, "Extra inputs are not permitted: thinking")
    assert "thinking" not in dialect.body("m", [], 0.8, 100, thinking=False)
    assert dialect.adapt(dialect.body("m", [], 0.8, 100), "thinking is not supported") is None
