"""What the flags of prep_sft_firefly_hit.py mean: refused where they mean nothing, and turned into what the steps take.

check_args(args) -> None                    UserError before an hour of work
build_gates / near_of / inputs_of / weights_of / outputs_of (args) -> Gates, Near, list of Input, weights, paths
"""

import argparse
import os
import re
from typing import Any

from .errors import UserError

_PACKINGS = (".gz", ".zst")


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
    from .quality import Gates

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
    from .dedup import RECOMMENDED_BITS, RECOMMENDED_FEATURES, RECOMMENDED_METHOD
    from .minhash import RECOMMENDED_JACCARD
    from .scan import Near

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
    from .sources import Input, expand, parse_source
    from .storage import file_exists

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
    stem, packing = os.path.splitext(out) if out.endswith(_PACKINGS) else (out, "")
    stem, own = os.path.splitext(stem)
    return f"{stem}{ending}{own + packing if suffix is None else suffix}"


def outputs_of(args: argparse.Namespace) -> dict[str, str]:
    """What will be written: {what: path}."""
    paths = {"out": args.out, "info": beside(args.out, "_dataset_info", ".json")}
    if args.eval_size is not None:
        paths["eval"] = beside(args.out, "_eval")
    return paths | {name: getattr(args, name) for name in ("dropped_out", "dups_out", "report") if getattr(args, name)}


def weights_of(inputs: list[Any]) -> dict[str, float]:
    """Of the sources beside HIT. Firefly counts, empty as it may be, unless other sources stand in for it."""
    others = {one.name: one.weight for one in inputs if one.kind == "any"}
    firefly = next(one for one in inputs if one.name == "firefly")
    return {"firefly": 1.0 if firefly.paths or not others else 0.0} | others
