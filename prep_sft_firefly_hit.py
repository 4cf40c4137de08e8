#!/usr/bin/env python3
"""Clean, deduplicate and mix the HIT records and an open Chinese source into one HIT ChatML JSONL, with statistics.

    python prep_sft_firefly_hit.py --firefly-json data/samples/general_samples.json \
        --hit-jsonl data/samples/hit_samples.jsonl --out data/processed/mix.jsonl --hit-ratio 0.4 --near-dup-threshold 3

HIT is read first, so of two equal records the HIT one stays. Gates look at normalised copies; what is written is
the original text, stripped. Every record read is kept or counted under one reason, in OUT's _dataset_info.json.
"""

import argparse
import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from sft_data.chatml import Fields, carried, firefly_record, hit_record, render_chatml
from sft_data.errors import UserError, exit_cleanly
from sft_data.jsonl import dump_line, read_records, write_atomically
from sft_data.mixture import allocate, explain_share, pick, share, split_eval
from sft_data.quality import Gates, label
from sft_data.source import Source

log = logging.getLogger("prep")
SOURCE_NAMES = {"hit": "HIT", "firefly": "Firefly"}
BATCH = 4096  # records screened at a time
Record = tuple[dict[str, Any], Fields, list[dict[str, str]]]
REPORTED = ("drop_max_urls", "drop_pii", "drop_pattern", "total", "max_firefly", "seed", "no_filter", "no_dedup")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="清洗、去重、按比例混合 HIT 数据与开源数据，写成一个 HIT ChatML JSONL，并写统计 *_dataset_info.json。",
        epilog="同样的输入和参数得到逐字节相同的输出。OUT 已存在时，成功后才整体替换；中断或失败时原文件不变。",
    )
    files = parser.add_argument_group("输入与输出")
    files.add_argument("--firefly-json", metavar="FILE", help="开源数据：JSON 数组或 JSONL，可为 .gz、.zst")
    files.add_argument("--hit-jsonl", metavar="FILE", nargs="+", default=[], help="HIT ChatML JSONL，可给多个")
    files.add_argument("--out", metavar="FILE", required=True, help="输出 JSONL")
    files.add_argument("--stream-json", action="store_true", help="为兼容旧命令保留：现在总是流式读取")
    files.add_argument("--skip-bad", action="store_true", help="跳过无法读取的记录并计数（默认：报出位置，退出码 2）")

    mix = parser.add_argument_group("混合")
    mix.add_argument("--total", type=int, metavar="N", help="总条数（默认：清洗后的全部，此时不按比例）")
    mix.add_argument("--hit-ratio", type=float, default=0.5, metavar="R", help="HIT 占比 0~1（默认 %(default)s）")
    mix.add_argument("--max-firefly", type=int, metavar="N", help="开源数据保留够 N 条就不再往下读")
    mix.add_argument(
        "--eval-size",
        type=float,
        metavar="N|SHARE",
        help="先按来源分出这么多条（或这个比例）到 OUT 同名的 _eval.jsonl，不参加训练",
    )
    mix.add_argument("--seed", type=int, default=42, help="抽样与打乱的种子（默认 %(default)s）")

    gates = parser.add_argument_group("过滤")
    gates.add_argument("--min-chinese-ratio", type=float, default=0.6, metavar="R", help="中文字占比下限（默认 0.6）")
    for short, name, low, high in (("ins", "指令", 20, 200), ("inp", "输入", 20, 300), ("out", "回答", 80, 1200)):
        gates.add_argument(f"--{short}-min", type=int, default=low, metavar="N", help=f"{name}最少字数（默认 {low}）")
        gates.add_argument(f"--{short}-max", type=int, default=high, metavar="N", help=f"{name}最多字数（默认 {high}）")
    gates.add_argument("--drop-pattern", action="append", default=[], metavar="REGEX", help="回答命中即丢弃，可多次")
    gates.add_argument("--drop-max-urls", type=int, default=5, metavar="N", help="回答中网址的上限（默认 %(default)s）")
    gates.add_argument("--drop-pii", action="store_true", help="丢弃含手机号、邮箱、身份证号、银行卡号的记录")
    gates.add_argument("--no-filter", action="store_true", help="不过滤（空记录除外）")

    dedup = parser.add_argument_group("去重")
    dedup.add_argument(
        "--near-dup-threshold", type=int, metavar="BITS", help="SimHash 相差至多 BITS 位即近似重复，0~12（默认不做）"
    )
    dedup.add_argument("--no-dedup", action="store_true", help="完全不去重")
    parser.add_argument("--log", default="INFO", metavar="LEVEL", help="DEBUG、INFO、WARNING 或 ERROR（默认 INFO）")
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot mean anything, before an hour of work."""
    if not args.firefly_json and not args.hit_jsonl:
        raise UserError("没有输入：请至少给出 --hit-jsonl 或 --firefly-json。")
    for path in [*args.hit_jsonl, args.firefly_json]:
        if path and os.path.exists(path) and os.path.exists(args.out) and os.path.samefile(path, args.out):
            raise UserError(f"--out {args.out}：与输入是同一个文件，会盖掉原始数据；请换一个输出路径。")
    for name in ("hit_ratio", "min_chinese_ratio"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}：应在 0 和 1 之间。")
    if args.eval_size is not None and (args.eval_size <= 0 or (args.eval_size >= 1 and args.eval_size % 1)):
        raise UserError(
            f"--eval-size {args.eval_size:g}：应是 0 到 1 之间的比例，例如 0.05，或一个整数条数，例如 200。"
        )
    for name in ("total", "max_firefly"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}：应至少为 1；要用全部就别给它。")
    for name in ("ins", "inp", "out"):
        if getattr(args, f"{name}_min") > getattr(args, f"{name}_max"):
            raise UserError(f"--{name}-min 大于 --{name}-max，任何记录都通不过；请改正其中一个。")
    if args.near_dup_threshold is not None and not 0 <= args.near_dup_threshold <= 12:
        raise UserError(f"--near-dup-threshold {args.near_dup_threshold}：应在 0 到 12 之间，常用 3 到 6；再大会误删。")
    if args.log.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UserError(f"--log {args.log}：应为 DEBUG、INFO、WARNING 或 ERROR。")


def build_gates(args: argparse.Namespace) -> Gates:
    patterns = []
    for text in args.drop_pattern:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise UserError(f"--drop-pattern {text!r}：不是合法的正则表达式（{error}）；请改正后重试。") from None
    return Gates(
        min_chinese_ratio=args.min_chinese_ratio,
        lengths={
            "instruction": (args.ins_min, args.ins_max),
            "input": (args.inp_min, args.inp_max),
            "output": (args.out_min, args.out_max),
        },
        drop_patterns=tuple(patterns),
        max_urls=args.drop_max_urls,
        drop_pii=args.drop_pii,
    )


def read_source(source: Source, paths: list[str], skip_bad: bool) -> Iterator[Record | UserError]:
    """Yield each record as (object, fields, messages), or with ``skip_bad`` the reason why it can't be read."""
    from tqdm import tqdm

    record_of = hit_record if source.name == "hit" else firefly_record
    bad: list[UserError] = []
    with tqdm(desc=f"读取 {SOURCE_NAMES[source.name]}", unit="条", disable=None, mininterval=0.5) as bar:
        for path in paths:
            for where, obj in read_records(path, bad.append if skip_bad else None):
                bar.update()
                yield from bad
                bad.clear()
                try:
                    yield obj, *record_of(obj)
                except ValueError as error:
                    problem = UserError(f"{where}：{error}；请改正这条记录，或加 --skip-bad 跳过。")
                    if not skip_bad:
                        raise problem from None
                    yield problem
            yield from bad
            bad.clear()


def in_batches(records: Iterator[Record | UserError]) -> Iterator[list[Record | UserError]]:
    """Yield up to BATCH records at a time; what was read before an error comes before it, for it may be enough."""
    batch = []
    try:
        for record in records:
            batch.append(record)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except UserError:
        yield batch
        raise
    yield batch


def clean(source: Source, paths: list[str], args: argparse.Namespace, gates: Gates | None, seen: set[bytes]) -> None:
    """Fill ``source`` with the records that pass the gates and are no exact duplicate of an earlier one."""
    from sft_data.dedup import fingerprint
    from sft_data.screen import screen

    limit = args.max_firefly if source.name == "firefly" else None
    near = args.near_dup_threshold is not None and not args.no_dedup
    records = read_source(source, paths, args.skip_bad)
    for batch in in_batches(records):
        screened = zip(*screen([item[1] for item in batch if isinstance(item, tuple)], gates, near), strict=True)
        for item in batch:
            source.read += 1
            if isinstance(item, UserError):
                source.drop_bad(item)
                continue
            reason, body, signature = next(screened)
            if reason:
                source.drop(reason)
                continue
            obj, _, messages = item
            try:
                line = dump_line({"text": render_chatml(messages), "source": source.name, **carried(obj)})
            except ValueError:  # the order was checked on reading, so a content holds the format's own marker
                source.drop("format_marker")
                continue
            if not args.no_dedup:
                if (key := fingerprint(body)) in seen:
                    source.drop("duplicate")
                    continue
                seen.add(key)
                if near:
                    source.signatures.append(signature)
            source.lines.append(line)
            if limit and len(source.lines) >= limit:
                log.info("Firefly 已保留 %d 条（--max-firefly），不再往下读", limit)
                return


def drop_near_duplicates(sources: list[Source], threshold: int) -> None:
    """Drop, over all sources together and in their order, what is close to an earlier record."""
    from tqdm import tqdm

    from sft_data.dedup import near_duplicates

    signatures = [signature for source in sources for signature in source.signatures]
    drop = near_duplicates(signatures, threshold, lambda p: tqdm(p, desc="近似去重", unit="遍", disable=None))
    start = 0
    for source in sources:
        flags = drop[start : start + len(source.lines)].tolist()
        start += len(flags)
        source.lines = [line for line, dropped in zip(source.lines, flags, strict=True) if not dropped]
        source.dropped["near_duplicate"] += sum(flags)


def build_report(
    args: argparse.Namespace, sources: dict[str, Source], held_out: dict[str, list[int]], allocated: dict[str, int]
) -> dict[str, Any]:
    kept = {name: len(source.lines) for name, source in sources.items()}
    available = {name: n - len(held_out[name]) for name, n in kept.items()}
    limits = {"instruction": "ins", "input": "inp", "output": "out"}
    return {
        "sources": {f"{name}_kept": n for name, n in kept.items()},
        "counts": {name: source.counts() for name, source in sources.items()},
        "held_out": {name: len(indices) for name, indices in held_out.items()},
        "allocated": allocated,
        "final_count": sum(allocated.values()),
        "hit_ratio_target": args.hit_ratio,
        "hit_ratio_delivered": round(share(allocated), 6),
        "hit_ratio_applied": args.total is not None,
        "hit_ratio_note": explain_share(available, allocated, args.total, args.hit_ratio),
        "firefly_path": args.firefly_json,
        "hit_paths": args.hit_jsonl,
        "near_dup_threshold_bits": args.near_dup_threshold,
        "params": {
            "min_chinese_ratio": args.min_chinese_ratio,
            "length_limits": {k: [getattr(args, f"{v}_min"), getattr(args, f"{v}_max")] for k, v in limits.items()},
            **{name: getattr(args, name) for name in REPORTED},
        },
    }


def write(
    args: argparse.Namespace, sources: dict[str, Source], chosen: list[tuple[str, int]], held_out: dict, report: dict
) -> str:
    """Write OUT, its held-out part and its report; none replaces an old one before all are on disk. Returns a list."""
    import orjson

    stem = os.path.splitext(args.out)[0]
    parts = {
        args.out: (sources[name].lines[i] for name, i in chosen),
        f"{stem}_dataset_info.json": [orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)],
    }
    if args.eval_size is not None:
        parts[f"{stem}_eval.jsonl"] = (sources[name].lines[i] for name, rows in held_out.items() for i in rows)
    with contextlib.ExitStack() as stack:
        for file, lines in [(stack.enter_context(write_atomically(path)), lines) for path, lines in parts.items()]:
            file.writelines(lines)
            file.flush()
    return "、".join(parts)


def log_counts(source: Source) -> None:
    reasons = "，".join(f"{label(reason)} {n}" for reason, n in source.dropped.most_common() if n)
    name = SOURCE_NAMES[source.name]
    log.info("%s：读入 %d 条，保留 %d 条；丢弃：%s", name, source.read, len(source.lines), reasons or "无")
    for message in source.bad:
        log.warning("已跳过：%s", message)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_args(args)
    logging.basicConfig(level=args.log.upper(), format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    gates = None if args.no_filter else build_gates(args)

    sources = {name: Source(name) for name in SOURCE_NAMES}
    seen: set[bytes] = set()
    clean(sources["hit"], args.hit_jsonl, args, gates, seen)
    clean(sources["firefly"], [args.firefly_json] if args.firefly_json else [], args, gates, seen)
    if args.near_dup_threshold is not None and not args.no_dedup:
        drop_near_duplicates(list(sources.values()), args.near_dup_threshold)
    for source in sources.values():
        log_counts(source)

    kept = {name: len(source.lines) for name, source in sources.items()}
    if not any(kept.values()):
        raise UserError("没有一条记录通过：请看上面的丢弃原因，放宽相应的参数；没有写任何文件。")
    held_out = split_eval(kept, args.eval_size or 0, args.seed)
    allocated = allocate({name: n - len(held_out[name]) for name, n in kept.items()}, args.total, args.hit_ratio)
    report = build_report(args, sources, held_out, allocated)
    files = write(args, sources, pick(kept, held_out, allocated, args.seed), held_out, report)
    log.info("训练 %d 条，评测 %d 条；已写出 %s", report["final_count"], sum(map(len, held_out.values())), files)
    note = report["hit_ratio_note"]
    say = log.warning if note else log.info
    say("HIT 占比：要求 %.4g，实际 %.4g。%s", args.hit_ratio, report["hit_ratio_delivered"], note or "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
