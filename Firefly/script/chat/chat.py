"""Talk to a model in the terminal: a local folder or adapter, or a running server.

    python Firefly/script/chat/chat.py --model models/MiniCPM4-0.5B
    python Firefly/script/chat/chat.py --client http://127.0.0.1:8877

The flags are those of inference_with_transformers.py --interactive; the old multi_chat.py is this, single_chat.py is
one question at a time with /clear between.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import exit_cleanly
from component.inference import add_inference_flags, check_flags
from component.results import chat
from component.rows import add_row_flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="在终端里与模型多轮对话：/clear 清空历史，/exit 退出。")
    add_inference_flags(parser, batch_size=1)
    add_row_flags(parser)
    parser.add_argument("--client", metavar="URL", help="不在本地装载模型，而是向这个 OpenAI 兼容服务提问")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.interactive = True
    check_flags(args)
    if args.client:
        from component.client import connect

        engine = connect(args)
    else:
        from component.generate import load_engine

        engine = load_engine(args)
    chat(engine, args.system)
    return 0


if __name__ == "__main__":
    sys.exit(main())
