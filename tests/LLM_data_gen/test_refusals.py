"""What services say when they give no answer, in the words of real ones."""

import email.utils
import time

import pytest

from LLM_data_gen.refusals import cap_in, read_refusal, retry_after


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
        ("Too many concurrent requests. Please retry after 2 seconds.", None),
        ("并发请求过多，请 30 秒后重试", None),
        ("并发数超限（错误码 1302）", None),
        ('{"code":"1302","message":"您当前使用该API的并发数过高，请降低并发"}', None),
        ('{"message":"Concurrency limit (HTTP 429) reached","code":429}', None),
        ("concurrency limit for gpt-5 reached", None),
        ("Too many concurrent requests for model qwen3.8-max", None),
        ("The number of concurrent connections exceeded; request id 20261126", None),
        ("concurrent requests: 201, limit: 50", 50),
        ("Maximum number of concurrent requests (10) exceeded", 10),
        ("max parallel requests is 0", 1),
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
    assert retry_after(None, "Please try again in 6m0s.") == 360
    assert retry_after(None, "Please try again in 1h12m3.5s") == 4323.5
    assert retry_after(None, "Please retry in 4.5s") == 4.5
    assert retry_after(None, "请在 10 分钟后重试") == 600
    assert retry_after("inf") is None


def test_a_refusal_is_fatal_but_for_those_that_pass():
    fatal = {
        status: read_refusal(status, "x", {}, "u").fatal for status in (301, 400, 401, 402, 404, 408, 422, 429, 500)
    }
    assert [status for status, is_fatal in fatal.items() if not is_fatal] == [408, 429, 500]
    assert "充值" in read_refusal(429, '{"code":"insufficient_quota"}', {}, "u").reason
    busy = read_refusal(429, "max concurrency: 3", {"Retry-After": "2"}, "u")
    assert (busy.retry_after, busy.cap) == (2, 3)
    assert read_refusal(503, "max concurrency: 3", {}, "u").cap is None


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, '{"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}'),
        (
            400,
            '{"error": {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}}',
        ),
        (
            400,
            '{"contentFilter": [{"level": 1}], "error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}',
        ),
        (
            400,
            '{"error": {"message": "The request was rejected because it was considered high risk", "type": "content_filter"}}',
        ),
    ],
    ids=["DeepSeek", "Model Studio", "BigModel", "Moonshot"],
)
def test_moderation_is_about_one_request_and_not_about_the_run(status, said):
    failure = read_refusal(status, said, {}, "u")
    assert (failure.refused, failure.fatal) == (True, False)
    assert "审核" in failure.reason


def test_no_money_and_too_many_tokens_a_minute_may_have_the_same_code():
    quota = (
        "You exceeded your current quota, please check your plan and billing details. " + "For more see the docs. " * 9
    )
    assert "充值" in read_refusal(429, quota + '"code": "insufficient_quota"', {}, "u").reason
    assert "充值" in read_refusal(400, '{"code": "Arrearage"}', {}, "u").reason
    busy = read_refusal(429, quota + "error-code#token-limit insufficient_quota", {}, "u")
    assert not busy.fatal
    assert read_refusal(429, quota + "Please retry in 4.5s.", {}, "u").retry_after == 4.5


def test_where_an_address_went_is_said_and_a_long_body_is_not_shown_whole():
    assert "https://b.example/v1" in read_refusal(301, "", {"Location": "https://b.example/v1"}, "u").reason
    assert len(read_refusal(400, "长" * 4000, {}, "u").reason) < 400
