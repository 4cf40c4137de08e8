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
from Firefly.component.rows import add_row_flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="用 transformers 推理：单个问题、多轮对话、网页聊天，或成批处理 JSONL。"
    )
    add_inference_flags(parser, batch_size=32)
    add_row_flags(parser)
    add_web_flags(parser)
    return parser


def load_engine(args: argparse.Namespace) -> Engine:
    """Load model and tokenizer as the flags say."""
    from Firefly.component import generate

    return generate.load_engine(args)


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
