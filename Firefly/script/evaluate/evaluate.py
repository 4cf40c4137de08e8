"""Is the fine-tuned model better than its base, and how sure is that? Losses, answers, forgetting and leaks of several models.

    python Firefly/script/evaluate/evaluate.py --models base=models/MiniCPM4-0.5B stage1=Firefly/output/stage1-merged \\
        --eval-file data/processed/eval.jsonl --generate 100 --out Firefly/output/evaluation

Loss is the cross-entropy summed over target tokens (the assistant's, stop token included) divided by their number, over
all and per source; every figure has a 95 % interval, and a gain is claimed only where the interval of the paired
difference leaves 0 out. A model may be a folder, a hub name or a LoRA adapter. Writes evaluation.json, .md and .html;
each model's losses (losses/) and answers (answers/, as inference_with_*.py writes them) are kept as they come, so a cut
run goes on, and another model costs only its own time.
"""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import UserError, exit_cleanly
from component.script_io import make_folder, parse_named, write_text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="比较几个模型：留出损失与困惑度、生成的回答、遗忘、与训练数据的重合；每个数都有 95% 区间。"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="名字=路径",
        help="模型文件夹、hub 名称或 LoRA 适配器；都与第一个相比，再各与前一个相比",
    )
    parser.add_argument("--eval-file", required=True, help="留出的对话 JSONL")
    parser.add_argument("--general-file", help="通用的留出对话 JSONL：另算损失，看微调后有没有遗忘")
    parser.add_argument(
        "--train-file", nargs="+", default=[], metavar="文件", help="训练用的 JSONL（可多个）：查评估记录是否混在其中"
    )
    parser.add_argument("--drop-leaked", action="store_true", help="与训练数据重合的记录不计入（默认只报告，仍计入）")
    parser.add_argument(
        "--out", help="写出 evaluation.json、.md 和 .html 的文件夹，中断后用同一条命令继续；不给则 JSON 写到标准输出"
    )
    parser.add_argument("--overwrite", action="store_true", help="--out 里已有报告时重写；测过且没有变的模型不重测")
    parser.add_argument("--template-name", default="auto", help="所有模型统一用的模板；auto 为各自的 chat_template")
    parser.add_argument("--max-samples", type=int, help="每个文件最多用多少条（在文件中等距选取），默认全部")
    parser.add_argument("--max-seq-length", type=int, default=1024, help="超长部分截去（默认 1024）")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--generate",
        type=int,
        default=0,
        metavar="N",
        help="另用 N 条贪心生成，算 BLEU、ROUGE、自行结束、重复、长度等（默认 0）",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="生成的上限（默认 256）")
    parser.add_argument(
        "--benchmarks",
        metavar="任务",
        help="接着用 benchmarks.py 测，例如 ceval-valid,cmmlu,mmlu，结果在同一页（更多选项见 benchmarks.py --help）",
    )
    parser.add_argument("--data-dir", help="--benchmarks 的离线数据；不给则取自 hub 或其缓存")
    parser.add_argument("--seed", type=int, default=42, help="重抽样（bootstrap）的随机种子（默认 42）")
    parser.add_argument("--device", default="auto", help="auto（默认）、cpu、cuda、cuda:1")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    models = parse_models(args)
    check_out(args)
    from component.eval_measure import open_model
    from component.eval_records import every_nth, read_records
    from component.eval_text import markdown, summary

    records = every_nth(read_records(args.eval_file), args.max_samples)
    general = (
        every_nth(read_records(args.general_file, "--general-file"), args.max_samples) if args.general_file else []
    )
    leakage = check_leakage(args, records, general)
    sessions = {name: open_model(path, args) for name, path in models.items()}
    report = {"eval_file": str(args.eval_file), "max_seq_length": args.max_seq_length}
    leaked = {row["where"] for row in leakage["records"]} if leakage else set()
    with contextlib.ExitStack() as stack:
        kept = Path(args.out or stack.enter_context(tempfile.TemporaryDirectory(prefix="evaluate-")))
        report |= evaluate(sessions, records, general, leaked, args, kept)
    if leakage:
        report["leakage"] = leakage
    else:
        report["notes"] = [*report["notes"], "没有给出 --train-file：评估记录是否在训练数据里，没有查。"]
    print(summary(report), file=sys.stderr)
    write_report(args, report, markdown(report))
    if args.benchmarks:  # a process of its own: lm-eval gets the whole of the memory
        return subprocess.run([sys.executable, *benchmark_command(args)], check=False).returncode
    return 0


def benchmark_command(args: argparse.Namespace) -> list[str]:
    """What benchmarks.py is called with, to put its results into the same folder."""
    named = {"tasks": args.benchmarks, "data-dir": args.data_dir, "out": args.out, "batch-size": args.batch_size}
    named |= {"device": args.device, "dtype": args.dtype, "template-name": args.template_name}
    flags = [part for flag, value in named.items() if value is not None for part in (f"--{flag}", str(value))]
    more = ["--overwrite"] if args.overwrite else []
    return [str(Path(__file__).with_name("benchmarks.py")), *flags, *more, "--models", *args.models]


def parse_models(args: argparse.Namespace) -> dict[str, str]:
    """Turn NAME=PATH into {name: path}; UserError for another form, a name used twice, or numbers below 1."""
    models = parse_named(args.models, "--models", "base=models/MiniCPM4-0.5B")
    for flag in ("max_samples", "max_seq_length", "batch_size", "max_new_tokens"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} 是 {value}，应不小于 1，请修改。")
    for flag in ("generate", "seed"):
        if (value := getattr(args, flag)) < 0:
            raise UserError(f"--{flag} 是 {value}，应不小于 0，请修改。")
    if args.drop_leaked and not args.train_file:
        raise UserError("--drop-leaked 要知道训练数据是什么，请同时给出 --train-file。")
    if args.data_dir and not args.benchmarks:
        raise UserError("--data-dir 是 --benchmarks 的数据，请同时给出 --benchmarks，例如 ceval-valid,cmmlu。")
    if args.benchmarks and not args.out:
        raise UserError("--benchmarks 的结果要写进文件夹，请给出 --out。")
    if args.benchmarks and importlib.util.find_spec("lm_eval") is None:
        raise UserError("--benchmarks：还没有安装 lm-eval，请先 pip install -r requirements-eval.txt。")
    if args.generate:
        from component.scores import check_libraries

        check_libraries()
    return models


def check_out(args: argparse.Namespace) -> None:
    """UserError, before anything is measured, for a folder that holds a report or cannot be made."""
    last = "benchmarks.json" if args.benchmarks else "evaluation.json"
    if args.out and (Path(args.out) / last).exists() and not args.overwrite:
        raise UserError(f"{args.out}：已有评估结果，请换一个 --out，或加 --overwrite。")
    if args.out:
        make_folder(args.out)


def check_leakage(args: argparse.Namespace, held_out: list, general: list) -> dict | None:
    """Look for the held-out records in --train-file; return what to report."""
    if not args.train_file:
        return None
    from component.leakage import KINDS, find_leaks, of_messages

    records = held_out + general
    leaks, read = find_leaks([of_messages(record.messages) for record in records], args.train_file)
    counts = Counter(leak.kind for leak in leaks)
    return {
        "train_files": [str(path) for path in args.train_file],
        "train_records": read,
        "checked": len(records),
        "leaked": len(leaks),
        "general": sum(leak.index >= len(held_out) for leak in leaks),
        "by_kind": {kind: counts[kind] for kind in KINDS},
        "excluded": args.drop_leaked,
        "records": [
            {
                "where": records[leak.index].where,
                "source": records[leak.index].source,
                "kind": leak.kind,
                "share": leak.share,
                "train_where": leak.train_where,
                "text": " ".join(of_messages(records[leak.index].messages))[:200],
                "train_text": " ".join(leak.train)[:200],
            }
            for leak in leaks
        ],
    }


def evaluate(
    sessions: dict[str, Any], records: list, general: list, leaked: set[str], args: argparse.Namespace, kept: Path
) -> dict:
    """Measure every model on every set of records, each model loaded once at most; return the report.

    Args:
        leaked: where the records stand that the training data holds: left out, or told apart.
        kept: the folder that holds what was measured.
    """
    from component import bootstrap
    from component.eval_losses import loss_report
    from component.eval_measure import measure_model
    from component.eval_records import choose_asked, prepare
    from component.scores import TOKENIZATION, score_models, spread

    dropped, leaked = (leaked, set()) if args.drop_leaked else (set(), leaked)
    sets = [prepare(sessions, part, dropped, args.max_seq_length) for part in (records, general) if part]
    asked, notes = choose_asked(sets[0].records, leaked, args.generate)
    sums: list[list[list[float]]] = [[] for _ in sets]
    answers: dict[str, list[dict]] = {}
    for name, session in sessions.items():
        encoded = [one.encoded[name] for one in sets]
        measured, answers[name] = measure_model(name, session, encoded, asked, args, kept)
        for column, values in zip(sums, measured, strict=True):
            column.append(values)
    report = loss_report(sets[0], sums[0], args.seed, leaked)
    report["notes"] = report["notes"] + notes
    report["interval"] = {
        "level": bootstrap.LEVEL,
        "seed": args.seed,
        "resamples": bootstrap.count_resamples(len(sets[0].records)),
    }
    for name, session in sessions.items():
        adapter = [str(path) for path in session.adapters.values()]
        report["models"][name] = {"path": session.model, "adapter": adapter, **report["models"][name]}
    if general:
        report["general"] = {"file": str(args.general_file), **loss_report(sets[1], sums[1], args.seed, leaked)}
    if asked:
        figures, report["answer_differences"] = score_models(answers, args.seed)
        report["tokenization"] = TOKENIZATION
        report["reference_characters"] = spread([len(record.reference().strip()) for record in asked])
        for name, samples in answers.items():
            own = {
                "ends_by_itself": figures[name]["ends_by_itself"],
                "generated": len(samples),
                "scores": figures[name],
            }
            report["models"][name] |= own | {"samples": samples}
    return report


def write_report(args: argparse.Namespace, report: dict, text: str) -> None:
    from component.eval_folder import write_page

    data = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    if not args.out:
        sys.stdout.write(data)
        return
    out = Path(args.out)
    write_text(out / "evaluation.md", f"# 评估\n\n{text}\n")
    write_text(out / "evaluation.json", data)
    write_page(out)
    print(f"{out}：写入 evaluation.json、.md 和 .html。", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
