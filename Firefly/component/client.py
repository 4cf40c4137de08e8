"""Ask a running OpenAI-compatible server through the openai package; every answer is read as a stream.

The server holds the chat template, the stop tokens and the sampling defaults; only flags that were given are sent.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from .errors import UserError
from .inference import DEFAULT_MAX_NEW_TOKENS, Completion, Engine, Request
from .rows import BASE


def connect(args: Namespace) -> Engine:
    """Return an Engine that asks the server at ``args.client``; ``--batch-size`` questions are under way at a time."""
    import openai

    if not args.client.startswith(("http://", "https://")):
        raise UserError(f"--client {args.client}：应是 http://主机:端口/v1 这样的地址，请修改。")
    if args.load_in_4bit or args.adapter:
        flag = "--load-in-4bit" if args.load_in_4bit else "--adapter"
        raise UserError(f"{flag} 由服务端决定，请在 --serve 时给出；客户端用 --model 名字选择模型或适配器。")
    url = args.client.rstrip("/")
    url = url if url.endswith("/v1") else url + "/v1"
    client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "EMPTY", timeout=600)
    try:
        names = model_names(client)
    except openai.OpenAIError as error:
        raise as_user_error(url, error) from error
    if not names:
        raise UserError(f"{url}：服务端没有模型，请检查服务是否已就绪。")
    default = _name_on_server(names, args.model, "--model")
    default = _name_on_server(names, getattr(args, "use_adapter", None), "--use-adapter", default)

    def name_of(request: Request) -> str:
        return _name_on_server(names, request.fields.get("adapter"), f"{request.where}：adapter 字段", default)

    def check(requests: Iterable[Request]) -> None:
        for request in requests:
            name_of(request)

    def ask(request: Request, emit: Callable[[str], None] = lambda piece: None) -> Completion:
        try:
            return _read_stream(client, request_body(args, names[name_of(request)], request), emit)
        except openai.OpenAIError as error:
            raise as_user_error(request.where, error) from error

    def generate(requests: list[Request]) -> Iterator[tuple[Request, Completion]]:
        pool = ThreadPoolExecutor(args.batch_size)
        try:
            asked = {pool.submit(ask, request): request for request in requests}
            for future in as_completed(asked):
                yield asked[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    fingerprint = {"server": url, **request_body(args, names[default], None)}
    return Engine(generate, ask, window=16 * args.batch_size, check=check, fingerprint=fingerprint)


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


def _name_on_server(names: dict[str, str], wanted: Any, where: str, default: str | None = None) -> str:
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
            if choice.delta.content:
                pieces.append(choice.delta.content)
                emit(choice.delta.content)
            finish = choice.finish_reason or finish
    if finish is None:
        raise UserError("服务端中途断开，这一条没有答完；请检查服务，然后用同一条命令继续。")
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return Completion("".join(pieces), finish, *counts)


def as_user_error(where: str, error: Exception) -> UserError:
    status = getattr(error, "status_code", None)
    if status is None:
        return UserError(f"{where}：连不上服务或中途断开（{error}），请先用 --serve 启动，并检查地址和端口。")
    if status in (401, 403):
        return UserError(f"{where}：服务端要求密钥（HTTP {status}），请设置环境变量 OPENAI_API_KEY。")
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return UserError(f"{where}：服务端拒绝了这一条（HTTP {status}：{str(message or error)[:300]}），请按提示修改。")
