"""Training speed and memory on a CPU against other trainers, one after another, on the same model, records and order.

    python chatml2conversation.py --in data/processed/mix.jsonl --out data/processed/conversation.jsonl
    bash benchmarks/make_venvs.sh ~/bench-venvs
    python benchmarks/bench_train.py --train-file data/processed/conversation.jsonl --venvs ~/bench-venvs

Contenders: plain (transformers' Trainer with padding and full logits), ours (Firefly/train.py with its defaults),
trl and llamafactory; the names ending in -packed pack records into rows of --max-length. Each is a process of its own
in its own virtual environment. Full float32 training of a MiniCPM-shaped model with random weights. Prints one Markdown
table per vocabulary and accumulation: tokens of data a second after the warm-up, peak memory of the process, ratios to
plain, and how far the losses of all steps are from plain's (LLaMA-Factory's also cover the line break after an answer).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_data

HERE = Path(__file__).resolve().parent
CONTENDERS = {  # name: (script, virtual environment, packed)
    "plain": ("train_plain.py", "plain", False),
    "ours": ("train_ours.py", "", False),
    "ours-packed": ("train_ours.py", "", True),
    "trl": ("train_trl.py", "trl", False),
    "trl-packed": ("train_trl.py", "trl", True),
    "llamafactory": ("train_llamafactory.py", "llamafactory", False),
    "llamafactory-packed": ("train_llamafactory.py", "llamafactory", True),
}
OURS = {  # the default laid flat, against other ways to the same batches; only when they are named
    "ours-padded": {"padding_free": False},
    "ours-by-length": {"padding_free": False, "train_sampling_strategy": "group_by_length"},
}
HIDDEN = {73448: 256, 3000: 512}  # 6 layers each: 23M and 17M parameters
PACKED_ROWS = 2  # about as many tokens as 8 records padded


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="在 CPU 上与其他训练器比较速度与内存（同一模型、同一数据、同一顺序）。"
    )
    parser.add_argument("--train-file", required=True, help="conversation JSONL")
    parser.add_argument("--venvs", default="", help="各训练器的虚拟环境所在的文件夹，见 make_venvs.sh")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, *OURS], default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, default=20, help="计时的批数（默认 20）；累积 k 时一步算 k 批")
    parser.add_argument("--warm-up", type=int, default=3, help="计时前的批数（默认 3）")
    parser.add_argument("--vocab", nargs="+", type=int, default=[73448, 3000], help="词表大小")
    parser.add_argument("--accumulation", nargs="+", type=int, default=[1, 4], help="梯度累积")
    parser.add_argument("--hidden", type=int, help="隐藏维度；默认词表 73448 用 256，3000 用 512")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2, help="OMP_NUM_THREADS")
    parser.add_argument("--repeat", type=int, default=1, help="每个训练器跑几遍，取最快的一遍")
    parser.add_argument("--keep", metavar="FOLDER", help="把模型、数据和各训练器的输出留在这个文件夹")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        tokenizer = train_tokenizer(Path(args.train_file))
        for vocab in args.vocab:
            for accumulation in args.accumulation:
                case = folder / f"vocab{vocab}-accumulation{accumulation}"
                if case.exists():
                    print(f"错误：{case} 已存在，请换一个 --keep。", file=sys.stderr)
                    return 2
                settings = prepare(args, case, tokenizer, vocab, accumulation)
                told = f"{settings['parameters'] / 1e6:.1f}M 参数，平均 {settings['mean_tokens']:.0f} token/条"
                share = f"目标占 {settings['target_share']:.0%}"
                print(f"\n词表 {vocab}，累积 {accumulation}（{told}，{share}）\n", flush=True)
                results = {name: best_run(args, name, settings, case) for name in args.contenders}
                print(table(results, settings), flush=True)
    return 0


def train_tokenizer(conversations: Path) -> Any:
    """One tokenizer for all: 3,000 tokens, learned on the file; "</s>", which no record holds, pads."""
    from scripts.make_tiny_model import train_tokenizer as learn

    tokenizer = learn(conversations.read_text(encoding="utf-8").splitlines()[:2000], 3000)
    tokenizer.pad_token = "</s>"
    return tokenizer


def prepare(args: argparse.Namespace, case: Path, tokenizer: Any, vocab: int, accumulation: int) -> dict[str, Any]:
    """Write model and data for one table, and return the settings that all contenders share."""
    from Firefly.component.minicpm import write_granite_view
    from Firefly.component.template import use_template

    hidden = args.hidden or HIDDEN.get(vocab, 256)
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": hidden // 32,
        "vocab_size": vocab,
        "dim_model_base": hidden // 4,
    }
    model = bench_data.build_model(case / "model", tokenizer, shape)
    warm_up = max(1, args.warm_up // accumulation)
    steps = warm_up + max(2, args.steps // accumulation)
    use_template(tokenizer, "minicpm4")
    data = bench_data.write_data(
        case, Path(args.train_file), tokenizer, args.max_length, (steps + 1) * args.batch * accumulation
    )
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 42,
        "train_sampling_strategy": "sequential",
    }
    size = (model / "model.safetensors").stat().st_size / 4
    return data | {
        "model": str(model),
        "view": str(write_granite_view(model, case / "view")),
        "parameters": size,
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": args.max_length,
        "warm_up": warm_up,
        "train_mode": "full",
        "training": training,
    }


def best_run(args: argparse.Namespace, name: str, settings: dict[str, Any], case: Path) -> dict[str, Any]:
    """The fastest of --repeat runs, or {"error": why} when there is none."""
    script, venv, packed = CONTENDERS.get(name, CONTENDERS["ours"])
    python = Path(args.venvs).expanduser() / venv / "bin" / "python" if venv else Path(sys.executable)
    if venv and not (args.venvs and python.exists()):
        return {"error": f"没有虚拟环境 {venv}（见 make_venvs.sh）"}
    settings = settings | {"packed": packed, "training": settings["training"] | OURS.get(name, {})}
    if packed:
        settings["training"]["per_device_train_batch_size"] = PACKED_ROWS
    runs = [run(name, python, script, settings, case, args.threads) for _ in range(args.repeat)]
    return max(runs, key=lambda result: result.get("tokens", 0) / result.get("seconds", 1))


def run(
    name: str, python: Path, script: str, settings: dict[str, Any], case: Path, threads: int | None = None
) -> dict[str, Any]:
    """Run one contender in a process of its own and return its RESULT; its output stays in ``case``/name.log."""
    settings = settings | {"out": str(case / name), "train_args": str(case / f"{name}-args.json")}
    Path(settings["train_args"]).write_text(json.dumps(our_train_args(settings)))
    (case / f"{name}.json").write_text(json.dumps(settings))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if settings["training"].get("use_cpu"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    print(f"{name} ...", file=sys.stderr, flush=True)
    command = [str(python), str(HERE / script), str(case / f"{name}.json")]
    process = subprocess.run(command, env=environment, text=True, capture_output=True)
    (case / f"{name}.log").write_text(process.stdout + process.stderr)
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        print(f"{name} 失败：\n{process.stderr[-1500:]}", file=sys.stderr)
        return {"error": f"退出码 {process.returncode}"}
    return json.loads(lines[-1].removeprefix("RESULT "))


def our_train_args(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as a train_args file; every key that is not named has its default."""
    names = {"r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    lora = {names[key]: value for key, value in settings.get("lora", {}).items()}
    return {
        "model_name_or_path": settings["model"],
        "train_file": settings["train_file"],
        "output_dir": settings["out"],
        "overwrite_output_dir": True,
        "token_cache_dir": settings["out"] + "-tokens",
        "template_name": "minicpm4",
        "train_mode": settings["train_mode"],
        "max_seq_length": settings["max_length"],
        "packing": settings["packed"],
        **lora,
        **settings["training"],
    }


def table(results: dict[str, dict[str, Any]], settings: dict[str, Any]) -> str:
    """Markdown: one row a contender, ratios to plain where plain ran."""
    plain = results.get("plain", {})
    plain_speed = plain["tokens"] / plain["seconds"] if "tokens" in plain else None
    lines = [
        "| 训练器 | 版本 | token/s | 倍数 | 填充 | 峰值内存 GiB | 倍数 | 首步损失 | 末步损失 | 损失最大差 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        if "error" in result:
            lines.append(f"| {name} | {result['error']} |" + " |" * 8)
            continue
        speed, memory = result["tokens"] / result["seconds"], result["peak_rss_gib"]
        versions = {"transformers": result["versions"]["transformers"]} | {
            key: result[key] for key in ("trl", "llamafactory") if key in result
        }
        apart = ""
        if "losses" in plain and not name.endswith(("-packed", "-by-length")):
            apart = f"{max(abs(a - b) for a, b in zip(result['losses'], plain['losses'], strict=False)):.1e}"
        cells = [
            name,
            "、".join(f"{key} {value}" for key, value in versions.items()),
            f"{speed:.0f}",
            f"{speed / plain_speed:.2f}" if plain_speed else "",
            f"{1 - result['tokens'] / result['places']:.0%}",
            f"{memory:.2f}",
            f"{memory / plain['peak_rss_gib']:.2f}" if plain_speed else "",
            f"{result['losses'][0]:.4f}",
            f"{result['losses'][-1]:.4f}",
            apart,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
