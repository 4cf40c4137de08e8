#!/usr/bin/env python3
"""Clean, deduplicate and mix the HIT records and open Chinese sources into one HIT ChatML JSONL, with statistics.

    python prep_sft_firefly_hit.py --firefly-json data/samples/general_samples.json \
        --hit-jsonl data/samples/hit_samples.jsonl --out data/processed/mix.jsonl --hit-ratio 0.4 --near-dup

HIT is read first, so of two equal records the HIT one stays. Gates look at normalised copies; what is written is
the original text, stripped. Every record read is kept or counted under one reason, in OUT's _dataset_info.json.
The first pass reads everything and holds only places, fingerprints and signatures; the second reads what was chosen.
"""

import argparse
import functools
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from sft_data.errors import UserError, exit_cleanly
from sft_data.options import beside, build_gates, check_args, inputs_of, near_of, outputs_of, weights_of

log = logging.getLogger("prep")
REPORTED = ("drop_max_urls", "drop_pii", "redact_pii", "drop_pattern", "total", "max_firefly", "eval_size", "seed")
REPORTED += ("on_shortage", "max_repeat", "no_filter", "no_dedup")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="清洗、去重、按比例混合 HIT 数据与开源数据，写成一个 HIT ChatML JSONL，并写统计 *_dataset_info.json。",
        epilog="同样的输入和参数得到逐字节相同的输出，与进程数无关。中断或失败时，原有的文件不变。",
    )
    for add in (_add_files, _add_mix, _add_gates, _add_dedup, _add_look, _add_run):
        add(parser)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("输入与输出（.json .jsonl .gz .zst .parquet，可用 s3:// 一类地址）")
    files.add_argument(
        "--firefly-json", metavar="FILE", help="开源数据：JSON 数组或 JSONL；可用 shards/*.jsonl 一类模式"
    )
    files.add_argument("--hit-jsonl", metavar="FILE", nargs="+", default=[], help="HIT ChatML JSONL，可给多个")
    files.add_argument("--source", metavar="NAME=PATH:WEIGHT", action="append", default=[],
                       help="更多来源，可多次；格式按内容识别，权重与 Firefly 的 1 相比")  # fmt: skip
    files.add_argument("--out", metavar="FILE", help="输出；格式由文件名决定，.parquet 亦可")
    files.add_argument("--overwrite", action="store_true", help="替换已有的输出（默认：已存在时退出，不动它）")
    files.add_argument("--append", action="store_true", help="接在已有的输出后面，其中已有的记录不再加入")
    files.add_argument("--keep-meta", action="store_true", help="每条记录另写 meta：来自哪个文件的哪一行")
    files.add_argument("--stream-json", action="store_true", help="为兼容旧命令保留：现在总是流式读取")
    files.add_argument("--skip-bad", action="store_true", help="跳过无法读取的记录并计数（默认：报出位置，退出码 2）")


def _add_mix(parser: argparse.ArgumentParser) -> None:
    mix = parser.add_argument_group("混合")
    mix.add_argument("--total", type=int, metavar="N", help="总条数（默认：清洗后的全部，此时不按比例）")
    mix.add_argument("--hit-ratio", type=float, default=0.5, metavar="R", help="HIT 占比 0~1（默认 %(default)s）")
    mix.add_argument("--on-shortage", choices=("backfill", "shrink", "repeat", "fail"), default="backfill",
                     help="某个来源不够时：用其他来源补足（默认）、缩小总数、重复它、报错")  # fmt: skip
    mix.add_argument(
        "--max-repeat", type=int, default=4, metavar="N", help="repeat 时一条至多用几次（默认 %(default)s）"
    )
    mix.add_argument("--max-firefly", type=int, metavar="N", help="开源数据保留够 N 条就不再往下读")
    mix.add_argument("--eval-size", type=float, metavar="N|SHARE",
                     help="先按来源分出这么多条（或这个比例）到 OUT 同名的 _eval 文件，与它们近似的不参加训练")  # fmt: skip
    mix.add_argument("--seed", type=int, default=42, help="抽样与打乱的种子（默认 %(default)s）")


def _add_gates(parser: argparse.ArgumentParser) -> None:
    gates = parser.add_argument_group("过滤")
    gates.add_argument("--min-chinese-ratio", type=float, default=0.6, metavar="R", help="中文字占比下限（默认 0.6）")
    for short, name, low, high in (("ins", "指令", 20, 200), ("inp", "输入", 20, 300), ("out", "回答", 80, 1200)):
        gates.add_argument(f"--{short}-min", type=int, default=low, metavar="N", help=f"{name}最少字数（默认 {low}）")
        gates.add_argument(f"--{short}-max", type=int, default=high, metavar="N", help=f"{name}最多字数（默认 {high}）")
    gates.add_argument("--drop-pattern", action="append", default=[], metavar="REGEX", help="回答命中即丢弃，可多次")
    gates.add_argument("--drop-max-urls", type=int, default=5, metavar="N", help="回答中网址的上限（默认 %(default)s）")
    pii = gates.add_mutually_exclusive_group()
    pii.add_argument("--drop-pii", action="store_true", help="丢弃含手机号、邮箱、身份证号、银行卡号的记录")
    pii.add_argument("--redact-pii", action="store_true", help="不丢弃，而是换成 [手机号]、[邮箱] 一类占位符")
    gates.add_argument("--no-filter", action="store_true", help="不过滤（空记录除外）")


def _add_dedup(parser: argparse.ArgumentParser) -> None:
    dedup = parser.add_argument_group("去重")
    dedup.add_argument("--near-dup", action="store_true", help="近似去重，用推荐的方法与阈值（docs/NEAR_DUP.md）")
    dedup.add_argument(
        "--near-dup-threshold", type=int, metavar="BITS", help="SimHash 相差至多 BITS 位即近似重复，0~12"
    )
    dedup.add_argument(
        "--near-dup-method", choices=("simhash", "minhash"), help="方法（默认 minhash；给出 BITS 时是 simhash）"
    )
    dedup.add_argument("--near-dup-jaccard", type=float, metavar="S", help="minhash：特征集合的相似度下限（默认 0.85）")
    dedup.add_argument("--near-dup-features", choices=("bigram", "word", "legacy"),
                       help="比什么：相邻两字（默认）、jieba 的词、整个分句（旧版的做法）")  # fmt: skip
    dedup.add_argument("--no-dedup", action="store_true", help="完全不去重")


def _add_look(parser: argparse.ArgumentParser) -> None:
    look = parser.add_argument_group("检查与报告")
    look.add_argument("--check", action="store_true", help="只检查全部输入，不写数据：哪一行、哪个字段、怎么改")
    look.add_argument("--check-out", metavar="FILE", help="全部问题写到这里（默认：OUT 同名的 _check.jsonl）")
    look.add_argument("--strict", action="store_true", help="--check 发现错误或警告时退出码为 2；提示不算")
    look.add_argument("--dropped-out", metavar="FILE", help="每条丢弃的记录：原因、证据（词句、数值、与谁重复）、原文")
    look.add_argument("--dups-out", metavar="FILE", help="每对重复：两条的文字与距离")
    look.add_argument("--report", metavar="FILE.html", help="一页自带图表的报告")
    look.add_argument(
        "--tokenizer", metavar="DIR", help="报告里按这个分词器统计 token 数：模型目录、tokenizer.json 或模型名"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("运行")
    how.add_argument("--workers", type=int, metavar="N", help="进程数（默认：全部核）")
    how.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="在本机，或在 Ray 集群上（docs/SCALE.md）"
    )
    how.add_argument("--address", metavar="ADDR", default="auto", help="Ray 集群的地址（默认 %(default)s）")
    how.add_argument("--log", default="INFO", metavar="LEVEL", help="DEBUG、INFO、WARNING 或 ERROR（默认 INFO）")


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_args(args)
    logging.basicConfig(level=args.log.upper(), format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    if args.check:
        from sft_data.doctor import check

        return check(
            inputs_of(args), args.check_out or beside(args.out or "prep.jsonl", "_check", ".jsonl"), args.strict
        )
    from sft_data.engine import default_workers
    from sft_data.files import refuse_existing
    from sft_data.storage import file_exists, is_remote

    paths = outputs_of(args)
    if args.append:
        for path in [path for name, path in paths.items() if name not in ("out", "info") and file_exists(path)]:
            raise UserError(f"{path}：文件已经存在；--append 只往 {args.out} 里加，请给这个文件换一个路径。")
    else:
        refuse_existing(paths.values(), args.overwrite, has_append=True)
    if args.tokenizer:
        from sft_data.report_tokens import check_tokenizer

        check_tokenizer(args.tokenizer)
    args.workers = args.workers or default_workers()
    scratch = Path("prep.scratch" if is_remote(args.out) else f"{args.out}.scratch")
    try:
        prepare(args, paths, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def prepare(args: argparse.Namespace, paths: dict[str, str], scratch: Path) -> None:
    from sft_data import mixture, resolve
    from sft_data.emit import feature_sets_of, rows_at
    from sft_data.engine import run
    from sft_data.scan import Near, Rules
    from sft_data.sources import read_all
    from sft_data.writing import Plan, show_progress, write

    near, inputs = near_of(args), inputs_of(args)
    asked = near.threshold if near and near.method == "simhash" else 0
    plain = Near("simhash", "bigram", max(resolve.EVAL_BITS, asked))
    holding_out = args.eval_size is not None or any(one.name == "eval" for one in inputs)
    nears = tuple(filter(None, (near, holding_out and (near is None or near[:2] != plain[:2]) and plain)))
    rules = Rules(build_gates(args), nears, args.redact_pii)
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    address = args.address if args.engine == "ray" else None
    table = read_all(inputs, rules, args.skip_bad, scratch, args.workers, address)
    running = functools.partial(run, workers=args.workers, address=address)
    sets_of = lambda indices: feature_sets_of(rows_at(table, table.passed[indices], rules), near.features)  # noqa: E731
    resolve.drop_duplicates(table, near, not args.no_dedup, sets_of, show_progress("近似去重"), running)
    names = [one.name for one in inputs if one.name not in resolve.OLD]
    held_out = resolve.hold_out(table, names, args.eval_size or 0, int(plain.threshold), args.seed)
    counts = {name: table.counts(name) for name in names}
    log_counts(counts)
    kept = {name: count["kept"] for name, count in counts.items()}
    if not any(kept.values()) and not args.append:
        raise UserError("没有一条记录通过：请看上面的丢弃原因，放宽相应的参数；没有写任何文件。")
    shares = mixture.shares_of(weights_of(inputs), args.hit_ratio)
    available = {name: kept[name] - len(held_out[name]) for name in names}
    allocated = mixture.allocate(available, args.total, shares, args.on_shortage, args.max_repeat)
    if not any(allocated.values()) and any(available.values()):
        empty = "、".join(mixture.label(name) for name in names if shares[name] and not available[name])
        raise UserError(
            f"按比例一条也取不出：{empty} 没有剩下记录；请去掉它、改 --hit-ratio 或权重，或用 --on-shortage backfill；没有写任何文件。"
        )
    plan = Plan(names, shares, kept, available, allocated, held_out)
    info = build_info(args, counts, plan, near, len(table.alive("out")))
    write(args, table, plan, rules, info, paths)
    log_mixture(info, paths)


def log_counts(counts: dict[str, dict[str, Any]]) -> None:
    from sft_data.mixture import label as name_of
    from sft_data.quality import label

    for name, count in counts.items():
        reasons = sorted(count["dropped"].items(), key=lambda item: -item[1])
        dropped = "，".join(f"{label(reason)} {n}" for reason, n in reasons) or "无"
        log.info("%s：读入 %d 条，保留 %d 条；丢弃：%s", name_of(name), count["read"], count["kept"], dropped)
        for message in count["bad_records"]:
            log.warning("已跳过：%s", message)


def build_info(
    args: argparse.Namespace, counts: dict[str, dict[str, Any]], plan: Any, near: Any, old: int
) -> dict[str, Any]:
    """old: records that OUT has already."""
    from sft_data import mixture

    shares = mixture.delivered(plan.allocated)
    note = mixture.explain(plan.available, plan.allocated, args.total, plan.shares)
    limits = {"instruction": "ins", "input": "inp", "output": "out"}
    return {
        "sources": {f"{name}_kept": n for name, n in plan.kept.items()},
        "counts": counts,
        "held_out": {name: len(indices) for name, indices in plan.held_out.items()},
        "allocated": plan.allocated,
        "appended_to": old,
        "final_count": old + sum(plan.allocated.values()),
        "hit_ratio_target": args.hit_ratio,
        "hit_ratio_delivered": round(shares["hit"], 6),
        "hit_ratio_applied": args.total is not None or args.on_shortage == "shrink",
        "hit_ratio_note": note,
        "shares": {
            name: {"asked": round(plan.shares[name], 6), "delivered": round(shares[name], 6)} for name in plan.names
        },
        "firefly_path": args.firefly_json,
        "hit_paths": args.hit_jsonl,
        "source_paths": args.source,
        "near_dup_threshold_bits": int(near.threshold) if near and near.method == "simhash" else None,
        "near_dup": near and near._asdict(),
        "params": {
            "min_chinese_ratio": args.min_chinese_ratio,
            "length_limits": {k: [getattr(args, f"{v}_min"), getattr(args, f"{v}_max")] for k, v in limits.items()},
            **{name: getattr(args, name) for name in REPORTED},
        },
    }


def log_mixture(info: dict[str, Any], paths: dict[str, str]) -> None:
    """The last line says what was asked and what was delivered."""
    from sft_data.mixture import label

    files = "、".join(paths.values())
    log.info("训练 %d 条，评测 %d 条；已写出 %s", info["final_count"], sum(info["held_out"].values()), files)
    say = log.warning if info["hit_ratio_note"] else log.info
    others = "".join(
        f"；{label(name)} 要求 {share['asked']:.4g}，实际 {share['delivered']:.4g}"
        for name, share in info["shares"].items()
        if name != "hit" and len(info["shares"]) > 2
    )
    say(
        "HIT 占比：要求 %.4g，实际 %.4g%s。%s",
        info["hit_ratio_target"],
        info["hit_ratio_delivered"],
        others,
        info["hit_ratio_note"] or "",
    )


if __name__ == "__main__":
    sys.exit(main())
