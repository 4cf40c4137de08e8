"""Ask a local model one question, on a laptop's CPU if need be. The answer streams to stdout.

    python quick_infer_local.py --model models/MiniCPM4-0.5B --prompt 哈工大的校训是什么？

For files, chat and servers see inference_with_transformers.py.
"""

import argparse
import sys
from pathlib import Path

from Firefly.component.errors import UserError, exit_cleanly

DEFAULT_MODEL = Path(__file__).resolve().parent / "models" / "MiniCPM4-0.5B"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="问本地模型一个问题；没有 GPU 时用 CPU。")
    parser.add_argument(
        "--model", default=str(DEFAULT_MODEL), help="模型或 LoRA 适配器文件夹（默认 models/MiniCPM4-0.5B）"
    )
    parser.add_argument("--prompt", default="你是谁？", help="问题（默认：你是谁？）")
    parser.add_argument("--system", help="系统提示")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="最多生成多少 token（默认 256）")
    parser.add_argument("--temperature", type=float, help="0 为贪心解码；默认取模型 generation_config.json 里的值")
    parser.add_argument("--seed", type=int, default=42)
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.model == str(DEFAULT_MODEL) and not DEFAULT_MODEL.is_dir():
        raise UserError(
            "models/MiniCPM4-0.5B 还没有模型：请先运行 python data/download.py 下载，或用 --model 指定一个模型文件夹。"
        )
    from inference_with_transformers import main as ask

    argv = ["--model", args.model, "--prompt", args.prompt, "--stream", "--seed", str(args.seed)]
    argv += ["--max-new-tokens", str(args.max_new_tokens)]
    argv += ["--system", args.system] if args.system else []
    argv += ["--temperature", str(args.temperature)] if args.temperature is not None else []
    return ask(argv)


if __name__ == "__main__":
    sys.exit(main())
