#!/usr/bin/env python3
"""Convert HIT ChatML (or instruction/input/output) records into Firefly's conversation JSONL, for training.

    python chatml2conversation.py --in data/samples/hit_samples.jsonl --out data/processed/train.jsonl

The system text and every turn are kept. Output: {"conversation_id", "category", "system"?, "conversation": [{"human",
"assistant"}, ...], "source"?}, one a line, in the order of the input.
"""

import argparse
import os
import sys
from typing import Any

from sft_data.chatml import firefly_fields, firefly_messages, parse_chatml
from sft_data.errors import UserError, exit_cleanly
from sft_data.jsonl import dump_line, read_records, write_atomically


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="把 HIT ChatML（或 instruction/input/output）记录转成 Firefly 训练用的 conversation JSONL。",
        epilog="OUT 已存在时，成功后才整体替换；中断或失败时原文件不变。一条也没有转成时退出码为 2。",
    )
    parser.add_argument(
        "--in", dest="in_path", required=True, metavar="FILE", help="输入：JSONL 或 JSON 数组，可为 .gz、.zst"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="输出 JSONL")
    parser.add_argument(
        "--default-category", default="General", metavar="NAME", help="记录没有 category 时用的类别（默认 General）"
    )
    parser.add_argument("--start-id", type=int, default=1, metavar="N", help="conversation_id 的起始值（默认 1）")
    parser.add_argument("--drop-system", action="store_true", help="不保留系统文本")
    parser.add_argument("--only-source", metavar="NAME", help="只转换 source 是它的记录，例如 hit（用于第二阶段）")
    parser.add_argument("--skip-bad", action="store_true", help="跳过无法转换的记录并计数（默认：报出位置，退出码 2）")
    return parser


def messages_of(obj: dict[str, Any]) -> list[dict[str, str]]:
    """Return the record's messages, stripped; ValueError says in Chinese what is wrong with it."""
    if "conversation" in obj:
        raise ValueError("这已经是 conversation 格式，可以直接用于训练，不需要再转换")
    if "text" in obj:
        if not isinstance(obj["text"], str):
            raise ValueError(f"text 字段是 {type(obj['text']).__name__}，应为字符串")
        messages = parse_chatml(obj["text"])
    elif {"instruction", "output", "target"} & obj.keys():
        messages = firefly_messages(*firefly_fields(obj))
    else:
        raise ValueError("既没有 text 字段，也没有 instruction 和 output 字段")
    messages = [{**message, "content": message["content"].strip()} for message in messages]
    names = {"system": "系统文本", "user": "用户的话", "assistant": "回答"}
    for message in messages:
        if not message["content"]:
            raise ValueError(f"{names[message['role']]}是空的")
    return messages


def conversation_of(obj: dict[str, Any], number: int, default_category: str, drop_system: bool) -> dict[str, Any]:
    """Return the conversation record; keys in a fixed order so that equal input gives equal bytes."""
    messages = messages_of(obj)
    category = obj.get("category")
    record = {
        "conversation_id": number,
        "category": category if isinstance(category, str) and category else default_category,
    }
    if messages[0]["role"] == "system":
        system, *messages = messages
        if not drop_system:
            record["system"] = system["content"]
    record["conversation"] = [
        {"human": human["content"], "assistant": assistant["content"]}
        for human, assistant in zip(messages[::2], messages[1::2], strict=True)
    ]
    if isinstance(obj.get("source"), str):
        record["source"] = obj["source"]
    return record


def convert(args: argparse.Namespace) -> tuple[int, int, list[str]]:
    """Write OUT; return the numbers of records converted and of another source, and the messages of --skip-bad."""
    from tqdm import tqdm

    bad: list[str] = []
    number, left_out = args.start_id, 0
    with write_atomically(args.out) as out, tqdm(desc="转换", unit="条", disable=None, mininterval=0.5) as bar:
        for where, obj in read_records(args.in_path, (lambda error: bad.append(str(error))) if args.skip_bad else None):
            bar.update()
            if args.only_source and obj.get("source") != args.only_source:
                left_out += 1
                continue
            try:
                record = conversation_of(obj, number, args.default_category, args.drop_system)
            except ValueError as error:
                message = f"{where}：{error}；请改正这条记录，或加 --skip-bad 跳过。"
                if not args.skip_bad:
                    raise UserError(message) from None
                bad.append(message)
                continue
            out.write(dump_line(record))
            number += 1
        if number == args.start_id:
            first = f"第一个原因是 {bad[0]}" if bad else "文件里没有记录。"
            if left_out:
                first = f"{left_out} 条的 source 都不是 {args.only_source}，请检查 --only-source。"
            raise UserError(f"{args.in_path}：没有一条记录可以转换，没有写任何文件；{first}")
    return number - args.start_id, left_out, bad


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if os.path.exists(args.in_path) and os.path.exists(args.out) and os.path.samefile(args.in_path, args.out):
        raise UserError(f"--out {args.out}：与 --in 是同一个文件，会盖掉输入；请换一个输出路径。")
    converted, left_out, bad = convert(args)
    for message in bad[:5]:
        print(f"已跳过：{message}", file=sys.stderr)
    read = converted + left_out + len(bad)
    others = f"，不是来源 {args.only_source} 的 {left_out} 条" if args.only_source else ""
    print(f"读入 {read} 条，写出 {converted} 条到 {args.out}{others}，跳过 {len(bad)} 条。", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
