"""Requests read strictly: what passes and becomes what, and what is refused with which field named."""

import json

import pytest

from Firefly.component.http_protocol import ApiError, parse_chat, parse_json, parse_old
from Firefly.component.session import Sampling

DEFAULTS = Sampling(max_new_tokens=64, temperature=0.0, top_p=0.9, top_k=5, repetition_penalty=1.1, seed=7)
CONTEXT = 1000
HI = [{"role": "user", "content": "你好"}]


def chat(**fields):
    return parse_chat({"messages": HI} | fields, DEFAULTS, ("m",), CONTEXT)


def test_only_what_is_given_changes():
    assert chat(model="m", surprise=1, tools=[], temperature=None).sampling == DEFAULTS
    sampling = chat(temperature=1, top_p=0.5, top_k=-1, repetition_penalty=2, seed=-1, max_tokens=9).sampling
    assert sampling == Sampling(9, 1.0, 0.5, 0, 2.0, 2**63 - 1)
    assert chat(max_tokens=9, max_completion_tokens=8).sampling.max_new_tokens == 8
    assert chat(temperature=0.001).sampling.temperature == 0
    assert chat(max_tokens=CONTEXT).sampling.max_new_tokens == CONTEXT, "cut to what the prompt leaves when it starts"


def test_what_is_not_here_is_refused_unless_it_asks_for_nothing():
    nothing = {"tools": [], "response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0, "logit_bias": {}}
    assert chat(**nothing, functions=None, presence_penalty=0.0, frequency_penalty=0).sampling == DEFAULTS
    asked = {"tools": [{"type": "function"}], "response_format": {"type": "json_object"}, "logprobs": True}
    for name, value in {**asked, "presence_penalty": -0.5, "logit_bias": {"5": 1}}.items():
        with pytest.raises(ApiError, match=f"没有 {name} 这一项；请去掉") as caught:
            chat(**{name: value})
        assert (caught.value.status, caught.value.param) == (400, name)


def test_content_parts_developer_role_and_stop():
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    asked = chat(messages=[{"role": "developer", "content": "简短"}, {"role": "user", "content": parts}], stop="。")
    assert asked.messages == [{"role": "system", "content": "简短"}, *HI]
    assert asked.stop == ("。",)
    assert not asked.stream


@pytest.mark.parametrize("empty", ["", None])
def test_an_answer_that_was_empty_may_stand_in_the_history(empty):
    """A model may have answered nothing; its conversation must not be stuck for ever."""
    asked = chat(messages=[*HI, {"role": "assistant", "content": empty}, *HI])
    assert asked.messages == [*HI, {"role": "assistant", "content": ""}, *HI]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": None}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "你好"}, 400, "messages"),
        ({"messages": ["你好"]}, 400, "messages[0]"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [*HI, {"role": "system", "content": "x"}]}, 400, "messages[1].role"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, 400, "messages"),
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": 4}, 400, "model"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"temperature": 1e999}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"top_k": 1.5}, 400, "top_k"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty"),
        ({"seed": "1"}, 400, "seed"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"max_tokens": CONTEXT + 1}, 400, "max_tokens"),
        ({"max_tokens": 10**30}, 400, "max_tokens"),
        ({"max_completion_tokens": -5}, 400, "max_completion_tokens"),
        ({"n": 2}, 400, "n"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": []}, 400, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage"),
        ({"stop": 5}, 400, "stop"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["x"] * 17}, 400, "stop"),
    ],
)
def test_refused(fields, status, param):
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (status, param)
    error = caught.value.body()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert any("一" <= character <= "鿿" for character in error["message"])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object(raw):
    with pytest.raises(ApiError) as caught:
        parse_json(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_a_byte_order_mark_is_let_pass():
    assert parse_json(b"\xef\xbb\xbf" + json.dumps({"a": "你"}).encode()) == {"a": "你"}


@pytest.mark.parametrize("inputs", ["你好", " 你好\n", "<s>你好</s>", "<s>你好"])
def test_the_old_inputs(inputs):
    assert parse_old({"inputs": inputs}, DEFAULTS, CONTEXT).messages == HI


def test_the_old_turns_and_settings():
    asked = parse_old(
        {"inputs": "<s>问一</s>答一</s>问二</s>", "max_new_tokens": 500, "do_sample": True}, DEFAULTS, CONTEXT
    )
    assert [m["role"] for m in asked.messages] == ["user", "assistant", "user"]
    assert [m["content"] for m in asked.messages] == ["问一", "答一", "问二"]
    assert (asked.sampling.max_new_tokens, asked.sampling.temperature) == (500, 1.0)
    flat = parse_old({"inputs": "x", "temperature": 0.35, "do_sample": True, "num_beams": 1}, DEFAULTS, CONTEXT)
    nested = parse_old({"inputs": "x", "parameters": {"temperature": 0.35, "do_sample": True}}, DEFAULTS, CONTEXT)
    assert flat.sampling == nested.sampling
    assert flat.sampling.temperature == 0.35
    assert (
        parse_old({"inputs": "x", "temperature": 0.35, "do_sample": False}, DEFAULTS, CONTEXT).sampling.temperature == 0
    )


@pytest.mark.parametrize(
    "body", [{}, {"inputs": 3}, {"inputs": " "}, {"inputs": "<s>问</s>答</s>"}, {"inputs": "<s></s>"}]
)
def test_the_old_request_refused(body):
    with pytest.raises(ApiError) as caught:
        parse_old(body, DEFAULTS, CONTEXT)
    assert (caught.value.status, caught.value.param) == (400, "inputs")
