#!/usr/bin/env python3
"""Convert sets of conversations: into Firefly's conversation JSONL for training, or into another program's format.

    python chatml2conversation.py --in data/samples/hit_samples.jsonl --out data/processed/train.jsonl

What is read (HIT ChatML, instruction/input/output, Firefly's conversation, messages, ShareGPT) is seen from each
record; what is written is named by --to. The system text and every turn are kept, in the order of the input.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sft_data.errors import UserError, exit_cleanly
from sft_data.files import copy_records, form_of, refuse_existing, write_lines
from sft_data.formats import FORMATS, Messages, dataset_info, format_of, read_messages, split_system, write_record
from sft_data.jsonl import dump_line, read_records
from sft_data.storage import file_exists


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="把对话数据转成 Firefly 训练用的 conversation JSONL，或 LLaMA-Factory、TRL、ms-swift 用的格式。输入的格式按内容识别："
        "HIT ChatML、instruction/input/output、conversation、messages、ShareGPT。",
        epilog="成功后才写入 OUT；中断或失败时已有的文件不变。一条也没有转成时退出码为 2。",
    )
    parser.add_argument(
        "--in",
        dest="inputs",
        nargs="+",
        required=True,
        metavar="FILE",
        help="输入，可给多个：JSONL、JSON 数组或 parquet，可为 .gz、.zst",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="输出，形式看扩展名：.jsonl、.json（可加 .gz、.zst）或 .parquet"
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="firefly",
        help="输出格式（默认 firefly）：firefly 给本项目训练；messages 给 TRL、ms-swift；sharegpt、alpaca 给 LLaMA-Factory；"
        "chatml 即 HIT ChatML，给 prep_sft_firefly_hit.py",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="OUT 已存在时替换它（默认：退出码 2，不动它）")
    existing.add_argument("--append", action="store_true", help="接在 OUT 后面：原有的记录不变，对话相同的不再写")
    parser.add_argument(
        "--default-category",
        default="General",
        metavar="NAME",
        help="记录没有 category 时用的类别（默认 General；--to chatml 时不补）",
    )
    parser.add_argument(
        "--start-id", type=int, default=1, metavar="N", help="conversation_id 的起始值（默认 1；--append 时接着编）"
    )
    parser.add_argument("--drop-system", action="store_true", help="不保留系统文本")
    parser.add_argument("--only-source", metavar="NAME", help="只转换 source 是它的记录，例如 hit（用于第二阶段）")
    parser.add_argument("--skip-bad", action="store_true", help="跳过无法转换的记录并计数（默认：报出位置，退出码 2）")
    return parser


def check_args(args: argparse.Namespace) -> None:
    form_of(args.out)
    for path in args.inputs:
        both = os.path.exists(path) and os.path.exists(args.out)
        if path == args.out or (both and os.path.samefile(path, args.out)):
            raise UserError(f"--out {args.out}：与 --in 是同一个文件，会盖掉输入；请换一个输出路径。")
    refuse_existing([args.out], args.overwrite or args.append, has_append=True)


def fingerprint(messages: Messages) -> bytes:
    return hashlib.blake2b(dump_line(messages), digest_size=16).digest()


def read_old(path: str, form: str) -> tuple[set[bytes], int]:
    """Return the fingerprints of the conversations in OUT, and its highest conversation_id."""
    seen, last = set(), 0
    for where, obj in read_records(path):
        try:
            messages = read_messages(obj)
        except ValueError as error:
            raise UserError(f"{where}：--append 读不懂 OUT 里的这条：{error}；请改正它，或换一个输出路径。") from None
        if (old := format_of(obj)) != form:
            raise UserError(f"{where}：OUT 里是 {old} 格式，不能接 {form} 格式；请改用 --to {old}，或换一个输出路径。")
        seen.add(fingerprint(messages))
        number = obj.get("conversation_id")
        last = max(last, number if isinstance(number, int) else 0)
    return seen, last


def read_inputs(args: argparse.Namespace, bad: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    from tqdm import tqdm

    with tqdm(desc="转换", unit="条", disable=None, mininterval=0.5) as bar:
        for path in args.inputs:
            for record in read_records(path, (lambda error: bad.append(str(error))) if args.skip_bad else None):
                bar.update()
                yield record


def convert(args: argparse.Namespace) -> tuple[Counter, list[str]]:
    """Write OUT; return the counts (written, known, other source, multi-turn) and the messages of --skip-bad."""
    counts, bad = Counter(), []
    seen, number = set(), args.start_id
    adding = args.append and file_exists(args.out)
    if adding:
        seen, last = read_old(args.out, args.to)
        number = max(number, last + 1)
    with write_lines(args.out) as out:
        if adding:
            copy_records(args.out, out)
        for where, obj in read_inputs(args, bad):
            if args.only_source and obj.get("source") != args.only_source:
                counts["other"] += 1
                continue
            try:
                messages = read_messages(obj)
                if args.drop_system:
                    messages = split_system(messages)[1]
                record = write_record(args.to, messages, obj, number + counts["written"], args.default_category)
            except ValueError as error:
                message = f"{where}：{error}；请改正这条记录，或加 --skip-bad 跳过。"
                if not args.skip_bad:
                    raise UserError(message) from None
                bad.append(message)
                continue
            if args.append:
                if (key := fingerprint(messages)) in seen:
                    counts["known"] += 1
                    continue
                seen.add(key)
            out.write(dump_line(record))
            counts["written"] += 1
            counts["long"] += len(messages) > 3
        if not counts["written"] + counts["known"]:
            raise UserError(nothing_converted(args, counts["other"], bad))
    return counts, bad


def nothing_converted(args: argparse.Namespace, other: int, bad: list[str]) -> str:
    first = f"第一个原因是 {bad[0]}" if bad else "文件里没有记录。"
    if other:
        first = f"{other} 条的 source 都不是 {args.only_source}，请检查 --only-source。"
    return f"{'、'.join(args.inputs)}：没有一条记录可以转换，没有写任何文件；{first}"


def say_how_to_use(args: argparse.Namespace, counts: Counter) -> None:
    """Say what LLaMA-Factory must be told about the file, and what it could not read in it."""
    if info := dataset_info(args.to, args.out):
        entry = json.dumps(info, ensure_ascii=False)[1:-1]
        print(f"LLaMA-Factory：在它的 data/dataset_info.json 里加一项 {entry}", file=sys.stderr)
    elif args.to in ("sharegpt", "alpaca"):
        print("LLaMA-Factory 只读本机的 .json、.jsonl、.parquet；给它用请换一个 --out。", file=sys.stderr)
    # datasets takes the columns of JSONL from its first 10 MB, and a list that is empty so far for one of nothing
    if args.to == "alpaca" and 0 < counts["long"] < counts["written"] and form_of(args.out)[0] == "jsonl":
        why = "单轮与多轮混在一起的 JSONL 超过 10 MB 时，LLaMA-Factory 可能读不了 history"
        print(f"{why}；请改用 --to sharegpt，或 --out X.json、X.parquet。", file=sys.stderr)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_args(args)
    counts, bad = convert(args)
    for message in bad[:5]:
        print(f"已跳过：{message}", file=sys.stderr)
    read = counts["written"] + counts["known"] + counts["other"] + len(bad)
    known = f"，已有 {counts['known']} 条" if args.append else ""
    others = f"，不是来源 {args.only_source} 的 {counts['other']} 条" if args.only_source else ""
    said = f"读入 {read} 条，写出 {counts['written']} 条到 {args.out}{known}{others}，跳过 {len(bad)} 条。"
    print(said, file=sys.stderr)
    say_how_to_use(args, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
