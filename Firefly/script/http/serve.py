"""Serve a model over HTTP with transformers, on CPU or GPU: OpenAI's chat API, and the old Firefly service's request.

    python Firefly/script/http/serve.py --model models/MiniCPM4-0.5B
    curl http://127.0.0.1:8877/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "你是谁？"}]}'

For machines where vLLM and SGLang do not run, or where they are more than is needed. Ctrl-C stops it.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import UserError, exit_cleanly
from component.inference import add_model_flags, add_sampling_flags
from component.listening import address, is_loopback, listen, run_app

KEY_VARIABLE = "FIREFLY_API_KEY"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="用 transformers 提供 HTTP 服务：POST /v1/chat/completions（OpenAI 格式，可流式）、"
        "POST /firefly（旧 Firefly 服务的请求）、GET /v1/models、GET /health。"
    )
    what = add_model_flags(parser)
    what.add_argument("--served-model-name", metavar="名字", help="对外的模型名，默认是文件夹名或适配器名（不含路径）")
    how = parser.add_argument_group("请求里没有写明时的生成设置（不给的取模型 generation_config.json 里的值）")
    add_sampling_flags(how)
    how.add_argument("--seed", type=int, default=42, help="没有带 seed 的请求，其随机数由此和到达次序决定（默认 42）")
    server = parser.add_argument_group("服务")
    server.add_argument("--host", default="127.0.0.1", help="监听地址（默认 127.0.0.1，只有本机能访问）")
    server.add_argument("--port", type=int, default=8877, help="监听端口（默认 8877；0 为任选空闲端口）")
    server.add_argument(
        "--api-key", help=f"要求请求带这个密钥；最好写在环境变量 {KEY_VARIABLE} 里，命令行会被别的用户看到"
    )
    server.add_argument("--batch-size", type=int, default=32, help="同时生成多少条，其余按先后排队（默认 32）")
    server.add_argument("--queue-size", type=int, default=256, help="最多多少条排队，再多答 503（默认 256）")
    server.add_argument(
        "--max-batch-tokens", type=int, default=65536, help="同时生成的各条补齐后共多少 token，限制内存（默认 65536）"
    )
    server.add_argument("--max-body-kb", type=int, default=1024, help="请求体的上限，KB（默认 1024）")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_flags(args)
    api_key = choose_key(args)
    listener = listen(args.host, args.port)
    if not is_loopback(args.host) and not api_key:
        print(
            f"警告：监听 {args.host}，别的机器也能访问，而且没有设密钥；请设置环境变量 {KEY_VARIABLE}。",
            file=sys.stderr,
        )
    with listener:
        run(args, listener, api_key)
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for values out of range."""
    limits = {
        "max_new_tokens": (1, None),
        "temperature": (0, 2),
        "top_p": (0.000001, 1),
        "repetition_penalty": (0.1, 10),
        "port": (0, 65535),
        "batch_size": (1, None),
        "queue_size": (1, None),
        "max_batch_tokens": (1, None),
        "max_body_kb": (1, 1 << 20),
    }
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            bounds = f"不小于 {low}" + ("" if high is None else f"、不大于 {high}")
            raise UserError(f"--{name.replace('_', '-')} 是 {value}，应{bounds}，请修改。")


def choose_key(args: argparse.Namespace) -> str | None:
    """The flag, then the environment; UserError for a key that no header can carry."""
    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE) or None
    if key is not None and (not key.isascii() or not key.isprintable() or " " in key or not key):
        raise UserError(f"--api-key 或 {KEY_VARIABLE}：密钥应是不含空格的 ASCII 字符，不能是空的，请换一个。")
    return key


def run(args: argparse.Namespace, listener: socket.socket, api_key: str | None) -> None:
    """Load the model and answer until SIGINT or SIGTERM."""
    from component.session import choose_device, only_adapter, open_session

    session = open_session(args)
    only_adapter(session)
    device, dtype = choose_device(args)
    from component.generate import load_model
    from component.http_api import Service, build_app
    from component.http_batch import Batcher
    from component.serving import served_name

    name = args.served_model_name or next(iter(session.adapters), None) or served_name(session)
    model = load_model(session, device, dtype, args.load_in_4bit)
    batcher = Batcher(model, args.batch_size, args.queue_size, args.max_batch_tokens)
    # Whoever listens elsewhere is asked under many names; and a key keeps web sites out by itself, behind a proxy too.
    only_here = is_loopback(args.host) and not api_key
    app = build_app(Service(session, batcher, name, api_key, args.max_body_kb << 10, only_here))
    print(f"服务已就绪，模型名 {name}，Ctrl-C 停止。", file=sys.stderr, flush=True)
    print(f"{address(args.host, listener.getsockname()[1])}/v1", flush=True)
    try:
        run_app(app, listener)
    finally:
        batcher.close()
        print("服务已停止。", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
