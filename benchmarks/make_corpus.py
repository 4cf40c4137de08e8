"""A Firefly-like corpus of any size with planted duplicates, personal data, advertisements and English, and the truth.

python benchmarks/make_corpus.py --out corpus.json --records 1000000 --firefly-json data/raw/firefly/firefly_no_belle.json

Each record takes the lengths of a real one and fills its fields with clauses of others, so the lengths and the share
that passes the gates stay those of the real file, and no two are near-duplicates (tests/benchmarks/test_make_corpus.py).
``--as-is`` plants into the real records instead, each used once.

Beside corpus.json lies corpus.truth.json: {"seed", "source", "as_is", "shares", "planted": [[index, kind, index of the
original or null], ...], "records"}. Kinds: exact; near1, near2, near3: that many characters inserted, deleted or
replaced; phone, email, id_card, bank_card; spam; english. Originals come earlier. About 45 s a million records.
"""

import argparse
import bisect
import itertools
import json
import os
import random
import re
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Fields = list[str]  # instruction, input, output
NAMES = ("instruction", "input", "output")
SHARES = {"exact": 0.02, "near1": 0.01, "near2": 0.01, "near3": 0.01}
SHARES |= {"phone": 0.0025, "email": 0.0025, "id_card": 0.0025, "bank_card": 0.0025, "spam": 0.01, "english": 0.02}
REMEMBERED = 50_000  # records, drawn evenly from all so far, that a duplicate may be planted of
CLAUSE = re.compile(r"[^，。！？；：、,.!?;:\n]+[，。！？；：、,.!?;:\n]*")
CJK = re.compile("[\u4e00-\u9fff]")
SPAM = ("加我微信领取资料。", "限时抢购，全场包邮。", "扫描下方二维码了解详情。", "关注我们的公众号获取更多内容。")
ENGLISH = (
    "The {} {} gives {} an {}",
    "Our {} compares {} with {}",
    "{} makes {} hard to {}",
    "{}, before {}, {} and {}",
)
SYLLABLES = [
    a + b + c for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ee") for c in ("", "n", "st", "r")
]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="造一份仿 Firefly 的数据：掺入重复、近似重复、个人信息、广告与英文，并写出答案。"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="输出；名字以 .jsonl 结尾则每行一条，否则为 JSON 数组"
    )
    parser.add_argument("--records", type=int, default=1_000_000, help="总条数，含掺入的（默认 %(default)s）")
    parser.add_argument(
        "--firefly-json",
        metavar="FILE",
        default=str(ROOT / "data/samples/general_samples.json"),
        help="真实数据，取其句子与长短（默认 data/samples/general_samples.json）",
    )
    parser.add_argument(
        "--as-is", action="store_true", help="不重组句子：真实数据每条用一次，再掺入；可配合 --records 截断"
    )
    parser.add_argument("--seed", type=int, default=42, help="随机种子（默认 %(default)s）")
    return parser


class Writer:
    """Draws clauses and the lengths that they are to fill."""

    def __init__(self, real: list[Fields], rng: random.Random):
        """Texts with little Chinese lend clauses to one another only, whatever their field: they are few."""
        self.rng = rng
        pools: dict[int, list[str]] = {}
        self.shapes: list[list[tuple[list[str], int]]] = []
        for fields in real:
            which = [i if 2 * len(CJK.findall(text)) > len(text) else -1 for i, text in enumerate(fields)]
            for i, text in zip(which, fields, strict=True):
                pools.setdefault(i, []).extend(CLAUSE.findall(text) or [text])
            self.shapes.append([(pools[i], len(text)) for i, text in zip(which, fields, strict=True)])
        self.characters = CJK.findall("".join(text for fields in real[:5000] for text in fields))

    def record(self) -> Fields:
        draw = self.rng.random
        return [self._fill(pool, length, draw) for pool, length in self.shapes[int(draw() * len(self.shapes))]]

    def _fill(self, pool: list[str], length: int, draw: Callable[[], float]) -> str:
        parts, n = [], len(pool)
        left = length
        while left > 0:
            parts.append(clause := pool[int(draw() * n)])
            left -= len(clause)
        return "".join(parts)[:length]

    def english(self) -> Fields:
        """Made-up words, of syllables of its own, tell one record from another."""
        syllables = self.rng.sample(SYLLABLES, 12)
        words = ["".join(self.rng.choices(syllables, k=2)) for _ in range(40)]
        sentences = [self.rng.choice(ENGLISH).format(*words[i : i + 4]) + "." for i in range(0, 40, 4)]
        return [sentences[0], "", " ".join(sentences[1:])]

    def edited(self, fields: Fields, edits: int) -> Fields:
        """``edits`` characters of the Chinese inserted, deleted or replaced, each in a place of its own."""
        places = [(i, match.start()) for i, text in enumerate(fields) for match in CJK.finditer(text)]
        if len(places) < 2 * edits:
            return fields
        new = list(fields)
        for i, at in sorted(self.rng.sample(places, edits), reverse=True):  # from behind: places in front stay
            old, char, kind = new[i][at], self.rng.choice(self.characters), self.rng.randrange(3)
            new[i] = new[i][:at] + (("", char + old, char)[kind]) + new[i][at + 1 :]
        return new if new != fields else self.edited(fields, edits)


def phone(rng: random.Random) -> str:
    return f"联系电话1{rng.choice('3456789')}{rng.randrange(10**9):09d}。"


def email(rng: random.Random) -> str:
    return f"邮箱是{''.join(rng.choices(string.ascii_lowercase, k=7))}{rng.randrange(100)}@example.com。"


def id_card(rng: random.Random) -> str:
    """GB 11643: the check digit is ISO 7064 MOD 11-2."""
    digits = f"{rng.randrange(11, 66)}0{rng.randrange(1, 10)}0{rng.randrange(1, 10)}"
    digits += (
        f"{rng.randrange(1950, 2010)}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}{rng.randrange(1000):03d}"
    )
    return f"身份证号{digits}{'10X98765432'[sum(2 ** (17 - i) * int(d) for i, d in enumerate(digits)) % 11]}。"


def bank_card(rng: random.Random) -> str:
    """ISO/IEC 7812: the last digit makes the Luhn sum a multiple of ten."""
    digits = f"62{rng.randrange(10**16):016d}"
    doubled = [int(d) * (2 - i % 2) for i, d in enumerate(reversed(digits))]
    return f"银行卡号{digits}{-sum(d - 9 * (d > 9) for d in doubled) % 10}。"


PII: dict[str, Callable[[random.Random], str]] = {
    "phone": phone,
    "email": email,
    "id_card": id_card,
    "bank_card": bank_card,
}


def corpus(real: list[Fields], total: int, seed: int, as_is: bool) -> Iterator[tuple[Fields, str | None, int | None]]:
    """Yield (fields, what was planted, index of its original): always the same for the same arguments."""
    rng = random.Random(seed)
    writer, plain = Writer(real, rng), iter(real) if as_is else None
    kinds, steps = [*SHARES, None], list(itertools.accumulate(SHARES.values()))
    remembered: list[tuple[int, Fields]] = []
    seen = 0
    for index in range(total):
        kind = kinds[bisect.bisect(steps, rng.random())]
        if kind and (kind == "exact" or kind.startswith("near")) and remembered:
            original, fields = rng.choice(remembered)
            yield (fields if kind == "exact" else writer.edited(fields, int(kind[4:]))), kind, original
            continue
        if kind == "english":
            yield writer.english(), kind, None
            continue
        fields = next(plain, None) if plain else writer.record()
        if fields is None:
            return
        if kind in PII or kind == "spam":
            addition = PII[kind](rng) if kind in PII else rng.choice(SPAM)
            yield [fields[0], fields[1], fields[2][: -len(addition)] + addition], kind, None
            continue
        seen += 1
        if len(remembered) < REMEMBERED:
            remembered.append((index, fields))
        elif (place := int(rng.random() * seen)) < REMEMBERED:
            remembered[place] = (index, fields)
        yield fields, None, None


def truth_path(out: str) -> str:
    return os.path.splitext(out)[0] + ".truth.json"


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    import orjson
    from tqdm import tqdm

    from sft_data.chatml import firefly_fields
    from sft_data.jsonl import read_records

    real = [list(firefly_fields(record)) for _, record in read_records(args.firefly_json)]
    lines, count = args.out.endswith(".jsonl"), 0
    head = {"seed": args.seed, "source": os.path.basename(args.firefly_json), "as_is": args.as_is, "shares": SHARES}
    made = corpus(real, args.records, args.seed, args.as_is)
    with open(args.out, "wb") as out, open(truth_path(args.out), "w", encoding="utf-8") as truth:
        truth.write(json.dumps(head)[:-1] + ', "planted": [')
        comma = ""
        for count, (fields, kind, original) in enumerate(tqdm(made, total=args.records, unit="条", disable=None), 1):
            before = b"" if lines else b"[\n" if count == 1 else b",\n"
            out.write(before + orjson.dumps(dict(zip(NAMES, fields, strict=True))) + (b"\n" if lines else b""))
            if kind:
                truth.write(f"{comma}\n" + json.dumps([count - 1, kind, original]))
                comma = ","
        out.write(b"" if lines else b"\n]\n")
        truth.write(f'],\n"records": {count}}}\n')
    print(f"{count} 条，{os.path.getsize(args.out) / 1e6:.0f} MB：{args.out}，答案在 {truth_path(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
