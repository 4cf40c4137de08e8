"""Ask a model with vLLM: a JSONL file offline, a server of its own (--serve), or a running server (--client).

    python inference_with_vLLM.py --model models/MiniCPM4-0.5B --input questions.jsonl --output answers.jsonl

MiniCPM runs through its Granite view (Firefly/component/minicpm.py): no remote code, no plugin, no copy of the weights.
Flags, JSONL and prompt token ids are those of inference_with_transformers.py. Install from requirements-vllm.txt into
an environment of its own; docs/VLLM_CPU.md tells how to run it without a GPU.

Several machines: --serve on each, with vLLM's own flags behind "--" (not run by us). Every node makes the view of its
own copy of the model, so only --model need be right there:

    first node    ... --serve --host 0.0.0.0 --tensor-parallel-size 16 -- --nnodes 2 --node-rank 0 --master-addr 10.0.0.1
    second node   ... --serve --tensor-parallel-size 16 -- --nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --headless

With Ray (``-- --distributed-executor-backend ray``, first node only) the path of the view is sent to every node: let
XDG_CACHE_HOME and the model lie on a shared disk. VLLM_API_KEY in the environment makes the server ask for that key.
"""

import argparse
import os
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
    parser = argparse.ArgumentParser(description="用 vLLM 推理：离线成批、启动服务（--serve）、访问服务（--client）。")
    add_inference_flags(parser, batch_size=64)
    add_row_flags(parser)
    add_server_flags(parser, port=8000)
    add_parallel_flags(parser)
    add_web_flags(parser)
    return parser


def engine_settings(args: argparse.Namespace, session: Any, dtype: Any, on_gpu: bool) -> dict[str, Any]:
    """Return the settings that the offline engine and the server share, under the names of ``vllm.LLM``."""
    from Firefly.component.minicpm import granite_view
    from Firefly.component.resolve import read_json

    settings = {
        "model": str(granite_view(session.model_dir)),
        "dtype": str(dtype).removeprefix("torch."),
        "tensor_parallel_size": args.tensor_parallel_size,
        **({"data_parallel_size": args.data_parallel_size} if args.data_parallel_size > 1 else {}),
        "max_num_seqs": args.batch_size,
        "seed": args.seed,
    }
    if args.max_model_len:
        settings["max_model_len"] = args.max_model_len
    if args.load_in_4bit:
        settings["quantization"] = "bitsandbytes"
    if not on_gpu:
        settings["enforce_eager"] = True
    if session.adapters:
        ranks = [read_json(path / "adapter_config.json").get("r", 16) for path in session.adapters.values()]
        # On a CPU, vLLM 0.32 gives a row without adapter that shares its batch the weights of the last slot: leave it empty.
        slots = len(ranks) + (not on_gpu)
        settings |= {"enable_lora": True, "max_loras": slots, "max_lora_rank": _allowed_rank(max(ranks))}
    return settings


def _allowed_rank(rank: int) -> int:
    """vLLM takes only certain maximum ranks; the smallest that holds ``rank``."""
    for allowed in (1, 8, 16, 32, 64, 128, 256, 320, 512):
        if rank <= allowed:
            return allowed
    raise UserError(f"适配器的 rank 是 {rank}，vLLM 最大 512；请先用 Firefly/script/merge_lora.py 合并。")


def engine_env(on_gpu: bool) -> dict[str, str]:
    """Return environment variables for vLLM; what the user has set stays."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
    if not on_gpu:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB; a 0.5B model needs little
    return {key: value for key, value in wanted.items() if key not in os.environ}


def load_engine(args: argparse.Namespace) -> Engine:
    """Start vLLM in this process, or connect to a server."""
    if args.client:
        from Firefly.component.client import connect

        return connect(args)
    from Firefly.component.rows import plan_rows
    from Firefly.component.session import choose_device, open_session

    if args.data_parallel_size > 1:
        raise UserError(
            "--data-parallel-size 只用于 --serve（vLLM 的离线引擎不支持）；请先 --serve，再用 --client 成批提问。"
        )
    session = open_session(args)
    session = replace(session, context=min(session.context, args.max_model_len or session.context))
    rows = plan_rows(session, args)
    device, dtype = choose_device(args)
    on_gpu = device.startswith("cuda")
    os.environ.update(engine_env(on_gpu))
    settings = engine_settings(args, session, dtype, on_gpu)
    if args.tensor_parallel_size == 1:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if not on_gpu and args.tensor_parallel_size == 1:
        settings["distributed_executor_backend"] = "uni"
    LLM = import_vllm().LLM
    llm = LLM(**settings, generation_config="vllm", disable_log_stats=True)
    lora = lora_requests(session)
    return Engine(
        generate=lambda requests: generate(llm, lora, session, rows, requests),
        stream=lambda request, emit: stream_answer(llm, lora, session, rows, request, emit),
        window=16 * args.batch_size,
        check=rows.check,
        fingerprint=rows.fingerprint,
    )


def lora_requests(session: Any) -> dict[str | None, Any]:
    """Return vLLM's LoRARequest for each adapter name, and None for the base."""
    if not session.adapters:
        return {None: None}
    from vllm.lora.request import LoRARequest

    paths = enumerate(session.adapters.items(), 1)
    return {None: None} | {name: LoRARequest(name, number, str(path.resolve())) for number, (name, path) in paths}


def import_vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"这个环境里没有可用的 vLLM（{error}）；请在单独的虚拟环境里 pip install -r requirements-vllm.txt，"
            "没有 GPU 时见 docs/VLLM_CPU.md。"
        ) from None
    return vllm


def sampling_params(session: Any, request: Request, prompt_tokens: int) -> Any:
    """Return vLLM's SamplingParams; stop tokens are handed over as ids, and every row has its own seed."""
    from vllm import SamplingParams

    sampling = session.sampling
    return SamplingParams(
        max_tokens=session.room(prompt_tokens),
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed + request.index,
        stop_token_ids=list(session.stop_ids),
        detokenize=False,  # the ids become text in session.complete, the same for every engine
    )


def generate(
    llm: Any, lora: dict[str | None, Any], session: Any, rows: Rows, requests: list[Request]
) -> Iterator[tuple[Request, Completion]]:
    """Answer a window of requests; vLLM batches them itself, adapters mixed."""
    requests = list(map(rows.fit, requests))
    prompts = [session.encode(request) for request in requests]
    params = [sampling_params(session, r, len(p)) for r, p in zip(requests, prompts, strict=True)]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    chosen = [lora[rows.adapter(request)] for request in requests] if len(lora) > 1 else None
    outputs = llm.generate(inputs, params, lora_request=chosen, use_tqdm=False)
    for request, prompt, output in zip(requests, prompts, outputs, strict=True):
        yield request, session.complete(prompt, output.outputs[0].token_ids)


def stream_answer(
    llm: Any, lora: dict[str | None, Any], session: Any, rows: Rows, request: Request, emit: Callable[[str], None]
) -> Completion:
    """Answer one request piece by piece by stepping vLLM's engine in this process."""
    from Firefly.component.session import TextStream

    prompt, text, seen = session.encode(rows.fit(request)), TextStream(session), 0
    llm.llm_engine.add_request(
        f"stream-{request.index}",
        {"prompt_token_ids": prompt},
        sampling_params(session, request, len(prompt)),
        lora_request=lora[rows.adapter(request)],
    )
    ids: list[int] = []
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            ids = list(output.outputs[0].token_ids)
            for token in ids[seen:]:
                emit(text.add(token))
            seen = len(ids)
    return session.complete(prompt, ids)


def server_command(args: argparse.Namespace, session: Any, settings: dict[str, Any], folder: Path) -> list[str]:
    """Return the command that starts vLLM's own OpenAI-compatible server. ``folder``: see write_server_settings."""
    from Firefly.component.serving import served_name

    command = [sys.executable, "-m", *_server_entry(), settings["model"]]
    for key, value in settings.items():
        if key == "model":
            continue
        flag = f"--{key.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    command += ["--host", args.host, "--port", str(args.port), "--served-model-name", served_name(session)]
    command += ["--chat-template", str(folder / "chat_template.jinja"), "--generation-config", str(folder)]
    if session.adapters:
        command += ["--lora-modules", *(f"{name}={path.absolute()}" for name, path in session.adapters.items())]
    return command + args.engine_args


def _server_entry() -> list[str]:
    """``vllm serve``, which alone knows --headless and several API servers. On vllm-cpu it stumbles over the name of
    its own distribution; there the older module does.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm")
    except PackageNotFoundError:
        return ["vllm.entrypoints.openai.api_server", "--model"]
    return ["vllm.entrypoints.cli.main", "serve"]


def serve(args: argparse.Namespace) -> int:
    """Run the server until it is stopped."""
    from Firefly.component import serving
    from Firefly.component.session import choose_device, open_session

    session = open_session(args)
    device, dtype = choose_device(args)
    on_gpu = device.startswith("cuda")
    import_vllm()
    args.port = serving.free_port(args.host, args.port)
    settings = engine_settings(args, session, dtype, on_gpu)
    with serving.settings_folder() as folder:
        serving.write_server_settings(session, Path(folder))
        if "ray" not in " ".join(args.engine_args):  # there the other nodes need the path as it is
            session, view = serving.hide_paths(session, Path(settings["model"]), Path(folder))
            settings["model"] = str(view)
        command = server_command(args, session, settings, Path(folder))
        name = next(iter(session.adapters), serving.served_name(session))
        return serving.serve(command, args.host, args.port, name, engine_env(on_gpu), args.serve_timeout)


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
