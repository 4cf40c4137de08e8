"""Samples recovered from damaged answers, by kind of damage: json.loads, json-repair on the whole, and read_answer.

python benchmarks/bench_salvage.py
python benchmarks/bench_salvage.py --samples my_hit.jsonl --answers-per-class 30

Each answer is an array of six samples taken from --samples and damaged in one way (damage_answers.py), so what it should
give is known. Right: equal to what was meant, to the character. Altered: three texts that would pass for a sample and are
none of those meant, such as one cut short or merged with its neighbour. A reader may return samples at any depth.

LLM_data_gen/salvage.py was written against these same kinds of damage: the figures say that they are covered, not how
often a teacher's next answer is.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PER_ANSWER = 6
SHORTEST_OUTPUT = 20  # characters; with less in its output nothing passes for a sample


class Score(NamedTuple):
    right: int = 0
    altered: int = 0
    seconds: float = 0.0

    def plus(self, other: "Score") -> "Score":
        return Score(*(a + b for a, b in zip(self, other, strict=True)))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="从各种坏 JSON 回答里救回多少样本（Markdown 表）。")
    default = ROOT / "data/samples/hit_samples.jsonl"
    parser.add_argument(
        "--samples", metavar="FILE", default=str(default), help="HIT ChatML JSONL（默认 data/samples 里的样例）"
    )
    parser.add_argument(
        "--answers-per-class", type=int, default=10, metavar="N", help="每类损坏造几份回答（默认 %(default)s）"
    )
    parser.add_argument("--seed", type=int, default=5, help="随机种子（默认 %(default)s）")
    return parser


def load(path: str) -> list[dict[str, str]]:
    """Return the single-turn records that have a system text, as samples whose every field has a Chinese word."""
    from benchmarks.damage_answers import FIELDS, WORD
    from sft_data.chatml import parse_chatml
    from sft_data.errors import UserError
    from sft_data.jsonl import read_records

    samples = []
    for _, record in read_records(path):
        try:
            contents = [message["content"] for message in parse_chatml(record["text"])]
        except (KeyError, TypeError, AttributeError, ValueError):
            continue
        if len(contents) == len(FIELDS) and all(map(WORD.search, contents)):
            samples.append(dict(zip(FIELDS, contents, strict=True)))
    if len(samples) < PER_ANSWER:
        raise UserError(f"{path}：带「系统」的单轮 HIT ChatML 只有 {len(samples)} 条，至少要 {PER_ANSWER} 条")
    return samples


def by_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return []


def by_json_repair(text: str) -> Any:
    import json_repair

    try:
        return json_repair.loads(text)
    except (ValueError, RecursionError, IndexError):
        return []


def by_read_answer(text: str) -> Any:
    from LLM_data_gen.answers import read_answer

    return read_answer(text).samples


READERS: list[Callable[[str], Any]] = [by_json, by_json_repair, by_read_answer]


def samples_within(value: Any) -> list[dict[str, Any]]:
    """Return the objects with an instruction in a parsed value, however deep they lie."""
    if isinstance(value, dict) and "instruction" in value:
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [sample for item in inner for sample in samples_within(item)]


def passes(sample: dict[str, Any]) -> bool:
    from benchmarks.damage_answers import FIELDS

    return all(isinstance(sample.get(field), str) for field in FIELDS) and len(sample["output"]) >= SHORTEST_OUTPUT


def measure(reader: Callable[[str], Any], text: str, expected: list[dict[str, str]]) -> Score:
    started = time.process_time()
    value = reader(text)
    seconds = time.process_time() - started
    found = samples_within(value)
    right = sum(sample in found for sample in expected)
    return Score(right, sum(passes(sample) and sample not in expected for sample in found), seconds)


def row(name: str, scores: list[Score], samples: int, notes: list[str]) -> str:
    plain, *others = [f"{score.right / max(1, samples):.1%}" for score in scores]
    cells = [plain] + [f"{right}（{score.altered}）" for right, score in zip(others, scores[1:], strict=True)]
    return f"| {name} | " + " | ".join(cell + note for cell, note in zip(cells, notes, strict=True)) + " |"


def run(args: argparse.Namespace) -> None:
    from benchmarks.damage_answers import DAMAGES
    from sft_data.errors import UserError

    if args.answers_per_class < 1:
        raise UserError("--answers-per-class 至少是 1")
    samples = load(args.samples)
    print(
        f"{Path(args.samples).name}：{len(samples)} 条样本；每类 {args.answers_per_class} 份回答，各 {PER_ANSWER} 条\n"
    )
    print("| 损坏 | json.loads | json_repair 对（改坏） | 本项目 对（改坏） |\n| --- | --: | --: | --: |")
    for reader in READERS:
        reader('[{"instruction": "先把模块都载入"，}]')
    totals, answers, expected_total = [Score()] * len(READERS), 0, 0
    for name, damage in DAMAGES.items():
        rng = random.Random(f"{args.seed} {name}")  # of its own: a new kind changes no other
        scores, expected = [Score()] * len(READERS), 0
        for _ in range(args.answers_per_class):
            damaged = damage(rng.sample(samples, PER_ANSWER), rng, rng.choice([None, 2]))
            measured = [measure(reader, *damaged) for reader in READERS]
            scores = [score.plus(one) for score, one in zip(scores, measured, strict=True)]
            expected += len(damaged.samples)
        print(row(name, scores, expected, [""] * len(READERS)), flush=True)
        totals = [total.plus(score) for total, score in zip(totals, scores, strict=True)]
        answers, expected_total = answers + args.answers_per_class, expected_total + expected
    notes = [f"，{total.seconds / answers * 1e3:.2f} 毫秒/份" for total in totals]
    print(row(f"全部 {answers} 份，{expected_total} 条", totals, expected_total, notes))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from sft_data.errors import exit_cleanly

    return exit_cleanly(lambda _: run(args))(argv)


if __name__ == "__main__":
    sys.exit(main())
