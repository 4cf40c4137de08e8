"""What a service says when it gives no answer: whom it is about, how long to wait, how many at once.

    read_refusal(status, said, headers, url) -> Failure
    retry_after(header, said) -> float | None      seconds
    cap_in(said) -> int | None                     requests in flight

The words are those of real services (error pages of DeepSeek, Model Studio, BigModel, Moonshot, OpenAI and Gemini, 2026-11).
"""

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

READ = 4000  # characters of what a service says that are looked at
_SHOWN = 200  # and shown
_RETRYABLE_4XX = (408, 409, 425, 429)
_OUT_OF_MONEY = r"insufficient_quota|insufficient balance|余额不足|欠费|arrearage"
_ONLY_BUSY = r"token-limit|allocated quota|per (?:minute|min|day)|retry in"
_MODERATED = (
    r"content exists risk|data_?inspection|inappropriate content|content_?filter|content_policy|high risk"
    r'|"1301"|敏感内容|内容安全'
)
_UNIT = r"(?:milliseconds?|ms|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])|毫秒|秒钟?|分钟?|小时"
_WAIT = rf"(?:try again|retry)[^0-9]{{0,24}}((?:\d+(?:\.\d+)? ?(?:{_UNIT})[ ,]*)+)|((?:\d+ ?(?:{_UNIT}))+)[之以]?后"
_PART = rf"(\d+(?:\.\d+)?) ?({_UNIT})"
_UNITS_S = {"ms": 0.001, "milli": 0.001, "毫": 0.001, "s": 1, "秒": 1, "m": 60, "分": 60, "h": 3600, "小时": 3600}
# "max organization concurrency: 3", "at most 39 requests in flight", "并发数上限为 20", "concurrent requests: 201, limit: 50"
_AT_ONCE = r"(?:concurren\w*|in[- ]flight|parallel|并发)"
_MOST = r"(?:limit|max(?:imum)?|at most|上限|最多|限制)"
_NUMBER = r"(?<![\w.-])(\d{1,5})(?![\w.%]*[\w%])"
_CAPS = (
    rf"{_AT_ONCE}[^.。]{{0,40}}?{_MOST}[^0-9.。]{{0,12}}?{_NUMBER}",
    rf"{_MOST}[^0-9.。]{{0,30}}?{_AT_ONCE}[^0-9.。]{{0,12}}?[:：= 为(]{_NUMBER}",
    rf"{_MOST}[^0-9.。]{{0,12}}?{_NUMBER}[^0-9.。]{{0,24}}?{_AT_ONCE}",
)
_CODE = r"(?:HTTP|code|错误码)\W{0,4}\d+"
ADVICE = {
    400: "请求不被接受，请检查 --model、--max-tokens 等参数",
    401: "API 密钥无效，请检查 --api-key 或 OPENAI_API_KEY",
    402: "账户余额不足或欠费，请充值",
    403: "没有访问权限，请检查密钥的权限与所在地区",
    404: "地址或模型不存在，请检查 --base-url（多数服务以 /v1 结尾）和 --model",
    413: "请求太长，请缩短主题或减小 --n-per-topic",
    422: "请求里有它不认识的内容，请检查 --model、--extra 等参数",
    451: "因法律原因不提供服务，请换一个服务或地区",
}


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer. ``status`` 0: none came; ``retry_after`` in seconds where the server said so; ``cap``:
    requests in flight that it allows, where it said that. fatal: the run must stop; refused: this one must not be asked again.
    """

    reason: str
    status: int = 0
    retry_after: float | None = None
    fatal: bool = False
    cap: int | None = None
    refused: bool = False


def read_refusal(status: int, said: str, headers: Mapping[str, str], url: str) -> Failure:
    """said: the body, at most READ characters of it."""
    shown = said[:_SHOWN]
    if status in (400, 403, 422, 451) and _find(_MODERATED, said):
        return Failure(f"没有通过服务的内容审核（{shown}）", status, refused=True)
    out_of_money = status in (400, 403, 429) and _find(_OUT_OF_MONEY, said)
    if status == 429 and _find(_ONLY_BUSY, said):
        out_of_money = False  # Model Studio says insufficient_quota of tokens a minute too
    if out_of_money or (status < 500 and status not in _RETRYABLE_4XX):
        advice = ADVICE[402] if out_of_money else ADVICE.get(status, "服务拒绝了请求，请检查 --base-url")
        if 300 <= status < 400 and headers.get("Location"):
            advice = f"地址移到了 {headers['Location'][:_SHOWN]}，请相应修改 --base-url"
        reason = f"{url} 答复 HTTP {status}：{advice}；已完成的都已保存，改正后用同一条命令继续。"
        return Failure(f"{reason}服务的原话：{shown}" if said else reason, status, fatal=True)
    wait = retry_after(headers.get("Retry-After"), said)
    return Failure(f"HTTP {status}（{shown}）", status, wait, cap=cap_in(said) if status == 429 else None)


def retry_after(header: str | None, said: str = "") -> float | None:
    """Seconds to wait: of a Retry-After header, seconds or an HTTP date, else of what the body says; None: neither."""
    if header:
        try:
            seconds = float(header)
            return max(0.0, seconds) if seconds < float("inf") else None
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    if found := _find(_WAIT, said):
        return sum(
            float(number) * _unit_s(unit.lower())
            for number, unit in re.findall(_PART, found[1] or found[2], re.IGNORECASE)
        )
    return None


def _find(pattern: str, said: str) -> re.Match | None:
    """Compiled when a service refuses for the first time: most runs never need it."""
    return re.search(pattern, said, re.IGNORECASE)


def _unit_s(unit: str) -> float:
    return next(seconds for start, seconds in _UNITS_S.items() if unit.startswith(start))


def cap_in(said: str) -> int | None:
    """The number of requests in flight that the body of a 429 names as the most, or None. What it says of time is none."""
    for pattern in (_WAIT, _CODE):
        said = re.sub(pattern, " ", said, flags=re.IGNORECASE)
    found = next((match for pattern in _CAPS if (match := _find(pattern, said))), None)
    return max(1, int(found[1])) if found else None
