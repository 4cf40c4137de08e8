"""What the inference scripts share: flags, reading requests, writing results in order, and the chat loop.

A script brings an ``Engine``, two functions; the rest, from the flags to the bytes of the output file, is the same for
transformers, vLLM, SGLang and a running server. Standard library only: ``--help`` must answer at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UserError

RESULT_KEYS = ("response", "finish_reason", "prompt_tokens", "completion_tokens")
ROLES = ("system", "user", "assistant")
DEFAULT_MAX_NEW_TOKENS = 512
WEB_PORT = 7860


@dataclass(frozen=True)
class Request:
    """One conversation to answer. ``index`` is the row number from 0, ``where`` names it in messages."""

    index: int
    messages: list[dict]
    fields: dict = field(default_factory=dict)
    where: str = "--prompt"


@dataclass(frozen=True)
class Completion:
    """One answer. ``finish_reason`` is "stop" (ended by itself) or "length"; ``ids`` is empty when a server answered."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Engine:
    """How one engine answers.

    generate: takes a window of requests, yields (request, completion) in whatever order they finish.
    stream: answers one request, handing each piece of text to a callback; ``None`` when the engine has no streaming.
    window: how many requests generate wants at a time.
    check: raises UserError, before anything is generated, for requests that the model cannot take.
    """

    generate: Callable[[list[Request]], Iterator[tuple[Request, Completion]]]
    stream: Callable[[Request, Callable[[str], None]], Completion]
    window: int
    check: Callable[[Iterable[Request]], None] = lambda requests: None
    fingerprint: dict = field(default_factory=dict)


def add_model_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags that say which model, how it is loaded and prompted; return their group."""
    what = parser.add_argument_group("模型")
    what.add_argument("--model", help="模型文件夹或 hub 名称；只给 --adapter 时取适配器记录的基座")
    what.add_argument("--adapter", action="append", metavar="[名字=]文件夹", help="LoRA 适配器，不必先合并")
    what.add_argument("--template-name", default="auto", help="提示模板；auto 用模型自带的 chat_template（默认）")
    what.add_argument("--device", default="auto", help="auto（默认）、cpu、cuda、cuda:1")
    what.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="auto：GPU 用 bfloat16，CPU 用 float32",
    )
    what.add_argument("--load-in-4bit", action="store_true", help="以 NF4 4 比特装载（bitsandbytes）")
    return what


def add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    """Add how the next token is drawn; a flag that is not given leaves it to the model."""
    group.add_argument("--max-new-tokens", type=int, help=f"最多生成多少 token（默认 {DEFAULT_MAX_NEW_TOKENS}）")
    group.add_argument("--temperature", type=float, help="0 为贪心解码")
    group.add_argument("--top-p", type=float)
    group.add_argument("--repetition-penalty", type=float)


def add_inference_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add the flags that every inference script has, under the same names and with the same meaning."""
    add_model_flags(parser)
    ask = parser.add_argument_group("提问")
    ask.add_argument("--prompt", help="一个问题，回答写到标准输出")
    ask.add_argument("--system", help="系统提示；行里自带 system 时以行内为准")
    ask.add_argument("--input", metavar="X.jsonl", help="每行 {prompt}、{messages} 或对话记录")
    ask.add_argument("--output", metavar="Y.jsonl", help="逐行写出结果，中断后用同一条命令续跑；不给则写到标准输出")
    ask.add_argument("--overwrite", action="store_true", help="--output 已存在时重新生成，而不是续跑")
    ask.add_argument("--stream", action="store_true", help="边生成边显示（用于 --prompt）")
    ask.add_argument("--interactive", action="store_true", help="多轮对话：/clear 清空历史，/exit 退出")
    how = parser.add_argument_group("生成（不给的取模型 generation_config.json 里的值）")
    add_sampling_flags(how)
    how.add_argument("--seed", type=int, default=42, help="每一行的随机数只由 seed 和行号决定（默认 42）")
    how.add_argument("--batch-size", type=int, default=batch_size, help=f"同时生成多少条（默认 {batch_size}）")


def add_server_flags(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the flags of the engines that have a server: vLLM and SGLang."""
    server = parser.add_argument_group("服务")
    server.add_argument("--serve", action="store_true", help="启动引擎自带的 OpenAI 兼容服务，Ctrl-C 停止")
    server.add_argument(
        "--client", metavar="URL", help="不在本地装载模型，而是向这个服务提问，例如 http://127.0.0.1:8000/v1"
    )
    _add_listen_flags(server, f"--serve 默认 {port}，--web 默认 {WEB_PORT}")
    parser.set_defaults(serve_port=port)
    server.add_argument("--tensor-parallel-size", type=int, default=1, help="用几块 GPU 分担一个模型（默认 1）")
    server.add_argument("--max-model-len", type=int, help="最长多少 token（提示加回答），默认取模型的上限")
    server.add_argument("--serve-timeout", type=float, default=900, help="等服务就绪的秒数（默认 900）")
    server.add_argument("engine_args", nargs="*", metavar="-- 引擎参数", help="写在 -- 之后，原样交给引擎的服务命令")


def add_web_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the chat page, and --host and --port where add_server_flags has not."""
    page = parser.add_argument_group("聊天页")
    page.add_argument("--web", action="store_true", help="打开网页聊天：流式、多轮、几个模型并排；Ctrl-C 停止")
    page.add_argument(
        "--web-models", nargs="+", metavar="名字=模型", help="并排回答同一个问题的模型，例如 base=... stage2=..."
    )
    if parser.get_default("serve_port") is None:
        _add_listen_flags(page, f"默认 {WEB_PORT}")


def _add_listen_flags(group: argparse._ArgumentGroup, port: str) -> None:
    group.add_argument("--host", default="127.0.0.1", help="监听地址（默认 127.0.0.1，只有本机能访问）")
    group.add_argument("--port", type=int, help=f"监听端口（{port}；0 为任选空闲端口）")


def check_server_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that a server cannot take; give --port its default."""
    args.port = args.serve_port if args.port is None else args.port
    for flag in ("client", "prompt", "input", "output", "interactive", "stream", "web"):
        if getattr(args, flag):
            raise UserError(f"--serve 只启动服务，不能同时给 --{flag}；请先启动，再另开一个终端用 --client 提问。")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}：应在 0 到 65535 之间，请修改。")
    check_limits(args)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other or are out of range."""
    ways = [flag for flag in ("prompt", "input", "interactive") if getattr(args, flag)]
    if not ways:
        raise UserError("没有要问的内容：请给出 --prompt 问题、--input 文件.jsonl、--interactive 或 --web。")
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} 和 --{ways[1]} 只能给一个，请去掉其中一个。")
    if args.stream and args.input:
        raise UserError("--stream 用于 --prompt 或 --interactive；--input 的结果按行写出，请去掉 --stream。")
    if args.output and args.interactive:
        raise UserError("--output 用于 --prompt 或 --input；--interactive 不写文件，请去掉其中一个。")
    if getattr(args, "engine_args", None):
        raise UserError(f"不认识的参数 {args.engine_args[0]}；写在 -- 之后的引擎参数只用于 --serve。")
    check_limits(args)


def check_limits(args: argparse.Namespace) -> None:
    """Raise UserError for numbers out of range."""
    limits = {
        "max_new_tokens": (1, None),
        "batch_size": (1, None),
        "temperature": (0, None),
        "top_p": (0, 1),
        "repetition_penalty": (0, None),
        "seed": (-(1 << 53), 1 << 53),
        "max_model_len": (1, None),
        "tensor_parallel_size": (1, None),
        "data_parallel_size": (1, None),
        "serve_timeout": (0, None),
    }
    for name, (low, high) in limits.items():
        value = getattr(args, name, None)
        open_low = name in ("top_p", "repetition_penalty")  # 0 itself means nothing there
        top = high if high is not None else sys.float_info.max
        if value is not None and not (low <= value <= top and not (open_low and value == low)):
            bounds = f"{'大于' if open_low else '不小于'} {low}" + (f"、不大于 {high}" if high is not None else "")
            raise UserError(f"--{name.replace('_', '-')} 是 {value}，应{bounds}，请修改。")


def read_lines(path: str | os.PathLike, missing: str) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, object) for each line that is not blank; UserError says ``missing`` when there is no file."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(missing) from None
    for number, raw in enumerate(data.split(b"\n"), 1):
        if raw.strip():
            where = f"{path}:{number}"
            yield where, parse_line(raw, where)


def read_requests(path: str | os.PathLike, system: str | None = None) -> list[Request]:
    """Read a JSONL file of questions; UserError names the first line that is none by file:line."""
    requests, references = [], 0
    for where, fields in read_lines(path, f"{path}：找不到输入文件，请检查 --input 的路径。"):
        messages, had_reference = build_messages(fields, system, where)
        references += had_reference
        requests.append(Request(len(requests), messages, fields, where))
    if not requests:
        raise UserError(f'{path}：文件里没有一行问题，请写入 {{"prompt": ...}} 这样的行。')
    if references:
        print(f"提示：{references} 行以助手的回答结尾，当作参考答案，不发给模型。", file=sys.stderr)
    return requests


def parse_line(raw: bytes, where: str) -> dict:
    """Return the JSON object of one line; UserError says what is wrong at ``where`` (file:line)."""
    try:
        fields = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{where}：不是 UTF-8 文本，请先转换编码，例如 iconv -f gbk -t utf-8。") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "嵌套太深")
        raise UserError(f"{where}：不是完整的 JSON（{reason}），请改正或删去这一行。") from None
    if not isinstance(fields, dict):
        raise UserError(f'{where}：应是 JSON 对象，实际是 {type(fields).__name__}，请改为 {{"prompt": ...}}。')
    return fields


def build_messages(fields: dict, system: str | None, where: str) -> tuple[list[dict], bool]:
    """Return the messages to send, and whether a reference answer stood at their end and was left off.

    Takes ``{"prompt"}``, ``{"messages"}`` or a conversation record ``{"conversation": [{"human", "assistant"}]}``.
    """
    if "messages" in fields:
        messages = fields["messages"]
    elif "conversation" in fields:
        messages = _conversation_messages(fields["conversation"], where)
    elif "prompt" in fields:
        messages = [{"role": "user", "content": fields["prompt"]}]
    else:
        raise UserError(f"{where}：没有 prompt、messages 或 conversation 字段，请补上其中一个。")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f'{where}：messages 应是 [{{"role", "content"}}, ...]，请改正这一行。')
    system = fields.get("system") or system
    if system and not (messages and messages[0].get("role") == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    messages = [{"role": m.get("role"), "content": m.get("content")} for m in messages]
    had_reference = bool(messages) and messages[-1]["role"] == "assistant"
    if had_reference:
        messages = messages[:-1]
    _check_messages(messages, where)
    return messages, had_reference


def _conversation_messages(turns: object, where: str) -> list[dict]:
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "human" in t for t in turns):
        raise UserError(f'{where}：conversation 应是 [{{"human", "assistant"}}, ...]，请改正这一行。')
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": turn["human"]})
        if turn.get("assistant"):
            messages.append({"role": "assistant", "content": turn["assistant"]})
    return messages


def _check_messages(messages: list[dict], where: str) -> None:
    for position, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ROLES or (role == "system" and position > 0):
            raise UserError(
                f"{where}：第 {position + 1} 条消息的 role 是 {role!r}，应是 user、assistant，或开头的 system。"
            )
        if not isinstance(content, str) or (role != "system" and not content.strip()):
            raise UserError(f"{where}：第 {position + 1} 条消息的内容是空的或不是文本，请改正这一行。")
        if not is_unicode(content):
            raise UserError(
                f"{where}：第 {position + 1} 条消息里有不成对的代理字符（\\ud800 一类，半个字），请改正这一行。"
            )
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"{where}：最后一条消息应是 user 的提问，请改正这一行。")


def result_line(request: Request, completion: Completion) -> bytes:
    """Return the output line of one answer: the input's fields, then the result's."""
    row = {key: value for key, value in request.fields.items() if key not in RESULT_KEYS}
    row |= {key: getattr(completion, "text" if key == "response" else key) for key in RESULT_KEYS}
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair stands in it alone, as a JSON escape can write it."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
