"""Ask a model with SGLang: a JSONL file offline, a server of its own (--serve), or a running server (--client).

    python inference_with_SGLang.py --model models/MiniCPM4-0.5B --input questions.jsonl --output answers.jsonl

MiniCPM runs through its Granite view (Firefly/component/minicpm.py): no remote code, no plugin, no copy of the weights.
Flags, JSONL and prompt token ids are those of inference_with_transformers.py. Install from requirements-sglang.txt into
an environment of its own.

Several machines: --serve on each, with SGLang's own flags behind "--" (not run by us), each with its own copy of the
model: ``... --serve --tensor-parallel-size 16 -- --nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:5000``, and
``--node-rank 1`` on the second. ``-- --api-key KEY`` makes the server ask for a key. In a request to the server itself
an adapter is named BASE:NAME; under NAME alone SGLang answers with the base (--client takes care of that).

What was run and what was not: SGLang needs a GPU. The server command parses in the real package (0.5.23), the engine's
arguments and results were read in its source, and --client ran against real OpenAI-compatible servers. --serve and the
offline engine have not been run on a GPU by us; one command there does, and holds the answers against transformers':
``python benchmarks/engine_check.py --engine SGLang --dtype float16``.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from Firefly.component.errors import UserError, exit_cleanly
from Firefly.component.inference import (
    Completion,
    Engine,
    Request,
    add_inference_flags,
    add_server_flags,
    add_web_flags,
    check_flags,
    check_server_flags,
)
from Firefly.component.results import run
from Firefly.component.rows import Rows, add_row_flags
from Firefly.component.serving import add_parallel_flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="用 SGLang 推理：离线成批、启动服务（--serve）、访问服务（--client）。",
        epilog="说明：SGLang 需要 GPU。服务命令由 0.5.23 的真实解析器读过，引擎参数按其源码核对，--client 对真实的 OpenAI 兼容服务跑过；"
        "--serve 和离线引擎还没有在 GPU 上实跑。",
    )
    add_inference_flags(parser, batch_size=64)
    add_row_flags(parser)
    add_server_flags(parser, port=30000)
    add_parallel_flags(parser)
    add_web_flags(parser)
    return parser


def engine_settings(args: argparse.Namespace, session: Any, dtype: Any, on_gpu: bool) -> dict[str, Any]:
    """Return the settings that the offline engine and the server share, under the names of SGLang's ServerArgs."""
    from Firefly.component.minicpm import granite_view

    settings = {
        "model_path": str(granite_view(session.model_dir)),
        "dtype": str(dtype).removeprefix("torch."),
        "tp_size": args.tensor_parallel_size,
        "dp_size": args.data_parallel_size,
        "max_running_requests": args.batch_size,
        "random_seed": args.seed,
    }
    if args.max_model_len:
        settings["context_length"] = args.max_model_len
    if args.load_in_4bit:
        settings |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    if not on_gpu:
        settings["device"] = "cpu"
    if session.adapters:
        settings["enable_lora"] = True
        settings["lora_paths"] = [f"{name}={path.absolute()}" for name, path in session.adapters.items()]
    return settings


def load_engine(args: argparse.Namespace) -> Engine:
    """Start SGLang in this process, or connect to a server."""
    if args.client:
        from Firefly.component.client import connect

        return connect(args)
    from Firefly.component.rows import plan_rows
    from Firefly.component.session import choose_device, open_session

    session = open_session(args)
    session = replace(session, context=min(session.context, args.max_model_len or session.context))
    rows = plan_rows(session, args)
    device, dtype = choose_device(args)
    settings = engine_settings(args, session, dtype, device.startswith("cuda"))
    # Ids in, ids out: the tokenizer stays with us, so that text and prompts are those of the other engines.
    sglang = import_sglang()
    engine = sglang.Engine(**settings, skip_tokenizer_init=True, log_level="warning")
    return Engine(
        generate=lambda requests: generate(engine, session, rows, requests),
        stream=lambda request, emit: stream_answer(engine, session, rows, request, emit),
        window=16 * args.batch_size,
        check=rows.check,
        fingerprint=rows.fingerprint,
    )


def import_sglang() -> Any:
    try:
        import sglang
    except ImportError as error:
        raise UserError(
            f"这个环境里没有可用的 SGLang（{error}）；请在带 GPU 的机器上，在单独的虚拟环境里 pip install -r requirements-sglang.txt。"
        ) from None
    return sglang


def sampling_params(session: Any, request: Request, prompt_tokens: int) -> dict[str, Any]:
    """Return SGLang's sampling parameters; stop tokens are handed over as ids, and every row has its own seed."""
    sampling = session.sampling
    return {
        "max_new_tokens": session.room(prompt_tokens),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "repetition_penalty": sampling.repetition_penalty,
        "sampling_seed": sampling.seed + request.index,
        "stop_token_ids": list(session.stop_ids),
        "no_stop_trim": True,
    }


def generate(engine: Any, session: Any, rows: Rows, requests: list[Request]) -> Iterator[tuple[Request, Completion]]:
    """Answer a window of requests; SGLang batches them itself, adapters mixed."""
    requests = list(map(rows.fit, requests))
    prompts = [session.encode(request) for request in requests]
    params = [sampling_params(session, r, len(p)) for r, p in zip(requests, prompts, strict=True)]
    lora = [rows.adapter(request) for request in requests] if session.adapters else None
    outputs = engine.generate(input_ids=prompts, sampling_params=params, lora_path=lora)
    for request, prompt, output in zip(requests, prompts, outputs, strict=True):
        yield request, session.complete(prompt, output["output_ids"])


def stream_answer(engine: Any, session: Any, rows: Rows, request: Request, emit: Callable[[str], None]) -> Completion:
    """Answer one request piece by piece; each chunk holds all ids so far."""
    from Firefly.component.session import TextStream

    prompt, text, seen = session.encode(rows.fit(request)), TextStream(session), 0
    ids: list[int] = []
    params = sampling_params(session, request, len(prompt))
    lora = rows.adapter(request)
    for chunk in engine.generate(input_ids=prompt, sampling_params=params, lora_path=lora, stream=True):
        ids = list(chunk["output_ids"])
        for token in ids[seen:]:
            emit(text.add(token))
        seen = len(ids)
    return session.complete(prompt, ids)


def server_command(args: argparse.Namespace, session: Any, settings: dict[str, Any], folder: Path) -> list[str]:
    """Return the command that starts SGLang's own OpenAI-compatible server.

    ``folder`` is the model with the session's template and generation settings beside linked weights: SGLang has no
    flag for either sampling defaults or stop tokens, it reads them where the model lies.
    """
    from Firefly.component.serving import served_name

    command = [sys.executable, "-m", "sglang.launch_server"]
    for key, value in (settings | {"model_path": str(folder)}).items():
        command += [f"--{key.replace('_', '-')}"]
        command += [] if value is True else value if isinstance(value, list) else [str(value)]
    command += ["--host", args.host, "--port", str(args.port), "--served-model-name", served_name(session)]
    command += ["--chat-template", str(folder / "chat_template.jinja")]
    return command + args.engine_args


def serve(args: argparse.Namespace) -> int:
    """Run the server until it is stopped."""
    from Firefly.component import serving
    from Firefly.component.minicpm import granite_view
    from Firefly.component.session import choose_device, open_session

    session = open_session(args)
    device, dtype = choose_device(args)
    import_sglang()
    args.port = serving.free_port(args.host, args.port)
    with serving.settings_folder() as folder:
        serving.write_server_settings(session, Path(folder))
        shown, view = serving.hide_paths(session, granite_view(session.model_dir), Path(folder))
        settings = engine_settings(args, shown, dtype, device.startswith("cuda"))
        serving.link_missing(view, Path(folder))
        command = server_command(args, session, settings, Path(folder))
        base = serving.served_name(session)
        name = f"{base}:{next(iter(session.adapters))}" if session.adapters else base
        return serving.serve(command, args.host, args.port, name, {}, args.serve_timeout)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.serve:
        check_server_flags(args)
        return serve(args)
    if args.web:
        from Firefly.component.web import open_page

        return open_page(args)
    check_flags(args)
    return run(args, load_engine)


if __name__ == "__main__":
    sys.exit(main())
