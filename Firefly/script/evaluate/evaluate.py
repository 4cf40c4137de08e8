"""Held-out loss of several models side by side, and how many of their answers end by themselves.

    python Firefly/script/evaluate/evaluate.py --models base=models/MiniCPM4-0.5B stage1=Firefly/output/stage1-merged \\
        --eval-file data/processed/eval.jsonl --out Firefly/output/evaluation

Loss is the cross-entropy summed over target tokens (the assistant's, stop token included) divided by their number, over
all and per source. A model may be a folder, a hub name or a LoRA adapter. Writes evaluation.json and evaluation.md.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import UserError, exit_cleanly
from component.inference import Request, read_lines


@dataclass(frozen=True)
class Record:
    """One held-out conversation; ``source`` is the group it counts in."""

    where: str
    source: str
    messages: list[dict]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="比较几个模型的留出损失、困惑度，以及回答自行结束的比例。")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="名字=路径", help="模型文件夹、hub 名称或 LoRA 适配器"
    )
    parser.add_argument("--eval-file", required=True, help="留出的对话 JSONL")
    parser.add_argument("--out", help="写出 evaluation.json 和 evaluation.md 的文件夹；不给则 JSON 写到标准输出")
    parser.add_argument("--overwrite", action="store_true", help="--out 里已有评估结果时替换")
    parser.add_argument("--template-name", default="auto", help="所有模型统一用的模板；auto 为各自的 chat_template")
    parser.add_argument("--max-samples", type=int, help="最多用多少条（在文件中等距选取），默认全部")
    parser.add_argument("--max-seq-length", type=int, default=1024, help="超长部分截去（默认 1024）")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--generate", type=int, default=0, metavar="N", help="另用 N 条贪心生成，统计自行结束的比例（默认 0）"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="生成的上限（默认 256）")
    parser.add_argument("--device", default="auto", help="auto（默认）、cpu、cuda、cuda:1")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    models = parse_models(args)
    check_out(args)
    records = every_nth(read_records(args.eval_file), args.max_samples)
    sessions = {name: open_model(path, args) for name, path in models.items()}
    encoded, kept, report = encode_all(sessions, records, args.max_seq_length)
    report = {"eval_file": str(args.eval_file), "max_seq_length": args.max_seq_length, **report, "models": {}}
    for name, session in sessions.items():
        report["models"][name] = evaluate_model(name, session, [records[i] for i in kept], encoded[name], args)
    table = markdown(report)
    print(table, file=sys.stderr)
    write_report(args, report, table)
    return 0


def parse_models(args: argparse.Namespace) -> dict[str, str]:
    """Turn NAME=PATH into {name: path}; UserError for another form, a name used twice, or numbers below 1."""
    models: dict[str, str] = {}
    for value in args.models:
        name, _, path = value.partition("=")
        if not name or not path:
            raise UserError(f"--models {value}：应写成 名字=路径，例如 base=models/MiniCPM4-0.5B。")
        if name in models:
            raise UserError(f"--models {value}：名字 {name} 用了两次，请换一个名字。")
        models[name] = path
    for flag in ("max_samples", "max_seq_length", "batch_size", "max_new_tokens"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} 是 {value}，应不小于 1，请修改。")
    return models


def check_out(args: argparse.Namespace) -> None:
    if args.out and (Path(args.out) / "evaluation.json").exists() and not args.overwrite:
        raise UserError(f"{args.out}：已有评估结果，请换一个 --out，或加 --overwrite。")


def read_records(path: str) -> list[Record]:
    """Read conversation JSONL; UserError names the first bad line by file:line."""
    from component.prompt import record_to_messages

    records = []
    for where, fields in read_lines(path, f"{path}：找不到评估文件，请检查 --eval-file 的路径。"):
        try:
            messages = record_to_messages(fields)
        except ValueError as error:
            raise UserError(f"{where}：{error}；请改正或删去这一行。") from None
        records.append(Record(where, str(fields.get("source") or fields.get("category") or "未分类"), messages))
    if not records:
        raise UserError(f"{path}：文件里没有一条对话，请检查 --eval-file。")
    return records


def every_nth(items: list, count: int | None) -> list:
    """Return ``count`` items evenly spread over the list, all of them when it is not longer."""
    if count is None or len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def open_model(path: str, args: argparse.Namespace) -> Any:
    """Open a session that decodes greedily; weights come later."""
    from component.session import open_session

    flags = {"temperature": 0.0, "top_p": None, "repetition_penalty": 1.0, "seed": 0, "adapter": None}
    wanted = argparse.Namespace(
        model=path, template_name=args.template_name, max_new_tokens=args.max_new_tokens, **flags
    )
    return open_session(wanted)


def encode_all(
    sessions: dict[str, Any], records: list[Record], max_length: int
) -> tuple[dict[str, list[tuple[list[int], list[int]]]], list[int], dict]:
    """Encode every record for every model and keep those that have target tokens for all of them.

    Returns:
        {model: [(input_ids, labels), ...]} for the kept records, the kept records' indices, and the counts.
    """
    from component.prompt import encode_conversations

    cut: dict[str, list] = {}
    truncated: set[int] = set()
    for name, session in sessions.items():
        try:
            pairs = encode_conversations(session.tokenizer, [record.messages for record in records])
        except ValueError as error:
            raise UserError(f"--models {name}：{error}。") from None
        truncated |= {i for i, (ids, _) in enumerate(pairs) if len(ids) > max_length}
        cut[name] = [(ids[:max_length], labels[:max_length]) for ids, labels in pairs]
    kept = [i for i in range(len(records)) if all(any(x != -100 for x in pairs[i][1][1:]) for pairs in cut.values())]
    for i in sorted(set(range(len(records))) - set(kept)):
        print(f"{records[i].where}：截到 {max_length} 个 token 后没有可算损失的回答，不计入。", file=sys.stderr)
    if not kept:
        raise UserError(f"没有一条记录可算损失，请加大 --max-seq-length（现在是 {max_length}）。")
    encoded = {name: [pairs[i] for i in kept] for name, pairs in cut.items()}
    say_differences(sessions, encoded)
    counts = {"read": len(records), "evaluated": len(kept), "dropped": {"没有目标 token": len(records) - len(kept)}}
    return encoded, kept, counts | {"truncated": len(truncated)}


def say_differences(sessions: dict[str, Any], encoded: dict[str, list]) -> None:
    """Say what makes the models' losses hard to compare."""
    totals = {name: sum(x != -100 for _, labels in pairs for x in labels) for name, pairs in encoded.items()}
    if len(set(totals.values())) > 1:
        print(f"注意：各模型的目标 token 数不同（{totals}），按 token 平均的损失不能直接相比。", file=sys.stderr)
    if len({session.tokenizer.chat_template for session in sessions.values()}) > 1:
        print("注意：各模型的提示模板不同；要用同一个模板相比，请给出 --template-name。", file=sys.stderr)


def evaluate_model(name: str, session: Any, records: list[Record], encoded: list, args: argparse.Namespace) -> dict:
    """Load one model, measure it, and let it go."""
    from component.generate import load_model
    from component.heldout import record_losses
    from component.session import choose_device

    model = load_model(session, *choose_device(args))
    sums = record_losses(model, encoded, args.batch_size, session.tokenizer.pad_token_id or 0, name)
    counts = [sum(x != -100 for x in labels[1:]) for _, labels in encoded]
    sources = sorted({record.source for record in records})
    rows = list(zip(records, sums, counts, strict=True))
    result = {
        "path": session.model,
        "adapter": [str(path) for path in session.adapters.values()],
        **summarize(rows),
        "by_source": {source: summarize([row for row in rows if row[0].source == source]) for source in sources},
    }
    if args.generate > 0:
        result |= generate_answers(model, session, every_nth(records, args.generate), args.batch_size)
    return result


def summarize(rows: list[tuple[Record, float, int]]) -> dict:
    """Loss, perplexity and counts over (record, loss sum, target tokens) rows."""
    tokens = sum(count for _, _, count in rows)
    loss = math.fsum(total for _, total, _ in rows) / tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "records": len(rows), "target_tokens": tokens}


def generate_answers(model: Any, session: Any, records: list[Record], batch_size: int) -> dict:
    """Answer each record's last question greedily; return the share that ended by itself, and the answers."""
    from component.generate import generate_window
    from tqdm import tqdm

    requests = [Request(i, last_question(r.messages), {}, r.where) for i, r in enumerate(records)]
    session.check(requests)

    def answers() -> Iterator:
        for start in range(0, len(requests), 8 * batch_size):
            yield from generate_window(model, session, requests[start : start + 8 * batch_size], batch_size)

    bar = tqdm(answers(), total=len(requests), desc="生成", unit="条", disable=None, file=sys.stderr)
    done = {request.index: completion for request, completion in bar}
    samples = [
        {
            "where": record.where,
            "question": requests[i].messages[-1]["content"],
            "reference": record.messages[len(requests[i].messages)]["content"],
            "response": done[i].text,
            "finish_reason": done[i].finish_reason,
            "completion_tokens": done[i].completion_tokens,
        }
        for i, record in enumerate(records)
    ]
    ended = sum(sample["finish_reason"] == "stop" for sample in samples)
    return {"ends_by_itself": ended / len(samples), "generated": len(samples), "samples": samples}


def last_question(messages: list[dict]) -> list[dict]:
    """The conversation up to, and without, its last assistant message."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def markdown(report: dict) -> str:
    """The report as a Markdown table: a row per model, a column per source."""
    models = report["models"]
    sources = sorted({source for result in models.values() for source in result["by_source"]})
    generated = any("ends_by_itself" in result for result in models.values())
    heads = [
        "模型",
        "损失",
        "困惑度",
        *(f"损失（{source}）" for source in sources),
        *(["自行结束"] if generated else []),
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, result in models.items():
        cells = [name, f"{result['loss']:.4f}", f"{result['perplexity']:.2f}"]
        cells += [f"{result['by_source'][source]['loss']:.4f}" for source in sources]
        if generated:
            cells.append(f"{result['ends_by_itself']:.0%}（{result['generated']} 条）")
        lines.append(f"| {' | '.join(cells)} |")
    first = next(iter(models.values()))
    dropped = sum(report["dropped"].values())
    lines.append("")
    lines.append(
        f"读入 {report['read']} 条 = 计入 {report['evaluated']} 条 + 不计入 {dropped} 条；其中截断 {report['truncated']} 条；"
        f"目标 token {first['target_tokens']} 个，最长 {report['max_seq_length']} 个 token。"
    )
    return "\n".join(lines)


def write_report(args: argparse.Namespace, report: dict, table: str) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    if not args.out:
        sys.stdout.write(text)
        return
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("evaluation.md", f"# 评估\n\n{table}\n"), ("evaluation.json", text)):
        part = out / f"{name}.part"
        part.write_text(content, encoding="utf-8")
        os.replace(part, out / name)
    print(f"{out}：写入 evaluation.json 和 evaluation.md。", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
