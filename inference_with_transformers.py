"""Ask a model with transformers, on CPU or GPU: one question, a chat (also as a web page: --web), or a JSONL file in batches.

    python inference_with_transformers.py --model models/MiniCPM4-0.5B --input questions.jsonl --output answers.jsonl

A LoRA adapter needs no merging (--adapter). The output has one JSON a line, in the order of the input, and a cut run
goes on where it stopped. The same flags work in inference_with_vLLM.py and inference_with_SGLang.py.
"""

import argparse
import sys

from Firefly.component.errors import exit_cleanly
from Firefly.component.inference import Engine, add_inference_flags, add_web_flags, check_flags
from Firefly.component.results import run


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="用 transformers 推理：单个问题、多轮对话、网页聊天，或成批处理 JSONL。"
    )
    add_inference_flags(parser, batch_size=8)
    add_web_flags(parser)
    return parser


def load_engine(args: argparse.Namespace) -> Engine:
    """Load model and tokenizer as the flags say."""
    from Firefly.component.session import choose_device, only_adapter, open_session

    session = open_session(args)
    only_adapter(session)
    device, dtype = choose_device(args)
    from Firefly.component.generate import generate_window, load_model, stream_answer

    model = load_model(session, device, dtype, args.load_in_4bit)
    return Engine(
        generate=lambda requests: generate_window(model, session, requests, args.batch_size),
        stream=lambda request, emit: stream_answer(model, session, request, emit),
        window=16 * args.batch_size,
        check=session.check,
        fingerprint=session.fingerprint(),
    )


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.web:
        from Firefly.component.web import open_page

        return open_page(args)
    check_flags(args)
    return run(args, load_engine)


if __name__ == "__main__":
    sys.exit(main())
