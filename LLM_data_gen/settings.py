"""Whom to ask: key, address and model, each from the first place that names it.

resolve_teacher(...) -> Teacher           flag, constant in the script, environment, .env, default
map_model(base_url, model, mode) -> ...   old DeepSeek names, and whether thinking is switched
read_extra(text) -> dict                  --extra
"""

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from sft_data.errors import UserError

DEFAULT_BASE_URL = "https://api.deepseek.com"
DEFAULT_MODEL = "deepseek-chat"
_DEEPSEEK_HOST = "api.deepseek.com"
# Retired by the service on 2026-07-24; thinking is on by default there, so both ways are said outright.
_RETIRED = {"deepseek-chat": False, "deepseek-reasoner": True}
_SUCCESSOR = "deepseek-flash"


@dataclass(frozen=True)
class Teacher:
    """Where requests go. ``thinking`` None: nothing is said about it; extra: more fields of a body; the key never shows in a repr."""

    base_url: str
    model: str
    thinking: bool | None
    api_key: str = field(repr=False)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return is_local(self.base_url)


def resolve_teacher(
    api_key: str | None,
    base_url: str | None,
    model: str | None,
    mode: str,
    constants: tuple[str, str],
    script_dir: Path,
    say: Callable[[str], None],
    need_key: bool = True,
    extra: str | None = None,
) -> Teacher:
    """Settle key, address and model. ``constants`` are (API_KEY_CODE, BASE_URL_CODE), empty where unused."""
    dotenv = _read_dotenv([Path.cwd() / ".env", script_dir / ".env"])
    key, key_from = _first(api_key, "--api-key", constants[0], "API_KEY_CODE", "OPENAI_API_KEY", dotenv)
    url, _ = _first(base_url, "--base-url", constants[1], "BASE_URL_CODE", "OPENAI_BASE_URL", dotenv)
    url = clean_base_url(url or DEFAULT_BASE_URL)
    if need_key and not key and not is_local(url):
        raise UserError(f"没有给出 {url} 的 API 密钥；请用 --api-key、环境变量 OPENAI_API_KEY 或 .env 文件给出。")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{key_from} 给出的 API 密钥里有空格、换行或非 ASCII 字符；请重新复制一遍密钥。")
    name, thinking = map_model(url, model or DEFAULT_MODEL, mode)
    if name != (model or DEFAULT_MODEL):
        state = "开启" if thinking else "关闭"
        say(f"提示：{model or DEFAULT_MODEL} 这个名称已由 DeepSeek 停用，改用 {name}（思考{state}）。")
    say(f"教师模型：{name}，地址：{url}，密钥来自：{key_from or '无（本机地址不需要）'}")
    return Teacher(url, name, thinking, key, read_extra(extra))


def read_extra(text: str | None) -> dict[str, Any]:
    """The fields that --extra puts into the body of each request."""
    try:
        extra = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        extra = None
    if not isinstance(extra, dict):
        raise UserError(f"--extra {text!r} 不是 JSON 对象；请写成 '{{\"enable_thinking\": false}}' 的样子。")
    return extra


def map_model(base_url: str, model: str, mode: str) -> tuple[str, bool | None]:
    """Return (model name to send, thinking to send).

    Against api.deepseek.com the two retired names become deepseek-flash and thinking is always said. Any other
    address gets the name as it was asked for, and the thinking field only where ``--mode reasoner`` asks for it:
    services that do not know the field refuse it.
    """
    wants_thinking = mode == "reasoner"
    if urlsplit(base_url).hostname != _DEEPSEEK_HOST:
        return model, wants_thinking or None
    if model in _RETIRED:
        return _SUCCESSOR, wants_thinking or _RETIRED[model]
    return model, wants_thinking


def clean_base_url(url: str) -> str:
    """Return ``url`` without a trailing slash or /chat/completions; UserError when it is no plain http(s) address."""
    url = url.strip().rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        (parts.hostname or "").encode("idna")  # "a..b" and names too long, which the resolver would fall over
    except ValueError:
        fine = False
    if not fine:
        raise UserError(f"--base-url {url!r} 不是完整的网址；请写成 https://主机/v1 的样子。")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"--base-url 里不能带用户名、密码或 ? 参数（主机 {parts.hostname}）；密钥请用 --api-key 给出。")
    return url


def is_local(base_url: str) -> bool:
    """Tell whether the address is this machine or a private network, where servers commonly need no key."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host
    return address.is_loopback or address.is_private


def _first(flag, flag_name, constant, constant_name, variable, dotenv) -> tuple[str, str]:
    """Return (value, where it came from) of the first place that gives one; ("", "") when none does."""
    places = [
        (flag, flag_name),
        (constant, f"脚本里的 {constant_name}"),
        (os.environ.get(variable), f"环境变量 {variable}"),
        (dotenv.get(variable), f".env 里的 {variable}"),
    ]
    for value, place in places:
        if value and value.strip():
            return value.strip(), place
    return "", ""


def _read_dotenv(paths: list[Path]) -> dict[str, str]:
    """Read NAME=value lines (export, quotes and # comments allowed); an earlier file wins over a later one."""
    values: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{path}：不是 UTF-8 编码的文本；请另存为 UTF-8。") from None
        for line in text.splitlines():
            name, equals, value = line.strip().removeprefix("export ").partition("=")
            if not equals or name.lstrip().startswith("#"):
                continue
            value = value.strip()
            quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
            value = value[1:-1] if quoted else value.split(" #")[0].strip()
            values.setdefault(name.strip(), value)
    return values
