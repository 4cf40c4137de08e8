"""Near-duplicates by each method and feature on a corpus of make_corpus.py: recall, false drops and CPU time.

python benchmarks/bench_near_dup.py --corpus corpus.json

On real records, of which nobody knows how many are near to another:

python benchmarks/make_corpus.py --as-is --firefly-json FILE --out real.json
python benchmarks/bench_near_dup.py --corpus real.json --show 30

Recall: of the planted near-duplicates that pass the gates, as their originals do, the share that is dropped. A false
drop: a record that nobody planted and whose twin, the record that it is dropped for, is another text: to make one of the
other takes edits of more than --different of the longer one's characters (Levenshtein). Exact duplicates are out before.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHOICES = [("simhash", "bigram", k) for k in (3, 5, 6, 7, 8, 9)]
CHOICES += [("simhash", "word", k) for k in (3, 6, 8)] + [("simhash", "legacy", k) for k in (3, 6, 8)]
CHOICES += [("minhash", features, s) for features in ("bigram", "word", "legacy") for s in (0.7, 0.8, 0.85)]
BATCH = 1024


class Corpus(NamedTuple):
    """Records that are left after the gates and exact duplicates.

    bodies, texts: the normalised text, as UTF-8 and as str
    edits: (n,) int8, characters changed in a planted near-duplicate; 0: nobody planted it; -1: it is no part of recall
    originals: (n,) int64, row of what it was planted from; its own row otherwise
    """

    bodies: list[bytes]
    texts: list[str]
    edits: Any
    originals: Any


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="近似去重各种方法与特征：召回、误删与 CPU 时间（Markdown 表）。")
    parser.add_argument("--corpus", metavar="FILE", help="make_corpus.py 造的数据，旁边有 .truth.json（默认现造一份）")
    parser.add_argument("--records", type=int, default=30_000, help="现造时的条数（默认 %(default)s）")
    parser.add_argument(
        "--no-filter", action="store_true", help="不过滤（默认先过 prep_sft_firefly_hit.py 默认的关卡）"
    )
    parser.add_argument("--different", type=float, default=0.3, help="改动超过这个比例就算另一篇（默认 %(default)s）")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="另外列出推荐做法删掉的、并非掺入的 N 对，供人看"
    )
    return parser


def load(path: str, no_filter: bool) -> Corpus:
    import numpy as np

    from benchmarks.make_corpus import truth_path
    from sft_data.chatml import firefly_record
    from sft_data.jsonl import read_records
    from sft_data.quality import Gates
    from sft_data.reasons import KEEP
    from sft_data.screen import columns, screen

    truth = json.loads(Path(truth_path(path)).read_text(encoding="utf-8"))
    edits, originals = np.zeros(truth["records"], np.int8), np.arange(truth["records"])
    for index, kind, original in truth["planted"]:
        edits[index] = int(kind[4:]) if kind.startswith("near") else -1
        originals[index] = index if original is None else original
    records, codes, bodies = [firefly_record(record)[0] for _, record in read_records(path)], [], []
    for start in range(0, len(records), BATCH):
        screened = screen(columns(records[start : start + BATCH]), None if no_filter else Gates())
        codes += screened.codes.tolist()
        bodies += [screened.memory[first:last].tobytes() for first, last in screened.spans.tolist()]
    passed = np.array(codes) == KEEP
    edits[(edits > 0) & ~passed[originals]] = -1
    first = {body: i for i, body in reversed(list(enumerate(bodies)))}
    left = [i for i in np.flatnonzero(passed).tolist() if first[bodies[i]] == i]
    row_of = {body: row for row, body in enumerate(bodies[i] for i in left)}
    rows = np.array([row_of[bodies[originals[i]]] if edits[i] > 0 else row for row, i in enumerate(left)])
    return Corpus([bodies[i] for i in left], [bodies[i].decode() for i in left], edits[left], rows)


def twins_of(corpus: Corpus, method: str, features: str, threshold: float) -> tuple[Any, float, float]:
    """Return Twins, and CPU seconds for the marks and for the join."""
    from sft_data.dedup import find_twins
    from sft_data.features import feature_sets, laid_out, marks
    from sft_data.minhash import find_twins_minhash

    memory, spans = laid_out(corpus.bodies)
    started = time.process_time()
    found = marks(memory, spans, method, features)
    middle = time.process_time()
    if method == "simhash":
        twins = find_twins(found, threshold)
    else:
        twins = find_twins_minhash(found, lambda rows: feature_sets(memory, spans[rows], features), threshold)
    return twins, middle - started, time.process_time() - middle


def levenshtein(a: str, b: str) -> int:
    """Edits that turn one into the other; the columns of the table as bits (Myers 1999, in the form of Hyyrö 2003)."""
    where: dict[str, int] = {}
    for i, char in enumerate(a):
        where[char] = where.get(char, 0) | 1 << i
    full, last, distance = (1 << len(a)) - 1, 1 << len(a) >> 1, len(a)
    up, down = full, 0
    for char in b:
        x = where.get(char, 0) | down
        diagonal = ((x & up) + up ^ up) | x
        right, left = down | ~(up | diagonal), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(right | diagonal)) & full, right & diagonal & full
    return distance if a else len(b)


def other_text(a: str, b: str, different: float) -> bool:
    return levenshtein(a, b) > different * max(len(a), len(b))


def rate(corpus: Corpus, twins: Any, different: float) -> tuple[list[float], float, float]:
    """Return recall at 1, 2 and 3 edits; false drops and other drops per 10,000 records that nobody planted."""
    recall = [float((twins.twin[corpus.edits == edits] >= 0).mean()) for edits in (1, 2, 3)]
    rows = (twins.twin >= 0) & (corpus.edits == 0)
    false = [other_text(corpus.texts[i], corpus.texts[twins.twin[i]], different) for i in rows.nonzero()[0].tolist()]
    share = 1e4 / int((corpus.edits == 0).sum())
    return recall, sum(false) * share, (len(false) - sum(false)) * share


def show(corpus: Corpus, twins: Any, count: int) -> None:
    """Pairs spread evenly over all the drops of records that nobody planted."""
    rows = [i for i, twin in enumerate(twins.twin.tolist()) if twin >= 0 and corpus.edits[i] == 0]
    for i in rows[:: max(1, len(rows) // count)][:count]:
        a, b = corpus.texts[twins.twin[i]], corpus.texts[i]
        print(
            f"\n相距 {twins.distance[i]:.3g}，改动 {levenshtein(a, b)} / {max(len(a), len(b))} 字\n  留 {a}\n  删 {b}"
        )


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from benchmarks.make_corpus import main as make_corpus
    from sft_data.dedup import RECOMMENDED_FEATURES, RECOMMENDED_METHOD
    from sft_data.minhash import RECOMMENDED_JACCARD

    with contextlib.ExitStack() as stack:
        path = args.corpus
        if not path:
            path = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "corpus.json")
            make_corpus(["--out", path, "--records", str(args.records)])
        corpus = load(path, args.no_filter)
    planted = [int((corpus.edits == edits).sum()) for edits in (1, 2, 3)]
    print(
        f"{Path(path).name}：{'不过滤' if args.no_filter else '过滤后'}留下 {len(corpus.texts)} 条（已去掉完全重复），"
        f"平均 {sum(map(len, corpus.texts)) / len(corpus.texts):.0f} 字；掺入改 1、2、3 字的各 {planted} 条\n"
    )
    print(
        "| 方法 | 特征 | 阈值 | 召回：改 1 字 | 2 字 | 3 字 | 误删/万条 | 其余未掺入的/万条 | 签名 微秒/条 | 比对 微秒/条 |"
    )
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for method, features, threshold in CHOICES:
        twins_of(corpus._replace(bodies=2 * corpus.bodies[:9], texts=2 * corpus.texts[:9]), method, features, threshold)
        twins, marking, joining = twins_of(corpus, method, features, threshold)
        recall, false, other = rate(corpus, twins, args.different)
        figures = [f"{x:.3f}" for x in recall] + [f"{x:.1f}" for x in (false, other)]
        figures += [f"{seconds / len(corpus.texts) * 1e6:.1f}" for seconds in (marking, joining)]
        print("| " + " | ".join([method, features, f"{threshold:g}", *figures]) + " |", flush=True)
    if args.show:
        show(corpus, twins_of(corpus, RECOMMENDED_METHOD, RECOMMENDED_FEATURES, RECOMMENDED_JACCARD)[0], args.show)
    return 0


if __name__ == "__main__":
    sys.exit(main())
