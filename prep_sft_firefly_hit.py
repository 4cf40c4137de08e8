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
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sft_data.errors import UserError, exit_cleanly

log = logging.getLogger("prep")
REPORTED = ("drop_max_urls", "drop_pii", "redact_pii", "drop_pattern", "total", "max_firefly", "eval_size", "seed")
REPORTED += ("on_shortage", "max_repeat", "no_filter", "no_dedup")
PACKINGS = (".gz", ".zst")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="清洗、去重、按比例混合 HIT 数据与开源数据，写成一个 HIT ChatML JSONL，并写统计 *_dataset_info.json。",
        epilog="同样的输入和参数得到逐字节相同的输出，与进程数无关。中断或失败时，原有的文件不变。",
    )
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

    how = parser.add_argument_group("运行")
    how.add_argument("--workers", type=int, metavar="N", help="进程数（默认：全部核）")
    how.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="在本机，或在 Ray 集群上（docs/SCALE.md）"
    )
    how.add_argument("--address", metavar="ADDR", default="auto", help="Ray 集群的地址（默认 %(default)s）")
    how.add_argument("--log", default="INFO", metavar="LEVEL", help="DEBUG、INFO、WARNING 或 ERROR（默认 INFO）")
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot mean anything, before an hour of work."""
    if not (args.firefly_json or args.hit_jsonl or args.source):
        raise UserError("没有输入：请至少给出 --hit-jsonl、--firefly-json 或 --source。")
    if not args.out and not args.check:
        raise UserError("没有 --out：请给出输出文件；只想检查数据请加 --check。")
    for path in [*args.hit_jsonl, args.firefly_json]:
        if path and args.out and os.path.exists(path) and os.path.exists(args.out) and os.path.samefile(path, args.out):
            raise UserError(f"--out {args.out}：与输入是同一个文件，会盖掉原始数据；请换一个输出路径。")
    for name in ("hit_ratio", "min_chinese_ratio", "near_dup_jaccard"):
        if not 0 <= (getattr(args, name) or 0) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}：应在 0 和 1 之间。")
    if args.eval_size is not None and (args.eval_size <= 0 or (args.eval_size >= 1 and args.eval_size % 1)):
        raise UserError(
            f"--eval-size {args.eval_size:g}：应是 0 到 1 之间的比例，例如 0.05，或一个整数条数，例如 200。"
        )
    for name in ("total", "max_firefly", "workers", "max_repeat"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            advice = "" if name in ("workers", "max_repeat") else "；要用全部就别给它"
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}：应至少为 1{advice}。")
    for name in ("ins", "inp", "out"):
        if getattr(args, f"{name}_min") > getattr(args, f"{name}_max"):
            raise UserError(f"--{name}-min 大于 --{name}-max，任何记录都通不过；请改正其中一个。")
    if args.near_dup_threshold is not None and not 0 <= args.near_dup_threshold <= 12:
        raise UserError(f"--near-dup-threshold {args.near_dup_threshold}：应在 0 到 12 之间，常用 3 到 8；再大会误删。")
    if args.total is None and args.on_shortage in ("repeat", "fail"):
        raise UserError(f"--on-shortage {args.on_shortage}：没有 --total 就谈不上不够；请给出 --total。")
    if args.log.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UserError(f"--log {args.log}：应为 DEBUG、INFO、WARNING 或 ERROR。")
    check_flags_that_go_together(args)


def check_flags_that_go_together(args: argparse.Namespace) -> None:
    if args.append and args.overwrite:
        raise UserError("--append 与 --overwrite 只能选一个：接在后面，还是替换？")
    if args.append and args.eval_size:
        raise UserError("--append 不能与 --eval-size 同用：已有的 _eval 文件照旧，新记录中与它近似的会被去掉。")
    if args.near_dup_threshold is not None and args.near_dup_method == "minhash":
        raise UserError("--near-dup-threshold 是 SimHash 的位数；minhash 的门槛请用 --near-dup-jaccard，例如 0.85。")
    if args.near_dup_jaccard is not None and (args.near_dup_method == "simhash" or args.near_dup_threshold is not None):
        raise UserError("--near-dup-jaccard 只用于 minhash；SimHash 的门槛是 --near-dup-threshold BITS。")
    if args.strict and not args.check:
        raise UserError("--strict 与 --check 同用；不加 --check 时，读不了的记录本来就会报错。")
    if args.tokenizer and not args.report:
        raise UserError("--tokenizer 用于 --report FILE.html；请同时给出。")


def build_gates(args: argparse.Namespace) -> Any:
    from sft_data.quality import Gates

    if args.no_filter:
        return None
    patterns = []
    for text in args.drop_pattern:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise UserError(f"--drop-pattern {text!r}：不是合法的正则表达式（{error}）；请改正后重试。") from None
    lengths = {
        name: (getattr(args, f"{short}_min"), getattr(args, f"{short}_max"))
        for short, name in (("ins", "instruction"), ("inp", "input"), ("out", "output"))
    }
    return Gates(args.min_chinese_ratio, lengths, tuple(patterns), args.drop_max_urls, args.drop_pii)


def near_of(args: argparse.Namespace) -> Any:
    """How near-duplicates are found, or None: any of its flags asks for it. A threshold in bits is SimHash's."""
    from sft_data.dedup import RECOMMENDED_BITS, RECOMMENDED_FEATURES, RECOMMENDED_METHOD
    from sft_data.minhash import RECOMMENDED_JACCARD
    from sft_data.scan import Near

    asked = (args.near_dup_threshold, args.near_dup_method, args.near_dup_jaccard, args.near_dup_features)
    if args.no_dedup or not (args.near_dup or any(value is not None for value in asked)):
        return None
    bits, least = args.near_dup_threshold, args.near_dup_jaccard
    method = args.near_dup_method or (RECOMMENDED_METHOD if bits is None else "simhash")
    if method == "simhash":
        threshold = RECOMMENDED_BITS if bits is None else bits
    else:
        threshold = RECOMMENDED_JACCARD if least is None else least
    return Near(method, args.near_dup_features or RECOMMENDED_FEATURES, threshold)


def inputs_of(args: argparse.Namespace) -> list[Any]:
    """The sources in order of preference; what an earlier run wrote, with --append, before all."""
    from sft_data.jsonl import file_exists
    from sft_data.sources import Input, expand, parse_source

    old = [("out", args.out), ("eval", beside(args.out, "_eval"))] if args.append else []
    inputs = [Input(name, "hit", [path], judged=False) for name, path in old if file_exists(path)]
    inputs.append(Input("hit", "hit", [file for path in args.hit_jsonl for file in expand(path)]))
    inputs.append(
        Input("firefly", "firefly", expand(args.firefly_json) if args.firefly_json else [], 1.0, args.max_firefly)
    )
    inputs += map(parse_source, args.source)
    names = [one.name for one in inputs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"--source：{'、'.join(twice)} 这个名字用了两次；同一来源的多个文件可写成 shards/*.jsonl 一类模式。"
        )
    return inputs


def beside(out: str, ending: str, suffix: str | None = None) -> str:
    """OUT's name with ``ending`` before its suffixes, or before another suffix."""
    stem, packing = os.path.splitext(out) if out.endswith(PACKINGS) else (out, "")
    stem, own = os.path.splitext(stem)
    return f"{stem}{ending}{own + packing if suffix is None else suffix}"


def outputs_of(args: argparse.Namespace) -> dict[str, str]:
    """What will be written: {what: path}."""
    paths = {"out": args.out, "info": beside(args.out, "_dataset_info", ".json")}
    if args.eval_size is not None:
        paths["eval"] = beside(args.out, "_eval")
    return paths | {name: getattr(args, name) for name in ("dropped_out", "dups_out", "report") if getattr(args, name)}


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
    from sft_data.jsonl import file_exists

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
    scratch = Path(f"{args.out}.scratch" if "://" not in args.out else "prep.scratch")
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
    nears = tuple(filter(None, (near, holding_out and near != plain and plain)))
    rules = Rules(build_gates(args), nears, args.redact_pii)
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    address = args.address if args.engine == "ray" else None
    table = read_all(inputs, rules, args.skip_bad, scratch, args.workers, address)
    running = functools.partial(run, workers=args.workers, address=address)
    sets_of = lambda indices: feature_sets_of(rows_at(table, table.passed[indices], rules), near.features)  # noqa: E731
    resolve.drop_duplicates(table, near, not args.no_dedup, sets_of, show_progress("近似去重"), running)
    names = [one.name for one in inputs if one.name not in resolve.OLD]
    held_out = resolve.hold_out(table, names, args.eval_size or 0, int(plain.threshold), args.seed)
    log_counts(table, names)
    kept = {name: len(table.alive(name)) for name in names}
    if not any(kept.values()) and not args.append:
        raise UserError("没有一条记录通过：请看上面的丢弃原因，放宽相应的参数；没有写任何文件。")
    shares = mixture.shares_of(weights_of(inputs), args.hit_ratio)
    available = {name: kept[name] - len(held_out[name]) for name in names}
    allocated = mixture.allocate(available, args.total, shares, args.on_shortage, args.max_repeat)
    plan = Plan(names, shares, kept, available, allocated, held_out)
    info = build_info(args, table, plan, near)
    write(args, table, plan, rules, info, paths)
    log_mixture(info, paths)


def weights_of(inputs: list[Any]) -> dict[str, float]:
    """Of the sources beside HIT. Firefly counts, empty as it may be, unless other sources stand in for it."""
    others = {one.name: one.weight for one in inputs if one.kind == "any"}
    firefly = next(one for one in inputs if one.name == "firefly")
    return {"firefly": 1.0 if firefly.paths or not others else 0.0} | others


def log_counts(table: Any, names: list[str]) -> None:
    from sft_data.mixture import label as name_of
    from sft_data.quality import label

    for name in names:
        counts = table.counts(name)
        reasons = sorted(counts["dropped"].items(), key=lambda item: -item[1])
        dropped = "，".join(f"{label(reason)} {n}" for reason, n in reasons) or "无"
        log.info("%s：读入 %d 条，保留 %d 条；丢弃：%s", name_of(name), counts["read"], counts["kept"], dropped)
        for message in counts["bad_records"]:
            log.warning("已跳过：%s", message)


def build_info(args: argparse.Namespace, table: Any, plan: Any, near: Any) -> dict[str, Any]:
    from sft_data import mixture

    shares = mixture.delivered(plan.allocated)
    note = mixture.explain(plan.available, plan.allocated, args.total, plan.shares)
    limits = {"instruction": "ins", "input": "inp", "output": "out"}
    old = len(table.alive("out"))
    return {
        "sources": {f"{name}_kept": n for name, n in plan.kept.items()},
        "counts": {name: table.counts(name) for name in plan.names},
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
