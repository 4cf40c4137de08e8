"""Screening by the batch against the plain functions one by one: CPU time a record, and in how many records they differ.

python benchmarks/bench_screen.py --firefly-json data/raw/firefly/firefly_no_belle.json --max-records 100000
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sft_data.chatml import firefly_record
from sft_data.jsonl import read_records
from sft_data.quality import Gates, normalise
from sft_data.reasons import REASONS
from sft_data.screen import columns, judge, screen

BATCH = 8192


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="成批过滤与逐条过滤：每条的 CPU 时间，以及结论不同的条数。")
    parser.add_argument("--firefly-json", required=True, metavar="FILE", help="开源数据")
    parser.add_argument("--max-records", type=int, default=20_000, help="只取前这么多条（默认 20000）")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    records = itertools.islice(read_records(args.firefly_json), args.max_records)
    batch = [firefly_record(record)[0] for _, record in records]
    gates = Gates(drop_pii=True)
    screen(columns(batch[:1]), gates)  # compiles, or loads what was compiled
    started, fast = time.process_time(), []
    for start in range(0, len(batch), BATCH):
        found = screen(columns(batch[start : start + BATCH]), gates)
        bodies = (found.memory[first:last].tobytes() for first, last in found.spans.tolist())
        fast += zip((REASONS[code] or None for code in found.codes), bodies, strict=True)
    middle, differ = time.process_time(), 0
    for fields, (reason, body) in zip(batch, fast, strict=True):
        plain = [(name, normalise(text)) for name, text in fields]
        expected = judge(plain, gates)
        same = reason == expected and (expected or body == " ".join(text for _, text in plain).encode())
        differ += not same
    ended = time.process_time()
    kept = sum(reason is None for reason, _ in fast)
    print(f"{len(batch)} 条，保留 {kept}，结论不同 {differ}")
    print(
        f"成批 {(middle - started) / len(batch) * 1e6:.1f} 微秒/条，逐条 {(ended - middle) / len(batch) * 1e6:.1f} 微秒/条"
    )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
