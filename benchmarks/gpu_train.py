"""Everything that is to be measured on a GPU, in one go and offline: run it through gpu_train.sh.

MiniCPM4-0.5B's exact shape with random weights; records of the real lengths (record_lengths.json: characters of system,
question and answer of 256 records of the pipeline's mixture), with text cut from data/samples. Prints three Markdown
tables: errors of our kernels, speed against a plain transformers Trainer, memory at batch 1.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_data
import bench_train

SHAPE = {  # openbmb/MiniCPM4-0.5B
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 73448,
    "dim_model_base": 256,
}
TINY = SHAPE | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"vocab_size": 3000, "dim_model_base": 16}
# As in train_args/sft/*/minicpm4-0.5b-sft-*.json, at batch 16 and with a constant rate.
TRAINING = {
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "bf16": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "save_strategy": "no",
    "report_to": "none",
    "seed": 42,
    "train_sampling_strategy": "sequential",
}
ADAPTER = {"learning_rate": 2e-4, "optim": "paged_adamw_32bit", "max_grad_norm": 0.3}
FULL = {"learning_rate": 1e-5, "optim": "adamw_torch", "max_grad_norm": 1.0}
NO_CHECKPOINTING = {"gradient_checkpointing": False}
CASES = [  # title, train_mode, training, the contender's extra settings: (name, script, packed, training)
    ("QLoRA", "qlora", ADAPTER, [("plain", {}, False), ("ours", {}, False), ("ours-packed", {}, True)]),
    ("LoRA", "lora", ADAPTER, [("plain", {}, False), ("ours", {}, False), ("ours-packed", {}, True)]),
    (
        "full",
        "full",
        FULL,
        [
            ("plain", {}, False),
            ("ours", {}, False),
            ("ours-packed", {}, True),
            ("plain-no-checkpointing", NO_CHECKPOINTING, False),
            ("ours-no-checkpointing", NO_CHECKPOINTING, False),
            ("ours-packed-no-checkpointing", NO_CHECKPOINTING, True),
        ],
    ),
]
PACKED_ROWS = 5  # rows of 1024 with about as many tokens as 16 records


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="在一块 GPU 上一次测完：核对内核、速度、内存（离线）。")
    parser.add_argument("--tiny", action="store_true", help="极小的模型，没有 GPU 也能走通")
    parser.add_argument(
        "--parts", nargs="+", choices=["check", "speed", "memory"], default=["check", "speed", "memory"]
    )
    parser.add_argument("--modes", nargs="+", default=[case[0] for case in CASES], help="QLoRA LoRA full 中的几个")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--keep", metavar="FOLDER", help="把模型、数据和输出留在这个文件夹")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    if not gpu and not args.tiny:
        print("错误：没有 GPU。请在有 GPU 的机器上运行，或加 --tiny 走通流程。", file=sys.stderr)
        return 2
    if args.tiny:
        args.batch, args.steps, args.warm_up = 2, 2, 1
    name = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"{name}，torch {torch.__version__}，transformers {transformers.__version__}\n", flush=True)
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        settings, tokenizer = prepare(args, folder, gpu)
        if "check" in args.parts:
            good = check(folder, settings, tokenizer, args.tiny, "cuda" if gpu else "cpu")
        if "speed" in args.parts:
            speed(args, folder, settings)
        if "memory" in args.parts:
            memory(folder, settings)
    return 0 if good else 1


def prepare(args: argparse.Namespace, folder: Path, gpu: bool) -> tuple[dict[str, Any], Any]:
    """Write model and data; return the settings that every run shares, and the tokenizer."""
    from Firefly.component.minicpm import write_granite_view
    from Firefly.component.template import use_template

    folder.mkdir(parents=True, exist_ok=True)
    text = sample_text()
    conversations = folder / "synthetic.jsonl"
    need = (args.steps + args.warm_up + 1) * args.batch
    write_conversations(conversations, text, max(need, 256))
    tokenizer = bench_train.train_tokenizer(conversations)
    shape = TINY if args.tiny else SHAPE
    model = bench_data.build_model(folder / "model", tokenizer, shape, dtype="bfloat16")
    use_template(tokenizer, "minicpm4")
    data = bench_data.write_data(folder, conversations, tokenizer, args.max_length, max(need, 256))
    training = TRAINING | {
        "logging_steps": 1 if args.tiny else 5,
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps + args.warm_up,
    }
    if not gpu:
        training["use_cpu"] = True
    return data | {
        "model": str(model),
        "view": str(write_granite_view(model, folder / "view")),
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": args.max_length,
        "warm_up": args.warm_up,
        "training": training,
    }, tokenizer


def sample_text() -> str:
    """The Chinese text of data/samples, as one string."""
    samples = bench_data.ROOT / "data" / "samples"
    records = json.loads((samples / "general_samples.json").read_text(encoding="utf-8"))
    return "".join(record["output"] for record in records)


def write_conversations(path: Path, text: str, count: int) -> None:
    """Records with the lengths of record_lengths.json, in characters, cut from ``text`` at random places."""
    lengths = json.loads((Path(__file__).parent / "record_lengths.json").read_text())
    draw = random.Random(42)

    def cut(length: int) -> str:
        start = draw.randrange(len(text) - length)
        return text[start : start + length].strip() or "好"

    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            system, human, assistant = (cut(length) for length in lengths[i % len(lengths)])
            pair = {"human": human, "assistant": assistant}
            record = {"conversation_id": i, "category": "General", "system": system, "conversation": [pair]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def check(folder: Path, settings: dict[str, Any], tokenizer: Any, tiny: bool, device: str) -> bool:
    import gpu_check

    shape = (TINY if tiny else SHAPE) | {"num_hidden_layers": 2 if tiny else 4}
    model = bench_data.build_model(folder / "check-model", tokenizer, shape)
    table, good = gpu_check.compare(model, Path(settings["rows"]), settings["pad_token_id"], device)
    print(f"内核核对（{shape['num_hidden_layers']} 层）：\n\n{table}\n", flush=True)
    return good


def speed(args: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> None:
    """Print one table: each mode against plain, all in this one run."""
    tokens = f"每条平均 {settings['mean_tokens']:.0f} token，目标占 {settings['target_share']:.0%}"
    print(f"速度：批次 {args.batch} x {args.max_length}，{tokens}，{args.steps} 步\n")
    print("| 方式 | 训练器 | 条/s | 倍数 | token/s | MFU | 显存已分配 GiB | 显存已保留 GiB | 首个损失 | 末个损失 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for title, mode, training, contenders in CASES:
        if title not in args.modes:
            continue
        plain = None
        for name, more, packed in contenders:
            result = one_run(f"{mode}-{name}", name, mode, training | more, packed, settings, folder)
            if "error" in result:
                print(f"| {title} | {name} | {result['error']} |" + " |" * 7, flush=True)
                continue
            records = result["tokens"] / settings["mean_tokens"] / result["seconds"]
            plain = plain or records
            cells = [f"{records:.1f}", f"{records / plain:.2f}", f"{result['tokens'] / result['seconds']:.0f}"]
            cells += [f"{mfu(mode, settings, records):.1%}", *gpu_memory(result)]
            cells += [f"{result['losses'][0]:.3f}", f"{result['losses'][-1]:.3f}"]
            print(f"| {title} | {name} | " + " | ".join(cells) + " |", flush=True)
    print()


def memory(folder: Path, settings: dict[str, Any]) -> None:
    """Print the memory of QLoRA at batch 1."""
    print("QLoRA，批次 1：\n\n| 训练器 | 显存已分配 GiB | 显存已保留 GiB |\n| --- | --- | --- |", flush=True)
    for name in ("plain", "ours"):
        training = ADAPTER | {"per_device_train_batch_size": 1}
        result = one_run(f"one-{name}", name, "qlora", training, False, settings, folder)
        print(f"| {name} | " + " | ".join([result["error"], ""] if "error" in result else gpu_memory(result)) + " |")


def one_run(
    label: str, name: str, mode: str, training: dict, packed: bool, settings: dict[str, Any], folder: Path
) -> dict[str, Any]:
    case = settings | {"train_mode": mode, "packed": packed, "training": settings["training"] | training}
    if mode != "full":
        case["lora"] = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
    if packed:
        case["training"]["per_device_train_batch_size"] = PACKED_ROWS
    script = "train_plain.py" if name.startswith("plain") else "train_ours.py"
    return bench_train.run(label, Path(sys.executable), script, case, folder)


def gpu_memory(result: dict[str, Any]) -> list[str]:
    keys = ("peak_gpu_allocated_gib", "peak_gpu_reserved_gib")
    return [f"{result[key]:.2f}" if key in result else "" for key in keys]


def mfu(mode: str, settings: dict[str, Any], records_per_second: float) -> float:
    """Model FLOPs utilisation: what training needs (logits of targets only, nothing twice) over the device's peak."""
    import torch
    from transformers import GraniteForCausalLM

    from Firefly.component.checkpoint import load_config
    from Firefly.component.speed import flops_of, peak_flops

    with torch.device("meta"):
        model = GraniteForCausalLM(load_config(settings["model"]))
        if mode != "full":
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    per_token, per_target, per_pair = flops_of(model)
    rows = [json.loads(line) for line in Path(settings["rows"]).read_text().splitlines()]
    flops = sum(
        len(row["labels"]) * per_token
        + sum(label != -100 for label in row["labels"][1:]) * per_target
        + len(row["labels"]) ** 2 / 2 * per_pair
        for row in rows
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return flops / len(rows) * records_per_second / peak_flops(device, torch.bfloat16)


if __name__ == "__main__":
    sys.exit(main())
