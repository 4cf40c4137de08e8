"""Print what a pipeline run did: a row per stage, held-out loss per model, and the questions answered side by side.

    python scripts/pipeline_summary.py --run-dir work/sample

Reads what the stages wrote (stages.tsv, evaluate/, answers_*.jsonl); writes the same as RUN_DIR/summary.md.
"""

import argparse
import json
import sys
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from sft_data.errors import UserError, exit_cleanly  # noqa: E402

MODELS = ("base", "stage1", "stage2")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="打印一次流水线运行的汇总：各阶段行数与用时、评测损失、三个问题的回答。"
    )
    parser.add_argument("--run-dir", required=True, help="run_pipeline.sh 的结果目录，例如 work/sample")
    parser.add_argument("--questions", default=str(ROOT / "data/samples/questions.jsonl"), help="问题文件")
    return parser


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def count_rows(names: str) -> str:
    """Rows of a comma-separated list of files; for a folder the records that its training used, else "-"."""
    total, known = 0, False
    for path in map(Path, names.split(",")):
        if path.name == "train_results.json":
            total, known = total + json.loads(path.read_text())["train_records"], True
        elif path.suffix == ".json":
            total, known = total + len(json.loads(path.read_text(encoding="utf-8"))), True
        elif path.suffix in (".jsonl", ".txt"):
            with path.open("rb") as lines:
                total, known = total + sum(1 for line in lines if line.strip()), True
    return str(total) if known else "-"


def stage_rows(run_dir: Path) -> list[list[str]]:
    rows = []
    for line in (run_dir / "stages.tsv").read_text(encoding="utf-8").splitlines():
        name, source, result, seconds = line.split("\t")
        rows.append([name, count_rows(source), count_rows(result), seconds, result.removesuffix("/train_results.json")])
    return rows


def loss_rows(run_dir: Path) -> list[list[str]]:
    """Held-out loss per target token, over all and per source, and the share of answers that end by themselves."""
    report = json.loads((run_dir / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    rows = []
    for name, model in report["models"].items():
        sources = "，".join(f"{source} {part['loss']:.3f}" for source, part in model["by_source"].items())
        ended = f"{model['ends_by_itself']:.0%}" if "ends_by_itself" in model else "-"
        rows.append([name, f"{model['loss']:.3f}", f"{model['perplexity']:.1f}", sources, ended])
    return rows


def answer_rows(run_dir: Path, questions: list[dict]) -> tuple[list[list[str]], dict[str, int]]:
    """One row per question and model, and how many each model got right (all key words in the answer)."""
    answers = {name: read_lines(run_dir / f"answers_{name}.jsonl") for name in MODELS}
    rows, right = [], dict.fromkeys(MODELS, 0)
    for i, question in enumerate(questions):
        for name in MODELS:
            response = answers[name][i]["response"]
            hit = all(word in response for word in question["must_contain"])
            right[name] += hit
            shown = " ".join(response.split())
            rows.append(
                [question["prompt"] if name == "base" else "", name, "✓" if hit else "✗", shown[:100] or "（空）"]
            )
    return rows, right


def table(header: list[str], rows: list[list[str]]) -> str:
    """Align columns by the width a terminal gives them: Chinese characters take two places."""

    def width(text: str) -> int:
        return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

    cells = [header, *rows]
    widths = [max(width(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c + " " * (w - width(c)) for c, w in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    run_dir = Path(args.run_dir)
    if not (run_dir / "stages.tsv").exists():
        raise UserError(f"{run_dir}：没有 stages.tsv，请先运行 bash scripts/run_pipeline.sh。")
    questions = read_lines(Path(args.questions))
    rows, right = answer_rows(run_dir, questions)
    stages = stage_rows(run_dir)
    parts = [
        "## 各阶段",
        table(["阶段", "输入行", "输出行", "秒", "结果"], stages),
        f"共 {sum(float(row[3]) for row in stages):.0f} 秒",
        "## 评测集损失（只算回答的 token，越低越好）",
        table(["模型", "损失", "困惑度", "各来源的损失", "回答自行结束"], loss_rows(run_dir)),
        "## 三个没有训练过的问法",
        table(["问题", "模型", "对否", "回答"], rows),
        "答对：" + "，".join(f"{name} {n}/{len(questions)}" for name, n in right.items()),
    ]
    text = "\n\n".join(parts)
    print(text)
    (run_dir / "summary.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
