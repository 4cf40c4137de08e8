"""Near-duplicates by other tools beside ours: recall, false drops, CPU time and peak memory on one corpus.

python benchmarks/bench_others.py --corpus corpus.json --datatrove VENV/bin/python --text-dedup ... --data-juicer ...

Every contender is a process of its own, in the Python that is given for it, and gets the same JSONL of {"id", "text"}:
the records that bench_near_dup.py is measured on. A tool may keep any one of a family, so a planted near-duplicate is
found when it or its original is dropped, and a record is dropped falsely when neither it nor a copy of it was planted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINIMUM, BITS = 0.85, 6


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="与别的近似去重工具并列：召回、误删、CPU 时间与内存（Markdown 表）。")
    parser.add_argument("--corpus", required=True, metavar="FILE", help="make_corpus.py 造的数据，旁边有 .truth.json")
    parser.add_argument(
        "--no-filter", action="store_true", help="不过滤（默认先过 prep_sft_firefly_hit.py 默认的关卡）"
    )
    parser.add_argument(
        "--timeout", type=float, default=480, metavar="SEC", help="每个工具至多这么久（默认 %(default)s 秒）"
    )
    for name, choices in CONTENDERS.items():
        if name != "ours":
            text = f"装有 {name} 的 Python（{len(choices)} 种做法；默认不测）"
            parser.add_argument(f"--{name}", metavar="PYTHON", help=text)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "IN", "OUT"), help=argparse.SUPPRESS)
    return parser


def ours(method: str, features: str, threshold: float, texts: Path, folder: Path) -> list[int]:
    """Return the ids that are kept, as every contender does."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import orjson

    from sft_data.dedup import find_twins
    from sft_data.features import feature_sets, laid_out, marks
    from sft_data.minhash import find_twins_minhash

    memory, spans = laid_out([orjson.loads(line)["text"].encode() for line in texts.open("rb")])
    found = marks(memory, spans, method, features)
    if method == "simhash":
        twins = find_twins(found, threshold)
    else:
        twins = find_twins_minhash(found, lambda rows: feature_sets(memory, spans[rows], features), threshold)
    return np.flatnonzero(twins.twin < 0).tolist()


def datatrove(language: str, n_grams: int, texts: Path, folder: Path) -> list[int]:
    """Its four steps; MinHash of words, 14 bands of 8, no verification."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=n_grams)
    sigs, buckets, clusters, out = (str(folder / name) for name in ("sigs", "buckets", "clusters", "out"))
    read = JsonlReader(str(texts.parent), glob_pattern=texts.name)
    signature = MinhashDedupSignature(output_folder=sigs, config=config, language=language)
    steps = [
        ([read, signature], 1),
        ([MinhashDedupBuckets(input_folder=sigs, output_folder=buckets, config=config, only_dedup_in_index=False)], 14),
        ([MinhashDedupCluster(input_folder=buckets, output_folder=clusters, config=config)], 1),
        ([read, MinhashDedupFilter(input_folder=clusters), JsonlWriter(out, "kept.jsonl", compression=None)], 1),
    ]
    for number, (step, tasks) in enumerate(steps):
        LocalPipelineExecutor(step, tasks=tasks, logging_dir=str(folder / f"log{number}")).run()
    return [int(json.loads(line)["id"]) for line in open(Path(out) / "kept.jsonl", encoding="utf-8")]


def text_dedup(module: str, options: str, texts: Path, folder: Path) -> list[int]:
    """Its command line; features are n-grams of what stands between \\W, which in Chinese are clauses."""
    from datasets import load_from_disk

    command = f"--path json --data_files {texts} --split train --column text --idx_column id --output {folder / 'out'}"
    command += f" --cache_dir {folder} --batch_size 1000 --num_proc 1 {options}"
    subprocess.run([sys.executable, "-m", f"text_dedup.{module}", *command.split()], check=True)
    return [int(row["id"]) for row in load_from_disk(str(folder / "out"))]


def data_juicer(module: str, name: str, options: dict, texts: Path, folder: Path) -> list[int]:
    """One operator on a data set in memory; features are n-grams of characters."""
    import importlib

    from data_juicer.core.data import NestedDataset

    operator = getattr(importlib.import_module(f"data_juicer.ops.deduplicator.{module}"), name)
    rows = [json.loads(line) for line in texts.open(encoding="utf-8")]
    kept = operator(tokenization="character", **options).run(NestedDataset.from_list(rows))
    return [int(row["id"]) for row in kept]


MIN_HASH = ("document_minhash_deduplicator", "DocumentMinhashDeduplicator")
SIM_HASH = ("document_simhash_deduplicator", "DocumentSimhashDeduplicator")
CONTENDERS = {
    "ours": {
        f"MinHash bigram, Jaccard ≥ {MINIMUM}": lambda *io: ours("minhash", "bigram", MINIMUM, *io),
        f"SimHash bigram, {BITS} bits": lambda *io: ours("simhash", "bigram", BITS, *io),
    },
    "datatrove": {
        "MinHash, jieba words, 5-grams (defaults)": lambda *io: datatrove("zho", 5, *io),
        "MinHash, jieba words, 1-grams": lambda *io: datatrove("zho", 1, *io),
    },
    "text-dedup": {
        "MinHash, 5-grams (defaults)": lambda *io: text_dedup("minhash", "", *io),
        "MinHash, 1-grams, 0.7": lambda *io: text_dedup("minhash", "--ngram 1 --min_length 1 --threshold 0.7", *io),
        "SimHash, 3 bits (defaults)": lambda *io: text_dedup("simhash", "", *io),
    },
    "data-juicer": {
        "MinHash, 5 characters, 0.7 (defaults)": lambda *io: data_juicer(*MIN_HASH, {}, *io),
        f"MinHash, 2 characters, {MINIMUM}": lambda *io: data_juicer(
            *MIN_HASH, {"window_size": 2, "jaccard_threshold": MINIMUM}, *io
        ),
        f"SimHash, 2 characters, {BITS} bits": lambda *io: data_juicer(
            *SIM_HASH, {"window_size": 2, "hamming_distance": BITS, "num_blocks": BITS + 2}, *io
        ),
    },
}


def run_child(python: str, name: str, texts: Path, limit: float) -> tuple[list[int] | None, float, float, str]:
    """Return the ids kept, CPU seconds of it and its children, its own peak MB, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "kept.json", Path(folder) / "log.txt"
        command = [python, __file__, "--corpus", "-", "--child", name, str(texts), str(out)]
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, cwd=folder)
            deadline = time.monotonic() + limit
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    process.kill()
                time.sleep(0.1)
            process.returncode = os.waitstatus_to_exitcode(status)
        kept, peak = json.loads(out.read_text()) if out.exists() else (None, 0.0)
        error = "" if kept is not None else " ".join(log.read_text(errors="replace").split()[-30:])
        return kept, usage.ru_utime + usage.ru_stime, peak, error or f"exit {process.returncode}"


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.child:
        name, texts, out = args.child
        contender, _, choice = name.partition(": ")
        folder = Path(out).parent
        kept = CONTENDERS[contender][choice](Path(texts), folder)
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        Path(out).write_text(json.dumps([kept, peak / 1024]))
        return 0
    sys.path.insert(0, str(ROOT))
    from benchmarks.bench_near_dup import load

    corpus = load(args.corpus, args.no_filter)
    total = len(corpus.texts)
    planted = {row for row in range(total) if corpus.edits[row] > 0}
    involved = planted | {int(corpus.originals[row]) for row in planted}
    nobody = int((corpus.edits == 0).sum())
    print(f"{Path(args.corpus).name}：{total} 条，掺入近似重复 {len(planted)} 条\n")
    print("| 工具 | 做法 | 召回：改 1 字 | 2 字 | 3 字 | 误删/万条 | CPU 秒 | 峰值 MB |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.jsonl"
        with texts.open("w", encoding="utf-8") as file:
            for row, text in enumerate(corpus.texts):
                file.write(json.dumps({"id": str(row), "text": text}, ensure_ascii=False) + "\n")
        for contender, choices in CONTENDERS.items():
            python = sys.executable if contender == "ours" else getattr(args, contender.replace("-", "_"))
            for choice in choices if python else ():
                ids, cpu, peak, error = run_child(python, f"{contender}: {choice}", texts, args.timeout)
                if ids is None:
                    print(f"| {contender} | {choice} | 没有跑成：{error} |", flush=True)
                    continue
                kept = set(ids)
                found = {row for row in planted if not {row, int(corpus.originals[row])} <= kept}
                recall = [
                    sum(corpus.edits[row] == edits for row in found) / int((corpus.edits == edits).sum())
                    for edits in (1, 2, 3)
                ]
                false = sum(row not in kept and row not in involved and corpus.edits[row] == 0 for row in range(total))
                figures = [*(f"{x:.3f}" for x in recall), f"{false / nobody * 1e4:.1f}", f"{cpu:.1f}", f"{peak:.0f}"]
                print("| " + " | ".join([contender, choice, *figures]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
