"""Run the three MiniCPM4 train_args files, as they are but for paths and steps, on MiniCPM4-0.5B's shape cut to 2 layers.

    python benchmarks/bench_minicpm4_shape.py --train-file data/processed/hit_conversation.jsonl --steps 3

The model has the published width, heads and vocabulary of 73,448 (random weights), so that memory and speed per layer
are the real ones. Prints one Markdown row per file: seconds a step, target tokens/s, peak memory, first and last loss.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 73448,
    "dim_model_base": 256,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="用 MiniCPM4-0.5B 的形状（2 层）实跑三份训练参数，打印速度与内存。")
    parser.add_argument("--train-file", required=True, help="conversation JSONL")
    parser.add_argument("--steps", type=int, default=3, help="每份参数训练几步（默认 3）")
    parser.add_argument("--modes", nargs="+", default=["qlora", "lora", "full"])
    return parser


def build_model(folder: Path, texts: list[str]) -> Path:
    """Write the cut model: a small tokenizer of its own, embeddings for all 73,448 tokens."""
    import torch
    from transformers import GraniteForCausalLM

    from Firefly.component.checkpoint import load_config, save_checkpoint
    from scripts.make_tiny_model import minicpm_config, train_tokenizer

    folder.mkdir(parents=True)
    factors = [1.0] * (SHAPE["hidden_size"] // SHAPE["num_attention_heads"] // 2)
    config = minicpm_config(2500, 192, 2, "bfloat16") | SHAPE
    config["rope_scaling"] |= {"long_factor": factors, "short_factor": factors}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_checkpoint(GraniteForCausalLM(load_config(folder)).to(torch.bfloat16), folder, train_tokenizer(texts, 2500))
    return folder


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    texts = Path(args.train_file).read_text(encoding="utf-8").splitlines()[:500]
    print(
        "| 参数文件 | 秒/步 | 目标 token/s | 峰值内存 GiB | 首步损失 | 末步损失 |\n| --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as scratch:
        model = build_model(Path(scratch) / "model", texts)
        for mode in args.modes:
            name, out = f"train_args/sft/{mode}/minicpm4-0.5b-sft-{mode}.json", Path(scratch) / mode
            changes = {
                "model_name_or_path": model,
                "train_file": Path(args.train_file).resolve(),
                "output_dir": out,
                "max_steps": args.steps,
                "logging_steps": 1,
            }
            flags = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
            subprocess.run(
                [sys.executable, "train.py", "--train_args_file", name, *flags], cwd=ROOT / "Firefly", check=True
            )
            result = json.loads((out / "train_results.json").read_text())
            history = json.loads((out / "trainer_state.json").read_text())["log_history"]
            losses = [entry["loss"] for entry in history if "loss" in entry]
            peak = result.get("peak_gpu_allocated_gib", result["peak_rss_gib"])
            row = [
                name,
                f"{result['train_runtime'] / args.steps:.1f}",
                f"{result['train_target_tokens_per_second']:.0f}",
            ]
            print("| " + " | ".join([*row, f"{peak:.2f}", f"{losses[0]:.3f}", f"{losses[-1]:.3f}"]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
