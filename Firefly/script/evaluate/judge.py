"""Let a judge model compare the answers of two or more models, question by question and in both orders.

    python Firefly/script/evaluate/judge.py --answers base=base.jsonl stage2=stage2.jsonl \\
        --base-url https://api.deepseek.com --model deepseek-flash --extra '{"thinking": {"type": "disabled"}}' \\
        --out Firefly/output/judge

The answers are files of inference_with_*.py, or evaluate.py's OUT/answers/. Any OpenAI-compatible server is a judge; the key comes from OPENAI_API_KEY.
Writes judge.json, judge.md and a page, evaluation.html, that also shows what evaluate.py left in the same folder; every reply is in verdicts.jsonl at once, so a cut run goes on where it stopped.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import UserError, exit_cleanly
from component.eval_records import every_nth
from component.judge_client import Judge, judge_all, open_judge
from component.judging import (
    Row,
    check_same_questions,
    choose_pairs,
    judge_messages,
    markdown,
    read_answers,
    tally,
)
from component.script_io import parse_named, write_text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="请一个评审模型逐题比较几个模型的回答，每题换位问两次。")
    parser.add_argument(
        "--answers", nargs="+", required=True, metavar="名字=X.jsonl", help="inference_with_*.py 写出的回答，至少两个"
    )
    parser.add_argument("--base-url", help="评审服务的地址（OpenAI 兼容），默认取环境变量 OPENAI_BASE_URL")
    parser.add_argument("--model", required=True, help="评审模型的名字")
    parser.add_argument("--api-key", help="默认取环境变量 OPENAI_API_KEY；不会写进任何文件")
    parser.add_argument("--out", required=True, help="写出 judge.json、judge.md 和 verdicts.jsonl 的文件夹")
    parser.add_argument("--overwrite", action="store_true", help="重写已有的报告；已付费的判决照样沿用")
    parser.add_argument("--pairs", default="first", choices=["first", "all"], help="都与第一个比（默认），或两两都比")
    parser.add_argument("--max-samples", type=int, help="最多评多少题（在文件中等距选取），默认全部")
    parser.add_argument("--concurrency", type=int, default=8, help="同时问多少个（默认 8）")
    parser.add_argument("--max-asks", type=int, default=3, help="判决不合格式时，一个次序最多问几次（默认 3）")
    parser.add_argument("--temperature", type=float, default=0.0, help="默认 0")
    parser.add_argument("--max-tokens", type=int, default=2048, help="评审回答的上限（默认 2048）")
    parser.add_argument("--extra", default="{}", metavar="JSON", help="并入请求的字段；值为 null 的字段不发送")
    parser.add_argument("--timeout", type=float, default=120, help="一次请求的秒数上限（默认 120）")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_flags(args)
    out = Path(args.out)
    if (out / "judge.json").exists() and not args.overwrite:
        raise UserError(f"{out}：已有评审结果，请换一个 --out，或加 --overwrite（已付费的判决会沿用）。")
    files = parse_named(args.answers, "--answers", "base=base.jsonl")
    if len(files) < 2:
        raise UserError("--answers 至少要两个模型的回答，例如 base=base.jsonl stage2=stage2.jsonl。")
    answers = {name: read_answers(path) for name, path in files.items()}
    check_same_questions(answers)
    answers = {name: every_nth(rows, args.max_samples) for name, rows in answers.items()}
    settings = {"temperature": args.temperature, "max_tokens": args.max_tokens} | parse_extra(args.extra)
    judge = open_judge(args.base_url, args.model, args.api_key, settings, args.timeout)
    pairs = choose_pairs(list(answers), args.pairs)
    questions = {}
    for against, model in pairs:
        for mine, theirs in zip(answers[against], answers[model], strict=True):
            questions |= dict(keyed(judge, mine, theirs))
    replies = judge_all(judge, questions, out / "verdicts.jsonl", args.concurrency, args.max_asks)
    last = [entries[-1] for entries in replies.values() if entries]
    if last and all(entry["finish_reason"] == "refused" for entry in last):
        raise UserError(f"评审服务拒绝了全部 {len(last)} 个问题（{last[0]['reason']}），请换一个评审模型，或调整参数。")
    report = build_report(judge, answers, pairs, replies)
    text = markdown(report)
    write_text(out / "judge.md", text)
    write_text(out / "judge.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    from component.eval_folder import write_page

    write_page(out)
    print(text, file=sys.stderr)
    print(f"{out}：写入 judge.json、judge.md 和 evaluation.html。", file=sys.stderr)
    return 0 if any(pair["judged"] for pair in report["pairs"]) else 1


def check_flags(args: argparse.Namespace) -> None:
    """Fill in the address and raise UserError for what is missing or out of range."""
    args.base_url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    if not args.base_url:
        raise UserError("没有评审服务的地址：请给出 --base-url，例如 http://127.0.0.1:8000/v1，或设 OPENAI_BASE_URL。")
    for flag in ("concurrency", "max_asks", "max_tokens", "max_samples", "timeout"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} 是 {value}，应不小于 1，请修改。")
    if args.temperature < 0:
        raise UserError(f"--temperature 是 {args.temperature}，应不小于 0，请修改。")


def parse_extra(text: str) -> dict:
    try:
        extra = json.loads(text)
    except ValueError as error:
        raise UserError(f"--extra：不是完整的 JSON（{error}），请修改。") from None
    if not isinstance(extra, dict) or extra.keys() & {"messages", "stream", "n", "model"}:
        raise UserError("--extra：应是 JSON 对象，且不含 messages、stream、n、model，请修改。")
    return extra


def keyed(judge: Judge, mine: Row, theirs: Row) -> list[tuple[str, list[dict]]]:
    """(key, question) of one pair, first order and second; none for equal answers, which tie unasked."""
    if mine.response.strip() == theirs.response.strip():
        return []
    orders = [(mine.response, theirs.response), (theirs.response, mine.response)]
    asked = [judge_messages(mine, *order) for order in orders]
    return [(judge.key(messages), messages) for messages in asked]


def build_report(judge: Judge, answers: dict[str, list[Row]], pairs: list[tuple[str, str]], replies: dict) -> dict:
    """The whole result, a function of the answers and the journal alone: a resumed run writes the same bytes."""
    everything = [entry for entries in replies.values() for entry in entries]
    refused = sum(entry["finish_reason"] == "refused" for entry in everything)
    tokens = {name: sum(entry.get(name, 0) for entry in everything) for name in ("prompt_tokens", "completion_tokens")}
    return {
        "judge": {"address": judge.address, **judge.settings},
        "questions": len(next(iter(answers.values()))),
        "replies": {
            "paid": len(everything) - refused,
            "unfit": sum(e["winner"] is None for e in everything) - refused,
            "refused": refused,
            **tokens,
        },
        "mean_characters": {n: sum(len(r.response) for r in rows) / len(rows) for n, rows in answers.items()},
        "pairs": [
            judge_pair(judge, answers[against], answers[model], against, model, replies, len(pairs))
            for against, model in pairs
        ],
    }


def judge_pair(
    judge: Judge, mine: list[Row], theirs: list[Row], against: str, model: str, replies: dict, comparisons: int
) -> dict:
    """Tally one pair of models and list what was said on every question."""
    judged = []
    for a, b in zip(mine, theirs, strict=True):
        entries = [replies[key][-1] for key, _ in keyed(judge, a, b)]
        winners = [entry["winner"] for entry in entries] or [None, None]
        judged.append(
            {
                "question": a.messages[-1]["content"],
                "identical": not entries,
                "first": winners[0],
                "second": winners[1],
                "reasons": [entry["reason"] for entry in entries],
                "lengths": [len(a.response), len(b.response)],
            }
        )
    return {**tally(against, model, judged, 0.05 / comparisons, comparisons), "verdicts": judged}


if __name__ == "__main__":
    sys.exit(main())
