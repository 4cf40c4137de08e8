"""Ask a running OpenAI-compatible server through the openai package; every answer is read as a stream.

The server holds the chat template, the stop tokens and the sampling defaults; only flags that were given are sent.
"""

import contextlib
import os
import threading
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from .errors import UserError
from .inference import DEFAULT_MAX_NEW_TOKENS, Completion, Engine, Request
from .listening import reach_here_directly
from .rows import BASE


def find_models(args: Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Return how openai's clients reach the server at ``args.client``, and its models as model_names gives them.

    Raises UserError when there is no such server, or when the flags say what only the server can decide.
    """
    import openai

    url = server_url(args.client)
    if args.load_in_4bit or args.adapter:
        flag = "--load-in-4bit" if args.load_in_4bit else "--adapter"
        raise UserError(f"{flag} 由服务端决定，请在 --serve 时给出；客户端用 --model 名字选择模型或适配器。")
    reach_here_directly()
    access = {"base_url": url, "api_key": os.environ.get("OPENAI_API_KEY") or "EMPTY", "timeout": 600}
    with openai.OpenAI(**access) as client, said_plainly(url):
        names = model_names(client)
    if not names:
        raise UserError(f"{url}：服务端没有模型，请检查服务是否已就绪。")
    return access, names


def server_url(given: str) -> str:
    """Return the address that ends in /v1, whether people gave the host, that, or what the curl line asks."""
    url = given.strip().rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is no number
        good = False
    if not good:
        raise UserError(f"--client {given}：应是 http://主机:端口/v1 这样的地址，请修改。")
    return url


def connect(args: Namespace) -> Engine:
    """Return an Engine that asks the server at ``args.client``; ``--batch-size`` questions are under way at a time."""
    import openai

    access, names = find_models(args)
    client = openai.OpenAI(**access)
    default = name_on_server(names, args.model, "--model")
    default = name_on_server(names, getattr(args, "use_adapter", None), "--use-adapter", default)

    def name_of(request: Request) -> str:
        return name_on_server(names, request.fields.get("adapter"), f"{request.where}：adapter 字段", default)

    def check(requests: Iterable[Request]) -> None:
        for request in requests:
            name_of(request)

    def ask(request: Request, emit: Callable[[str], None] = lambda piece: None) -> Completion:
        with said_plainly(request.where):
            return _read_stream(client, request_body(args, names[name_of(request)], request), emit)

    fingerprint = {"server": access["base_url"], **request_body(args, names[default], None)}
    return Engine(
        generate=lambda requests: in_threads(ask, requests, args.batch_size),
        stream=ask,
        window=16 * args.batch_size,
        check=check,
        fingerprint=fingerprint,
    )


def in_threads(
    ask: Callable[[Request], Completion], requests: list[Request], threads: int
) -> Iterator[tuple[Request, Completion]]:
    """Ask ``threads`` at a time and yield the answers as they come; an error of one ends it all.

    The threads are daemons, which a ThreadPoolExecutor's are not: after Ctrl-C or an error the program ends at once,
    not when the answers under way are whole.
    """
    todo, answered = deque(requests), SimpleQueue()

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                request = todo.popleft()
                try:
                    answered.put((request, ask(request)))
                except Exception as error:
                    answered.put((request, error))

    for _ in range(min(threads, len(requests))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in requests:
            request, answer = answered.get()
            if isinstance(answer, Exception):
                raise answer
            yield request, answer
    finally:
        todo.clear()


def model_names(client: Any) -> dict[str, str]:
    """Return {name that people write: name to send}, the base first.

    SGLang lists an adapter under its name but answers to it only as BASE:NAME; under the name alone it would answer
    with the base and not say so.
    """
    cards = [(card.id, card.to_dict()) for card in client.models.list()]
    return {
        name: f"{card['parent']}:{name}" if card.get("owned_by") == "sglang" and card.get("parent") else name
        for name, card in cards
    }


def name_on_server(names: dict[str, str], wanted: Any, where: str, default: str | None = None) -> str:
    """Return the model that ``wanted`` names; without one the default, the first; "base" is the first too."""
    if wanted is None:
        return default or next(iter(names))
    if wanted == BASE and wanted not in names:
        return next(iter(names))
    if wanted not in names:
        raise UserError(f"{where} {wanted}：服务端没有这个模型，有的是：{'、'.join(names)}。")
    return wanted


def request_body(args: Namespace, model: str, request: Request | None) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "max_tokens": args.max_new_tokens or DEFAULT_MAX_NEW_TOKENS}
    for name in ("temperature", "top_p"):
        if getattr(args, name) is not None:
            body[name] = getattr(args, name)
    if args.repetition_penalty is not None:
        body["extra_body"] = {"repetition_penalty": args.repetition_penalty}  # vLLM and SGLang know it, OpenAI does not
    if request is None:
        return body | {"seed": args.seed}
    return body | {"seed": args.seed + request.index, "messages": request.messages}


def _read_stream(client: Any, body: dict[str, Any], emit: Callable[[str], None]) -> Completion:
    pieces, finish, usage = [], None, None
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta and choice.delta.content:
                pieces.append(choice.delta.content)
                emit(choice.delta.content)
            finish = choice.finish_reason or finish
    if finish is None:
        raise UserError("服务端中途断开，这一条没有答完；请检查服务，然后用同一条命令继续。")
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return Completion("".join(pieces), finish, *counts)


@contextlib.contextmanager
def said_plainly(where: str) -> Iterator[None]:
    """Turn what goes wrong with a server at ``where`` into a UserError."""
    import openai

    try:
        yield
    except openai.OpenAIError as error:
        raise as_user_error(where, error) from error
    except (AttributeError, TypeError, ValueError) as error:  # the package trips over a page, or JSON of another kind
        raise UserError(f"{where}：这个地址回答的不是 OpenAI 兼容服务的格式，请检查 --client 的地址。") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise _cut_off(where, error) from error  # openai 2 lets this through when a server dies in mid-stream


def as_user_error(where: str, error: Exception) -> UserError:
    import openai

    if isinstance(error, openai.APIConnectionError):
        return _cut_off(where, error)
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return UserError(f"{where}：服务端要求密钥（HTTP {status}），请设置环境变量 OPENAI_API_KEY。")
    body = getattr(error, "body", None)
    message = str((body.get("message") if isinstance(body, dict) else None) or error)[:300]
    if status is None:  # said in the middle of a stream
        return UserError(f"{where}：服务端没有答完（{message}），请检查服务端的日志，然后用同一条命令继续。")
    return UserError(f"{where}：服务端拒绝了这一条（HTTP {status}：{message}），请按提示修改。")


def _cut_off(where: str, error: Exception) -> UserError:
    return UserError(f"{where}：连不上服务或中途断开（{error}），请先用 --serve 启动，并检查地址和端口。")
