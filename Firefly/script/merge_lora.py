"""Merge a LoRA or QLoRA adapter into its base and check that the merged model answers as base + adapter did.

    python Firefly/script/merge_lora.py --adapter Firefly/output/minicpm4-0.5b-sft-lora --out models/minicpm4-0.5b-sft

The base is read from the adapter's own config unless --base says otherwise. OUT appears only when it is whole and
has passed the check: it is written as OUT.part, loaded again from disk, compared, and then renamed. A QLoRA adapter is
merged both into the 16-bit base and into the base as NF4 had it; the one that scores better against what was trained
is kept. At no time is more than one model in memory.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from component.errors import UserError, exit_cleanly

DTYPES = ["float32", "float16", "bfloat16"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="把 LoRA / QLoRA 适配器合并进底座模型，并核对合并前后的输出。")
    parser.add_argument("--adapter", required=True, help="适配器目录（train.py 的 output_dir 或其中的 checkpoint-N）")
    parser.add_argument("--base", help="底座模型目录或名称，默认取 adapter_config.json 里的 base_model_name_or_path")
    parser.add_argument("--out", required=True, help="合并后的模型目录")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="权重精度，默认 auto：与底座相同")
    parser.add_argument(
        "--qlora-merge",
        choices=["auto", "base", "dequantized"],
        default="auto",
        help="QLoRA 适配器并入 16/32 位底座（base）还是反量化的 NF4 底座（dequantized）；默认 auto：两种都做，留下更好的",
    )
    parser.add_argument(
        "--eval-file", help="比较两种 QLoRA 合并用的留出对话 JSONL，默认用训练时的 eval_file，再次是 train_file 的开头"
    )
    parser.add_argument("--eval-samples", type=int, default=64, help="比较时最多用多少条，默认 64")
    parser.add_argument("--device", default="auto", help="auto、cpu 或 cuda，默认 auto")
    parser.add_argument("--overwrite", action="store_true", help="OUT 已存在时替换它")
    parser.add_argument("--no-check", action="store_true", help="不核对合并结果（省一次载入）")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_flags(args)
    from component.adapter import find_base, read_adapter_config, read_training

    adapter, out = Path(args.adapter), Path(args.out)
    args.adapter_config = read_adapter_config(adapter)
    args.base = args.base or find_base(adapter, "--base")
    check_out(out, adapter, args.base, args.overwrite)
    import torch
    from component.checkpoint import load_tokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    args.device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    args.training = read_training(adapter)
    args.tokenizer = load_tokenizer(adapter if (adapter / "tokenizer_config.json").exists() else args.base)
    print(f"底座 {args.base}（{args.device}）+ 适配器 {adapter}", file=sys.stderr)

    part = out.with_name(out.name + ".part")
    qlora = args.training.get("train_mode") == "qlora"
    if qlora and args.qlora_merge == "auto":
        report = merge_better(args, part)
    else:
        kind = "dequantized" if args.qlora_merge == "dequantized" else "base"
        report = {"qlora_merge": kind} if qlora else {}
        report |= write_merged(args, loader(args, kind), part)
    report = {"base": str(args.base), "adapter": str(adapter)} | report
    (part / "merge_info.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
    print(out)
    return 0


def check_flags(args: argparse.Namespace) -> None:
    if args.eval_samples < 1:
        raise UserError(f"--eval-samples 是 {args.eval_samples}，应不小于 1，请修改。")


def check_out(out: Path, adapter: Path, base_name: str, overwrite: bool) -> None:
    if out.resolve() in (adapter.resolve(), Path(base_name).resolve()):
        raise UserError(f"{out}：不能写回底座或适配器目录，请换一个 --out。")
    if out.exists() and not overwrite:
        raise UserError(f"{out}：输出目录已存在，加 --overwrite 可替换，或换一个 --out。")


def loader(args: argparse.Namespace, kind: str) -> Callable[[], Any]:
    """A function that loads the base to merge into, in the precision to save, with the adapter on it.

    ``kind``: "base", the base's own weights, or "dequantized", the weights that the run's NF4 base stood for.
    """

    def load() -> Any:
        from component import merge, qlora_merge

        if kind == "base":
            model = merge.load_base(args.base, args.dtype)
        else:
            half = qlora_merge.training_dtype(args.training)
            model = qlora_merge.load_nf4(args.base, half, args.device)
            model = qlora_merge.dequantize(model, saved_dtype(args))
        return merge.attach(model, Path(args.adapter), args.adapter_config, args.device)

    return load


def saved_dtype(args: argparse.Namespace) -> Any:
    """The torch dtype that --dtype asks for; auto is what the base's config.json says, else what training used."""
    import torch
    from component.checkpoint import load_config
    from component.qlora_merge import training_dtype
    from component.resolve import resolve_model

    if args.dtype != "auto":
        return getattr(torch, args.dtype)
    return load_config(resolve_model(args.base)).dtype or training_dtype(args.training)


def write_merged(args: argparse.Namespace, load: Callable[[], Any], part: Path) -> dict[str, Any]:
    """Merge what ``load`` returns into the folder ``part`` and check it; returns the figures of the check."""
    from component.checkpoint import load_causal_lm, save_checkpoint
    from component.merge import merge
    from component.merge_check import answer_logits, compare, greedy_answers, in_float32

    shutil.rmtree(part, ignore_errors=True)
    model = load()
    dtype = model.get_input_embeddings().weight.dtype
    report = {"dtype": str(dtype).removeprefix("torch.")}
    if not args.no_check:
        sequences = greedy_answers(model, args.tokenizer)
        before = answer_logits(model, sequences)
        with in_float32(model):
            exact = answer_logits(model, sequences)
    model = merge(model, Path(args.adapter), dtype)
    save_checkpoint(model, part, args.tokenizer)
    del model
    if not args.no_check:
        after = answer_logits(load_causal_lm(part, dtype="auto").to(args.device), sequences)
        report |= compare(before, exact, after, part)
    return report


def merge_better(args: argparse.Namespace, part: Path) -> dict[str, Any]:
    """Merge a QLoRA adapter both ways, one after the other, and leave the better one in ``part``."""
    from component import qlora_merge
    from component.checkpoint import load_causal_lm
    from component.merge import attach

    sample = qlora_merge.find_sample(args.tokenizer, args.eval_file, args.training, args.eval_samples)
    half = qlora_merge.training_dtype(args.training)
    try:
        model = qlora_merge.load_nf4(args.base, half, args.device)
    except UserError as error:
        print(f"QLoRA 适配器：{error}，无法与训练时的 NF4 底座比较，直接并入 16/32 位底座。", file=sys.stderr)
        return {"qlora_merge": "base"} | write_merged(args, loader(args, "base"), part)
    model = attach(model, Path(args.adapter), args.adapter_config, args.device)
    sample = sample or qlora_merge.builtin_sample(model, args.tokenizer)
    reference = qlora_merge.score(model, sample.records)
    del model
    scores, checks = {}, {}
    folders = {"base": part, "dequantized": part.with_name(part.name + "-dequantized")}
    for kind, folder in folders.items():
        checks[kind] = write_merged(args, loader(args, kind), folder)
        scores[kind] = qlora_merge.score(load_causal_lm(folder, dtype="auto").to(args.device).eval(), sample.records)
    report = qlora_merge.report_choice(sample, reference, scores)
    chosen = report["qlora_merge"]
    if chosen == "dequantized":
        shutil.rmtree(part)
        folders[chosen].rename(part)
    else:
        shutil.rmtree(folders["dequantized"])
    return checks[chosen] | report


if __name__ == "__main__":
    sys.exit(main())
