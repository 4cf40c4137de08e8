"""C-Eval, CMMLU and MMLU (or any task of lm-eval-harness) for one or more models, compared question by question.

    python Firefly/script/evaluate/benchmarks.py --models base=models/MiniCPM4-0.5B stage2=Firefly/output/stage2 \\
        --tasks ceval-valid,cmmlu,mmlu --num-fewshot 5 --data-dir data/benchmarks --out Firefly/output/benchmarks

A model may be a folder, a hub name or a LoRA adapter. --data-dir works offline; without it lm-eval asks the hub or its
cache. Writes benchmarks.json, benchmarks.md and a page, evaluation.html, that also shows what evaluate.py left in the
same folder; each model's result is kept at once, so a cut run goes on with the next.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import UserError, exit_cleanly
from component.eval_measure import open_model, weights_of
from component.lm_eval_data import BENCHMARKS, benchmark_of, is_official, write_tasks
from component.lm_eval_report import accuracy_interval, against_chance, compare_models, coverage, markdown
from component.lm_eval_run import check_lm_eval, check_tasks, open_tasks, run_tasks, summarize
from component.script_io import make_folder, parse_named, write_text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="用 lm-eval-harness 测 C-Eval、CMMLU、MMLU，逐题比较几个模型。")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="名字=路径", help="模型文件夹、hub 名称或 LoRA 适配器"
    )
    parser.add_argument(
        "--tasks",
        default="ceval-valid,cmmlu",
        help="逗号隔开：ceval-valid、cmmlu、mmlu、单科如 ceval-valid_law，或 lm-eval 的其他任务",
    )
    parser.add_argument("--data-dir", help="离线数据的文件夹，里面有 ceval、cmmlu、mmlu；不给则取自 hub 或其缓存")
    parser.add_argument("--task-dir", help="自己写的 lm-eval 任务（YAML）的文件夹")
    parser.add_argument("--out", required=True, help="写出 benchmarks.json 和 benchmarks.md 的文件夹")
    parser.add_argument("--overwrite", action="store_true", help="--out 里已有报告时重写；测过且设置没有变的模型不重测")
    parser.add_argument("--num-fewshot", type=int, default=5, help="例题数（默认 5）")
    parser.add_argument("--limit", type=int, help="每科最多几题，只为试跑")
    parser.add_argument("--batch-size", type=int, default=8, help="默认 8")
    parser.add_argument(
        "--apply-chat-template", action="store_true", help="套用模型的对话模板（默认不套，与常见做法一致）"
    )
    parser.add_argument("--template-name", default="auto", help="对话模板；auto 为各自的 chat_template（默认）")
    parser.add_argument("--device", default="auto", help="auto（默认）、cpu、cuda、cuda:1")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    models = parse_named(args.models, "--models", "base=models/MiniCPM4-0.5B")
    tasks = check_flags(args)
    version = check_lm_eval()
    args.max_new_tokens = None
    sessions = {name: open_model(path, args) for name, path in models.items()}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        found = write_tasks(Path(args.data_dir), tasks, args.num_fewshot, Path(work)) if args.data_dir else {}
        include = [Path(folder) for folder in (args.task_dir, work if found else None) if folder]
        manager = open_tasks(include, with_defaults=not all(benchmark_of(task) in found for task in tasks))
        check_tasks(manager, tasks)
        data = digest_of([*Path(work).glob("*.jsonl"), *(Path(args.task_dir).glob("*.*") if args.task_dir else [])])
        results = {
            name: measure(name, session, manager, tasks, settings(args, session, tasks, version, found, data), args)
            for name, session in sessions.items()
        }
    report = build_report(args, tasks, results, version, found)
    text = markdown(report)
    out = Path(args.out)
    write_text(out / "benchmarks.md", text)
    write_text(out / "benchmarks.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    from component.eval_folder import write_page

    write_page(out)
    print(text, file=sys.stderr)
    print(f"{out}：写入 benchmarks.json、benchmarks.md 和 evaluation.html。", file=sys.stderr)
    return 0


def check_flags(args: argparse.Namespace) -> list[str]:
    """Return the tasks asked for; UserError for flags out of range and results that are there already."""
    tasks = list(dict.fromkeys(task.strip() for task in args.tasks.split(",") if task.strip()))
    if not tasks:
        raise UserError("--tasks 是空的，请给出任务名，例如 ceval-valid,cmmlu。")
    for flag, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
        if (value := getattr(args, flag)) is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} 是 {value}，应不小于 {least}，请修改。")
    for task in tasks:
        if (whole := benchmark_of(task)) in tasks and whole != task:
            raise UserError(f"--tasks：{task} 已包含在 {whole} 里，请去掉其中一个。")
    if args.task_dir and not Path(args.task_dir).is_dir():
        raise UserError(f"--task-dir {args.task_dir}：没有这个文件夹，请检查路径。")
    if args.data_dir and not Path(args.data_dir).is_dir():
        raise UserError(
            f"--data-dir {args.data_dir}：没有这个文件夹；请把官方压缩包解到其中的 ceval、cmmlu、mmlu，或去掉它，从 hub 下载。"
        )
    if (Path(args.out) / "benchmarks.json").exists() and not args.overwrite:
        raise UserError(f"{args.out}：已有测试结果，请换一个 --out，或加 --overwrite。")
    make_folder(args.out)
    return tasks


def digest_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode("utf-8", "surrogateescape") + path.read_bytes())
    return digest.hexdigest()[:16]


def settings(args: argparse.Namespace, session: Any, tasks: list[str], version: str, found: dict, data: str) -> dict:
    """What must be the same for a model's kept result to be used again. data: names the questions that are on disk."""
    names = ("num_fewshot", "limit", "apply_chat_template", "template_name", "dtype", "data_dir", "task_dir")
    return {
        **{name: getattr(args, name) for name in names},
        "tasks": tasks,
        "subjects": found,
        "lm_eval": version,
        "weights": weights_of(session),
        "data": data,
    }


def measure(name: str, session: Any, manager: Any, tasks: list[str], fixed: dict, args: argparse.Namespace) -> dict:
    """Return one model's summary, from OUT/models/NAME.json when it was measured with the same settings before."""
    kept = Path(args.out) / "models" / f"{name}.json"
    if kept.exists():
        value = json.loads(kept.read_text(encoding="utf-8"))
        if value["settings"] == fixed:
            print(f"{name}：用已有的结果 {kept}。", file=sys.stderr)
            return value["tasks"]
    from component.generate import load_model
    from component.session import choose_device

    print(f"{name}：{session.model}", file=sys.stderr)
    model = load_model(session, *choose_device(args))
    summary = summarize(run_tasks(session, model, manager, tasks, args), tasks)
    write_text(kept, json.dumps({"settings": fixed, "tasks": summary}, ensure_ascii=False) + "\n")
    return summary


def build_report(
    args: argparse.Namespace, tasks: list[str], results: dict[str, dict], version: str, found: dict[str, list[str]]
) -> dict:
    own = {name: [s for s in subjects if not is_official(BENCHMARKS[name], s)] for name, subjects in found.items()}
    chance = [against_chance(name, task, result[task]) for name, result in results.items() for task in tasks]
    shown = {
        name: {
            task: {key: value for key, value in one.items() if key != "scores"} | {"interval": accuracy_interval(one)}
            for task, one in result.items()
        }
        for name, result in results.items()
    }
    return {
        "lm_eval": version,
        "tasks": tasks,
        "num_fewshot": args.num_fewshot,
        "limit": args.limit,
        "apply_chat_template": args.apply_chat_template,
        "data_dir": args.data_dir,
        "models": {name: {"tasks": result} for name, result in shown.items()},
        "comparisons": compare_models(results, tasks),
        "against_chance": [sentence for sentence in chance if sentence],
        "notes": coverage(tasks, found, own, args.limit),
    }


if __name__ == "__main__":
    sys.exit(main())
