"""Keep the questions of a run apart: find those that nearly repeat an earlier one, ask for others, say how alike they are.

questions = Questions()
questions.twin(text) -> str | None          the earlier question that ``text`` nearly repeats
questions.add(text)
questions.expect(texts)                     the questions of one answer, before asking about each: a third of the time
angles(topic, n, first=0, seed=0) -> list   who asks, in what situation, about which side of the topic: for the prompt
similarity(questions, seed=0) -> dict       distinct_share, self_similarity and the most alike pairs: for the report
"""

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sft_data.quality import normalise
from sft_data.simhash import simhashes

NEAR_BITS = 14
NEAR_JACCARD = 0.65
SAMPLE_ABOVE, SAMPLE = 2000, 250  # similarity() looks at all of so many questions; of more, at a sample
_BLOCK = 64  # questions at a time
_STEP = 1 << 14  # signatures at a time: they and what is made of them stay in the cache
_WORST = 10

# The three numbers have no common factor, so that stepping through all three lists at once meets every combination before
# any comes again (the Chinese remainder theorem), and the first lines of a topic share no role, situation or angle.
_ROLES = (
    "刚接触的新手 大一新生 备考的高中生 在读研究生 高年级本科生 快毕业的学生 学生家长 中学教师 大学教师 社区工作者 "
    "刚入职的新人 有经验的从业者 准备转行的人 部门负责人 小公司的老板 自由职业者 写报道的记者 做调研的人 自学的爱好者 "
    "退休的老人 刚到外地的人 在华留学生 替家人打听的人 社团志愿者 做科普的博主"
).split()
_SITUATIONS = (
    "时间很紧 预算有限 试过但不顺利 听到几种说法 身边无人可问 手头资料不全 正在做计划 要讲给别人听 怕走弯路".split()
)
_ANGLES = (
    "从哪里开始 具体的步骤 要做哪些准备 常见的错误 几种选择的比较 背后的原因 一个实际例子 时间怎样安排 花费与投入 "
    "风险与注意事项 怎样判断好坏 出了问题怎么办 容易混淆的概念 有哪些规定 长远的影响 怎样更进一步"
).split()


class Questions:
    """The questions of a run, in the order in which they came; 8 bytes each beside the text.

    Candidates are all earlier questions within NEAR_BITS of the SimHash that preparation uses; twins are those that have
    NEAR_JACCARD of their bigrams in common. There is no index: numpy compares with 6,000 earlier ones in 10 us, and
    14 bits are too many for blocks that must be equal. Measured on 800 questions of a teacher and 15,459 of Firefly's form:

        share found of                  1 edit    2 edits   3 edits   rewordings   pairs of different questions dropped
        SimHash alone, 6 bits           77, 64 %  51, 39 %  26, 24 %  15, 39 %     0; 5 of 71
        12 bits, then Jaccard 0.65      100, 99   97, 90    93, 79    74, 77
        14 bits, then Jaccard 0.65      100, 100  100, 96   97, 87    88, 86       0 of 800; 272 of 15,459
        Jaccard 0.65 of all pairs       100, 100  100, 100  100, 94   97, 91
    """

    def __init__(self, questions: Iterable[str] = ()):
        self._texts: list[str] = []
        self._signatures = np.empty(1024, np.uint64)
        self._differing, self._bits = np.empty(_STEP, np.uint64), np.empty(_STEP, np.uint8)  # room to work in
        self._expected: dict[str, int] = {}
        questions = list(questions)
        for start in range(0, len(questions), _BLOCK):
            self.expect(questions[start : start + _BLOCK])
            for text in questions[start : start + _BLOCK]:
                self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def expect(self, texts: Sequence[str]) -> None:
        """Make the signatures of ``texts``, about which twin and add will be asked next, in one go."""
        self._expected = dict(zip(texts, simhashes([normalise(text) for text in texts]).tolist(), strict=True))

    def add(self, text: str) -> None:
        n = len(self)
        if n == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty(n, np.uint64)])
        self._signatures[n] = self._sign(text)
        self._texts.append(text)

    def twin(self, text: str) -> str | None:
        """Return the earliest question that ``text`` nearly repeats, or None."""
        mine = None
        for i in self._candidates(self._sign(text)):
            mine = mine or _bigrams(text)
            if _jaccard(mine, _bigrams(self._texts[i])) >= NEAR_JACCARD:
                return self._texts[i]
        return None

    def _candidates(self, signature: int) -> Iterator[int]:
        signature = np.uint64(signature)
        for start in range(0, len(self), _STEP):
            size = min(_STEP, len(self) - start)
            differing, bits = self._differing[:size], self._bits[:size]
            np.bitwise_xor(self._signatures[start : start + size], signature, out=differing)
            np.bitwise_count(differing, out=bits)
            yield from ((bits <= NEAR_BITS).nonzero()[0] + start).tolist()

    def _sign(self, text: str) -> int:
        if text not in self._expected:
            self.expect([text])
        return self._expected[text]


def angles(topic: str, n: int, first: int = 0, seed: int = 0) -> list[str]:
    """Lines ``first`` to ``first + n`` of those of ``topic``, each a person and what he wants to know, in 30 characters.

    A topic has 3,600 of them in an order of its own; any nine in a row have no role, situation or angle in common.
    """
    rng = random.Random(f"{seed} {topic}")
    (role, by_role), (situation, by_situation), (angle, by_angle) = [
        (rng.randrange(size), rng.choice([step for step in range(1, size) if math.gcd(step, size) == 1]))
        for size in map(len, (_ROLES, _SITUATIONS, _ANGLES))
    ]
    return [
        f"提问者是{_ROLES[(role + i * by_role) % len(_ROLES)]}，"
        f"{_SITUATIONS[(situation + i * by_situation) % len(_SITUATIONS)]}，"
        f"角度是{_ANGLES[(angle + i * by_angle) % len(_ANGLES)]}"
        for i in range(first, first + n)
    ]


def similarity(questions: Sequence[str], seed: int = 0) -> dict:
    """How varied ``questions`` are, by the true Jaccard similarity of bigrams, of all of them or of a sample to all.

    distinct_share: share of the questions looked at that have no twin among those before them
    self_similarity: mean over the questions looked at of the highest similarity to any other question
    looked_at: how many these are; of more than SAMPLE_ABOVE a seeded sample
    worst_pairs: the most alike, [{"similarity", "question", "earlier"}]
    """
    n = len(questions)
    some = range(n) if n <= SAMPLE_ABOVE else sorted(random.Random(seed).sample(range(n), SAMPLE))
    met = [each for start in range(0, len(some), SAMPLE) for each in _closest(questions, some[start : start + SAMPLE])]
    pairs = {(max(i, j), min(i, j)): score for i, j, score, _ in met if score}
    worst = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:_WORST]
    return {
        "questions": n,
        "looked_at": len(met),
        "distinct_share": round(1 - sum(repeats for *_, repeats in met) / len(met), 4) if met else 1.0,
        "self_similarity": round(sum(score for _, _, score, _ in met) / len(met), 4) if met else 0.0,
        "worst_pairs": [
            {"similarity": round(pairs[i, j], 3), "question": questions[i], "earlier": questions[j]} for i, j in worst
        ],
    }


def _closest(questions: Sequence[str], some: Sequence[int]) -> list[tuple[int, int, float, bool]]:
    """Of each question in ``some``: (its index, that of the one most like it, their similarity, has an earlier twin)."""
    sets = [_bigrams(questions[i]) for i in some]
    row = {bigram: i for i, bigram in enumerate(dict.fromkeys(b for s in sets for b in s), 1)}
    has = np.zeros((len(row) + 1, len(some)), np.uint8)  # has[row of a bigram, k]: question some[k] has it; row 0: none
    for k, bigrams in enumerate(sets):
        has[[row[b] for b in bigrams], k] = 1
    sizes, some, each = np.array([len(s) for s in sets], np.float32), np.array(some), np.arange(len(some))
    best, other, repeats = np.zeros(len(some)), np.zeros(len(some), np.int64), np.zeros(len(some), bool)
    for start in range(0, len(questions), _BLOCK):
        sets = [_bigrams(text) for text in questions[start : start + _BLOCK]]
        rows = [[0, *filter(None, map(row.get, s))] for s in sets]
        shared = np.array([np.add.reduce(has[r], axis=0, dtype=np.uint16) for r in rows], np.float32)
        score = shared / (np.array([[len(s)] for s in sets], np.float32) + sizes - shared)  # (block, some)
        index = np.arange(start, start + len(sets))[:, None]
        score[index == some] = 0
        repeats |= ((score >= NEAR_JACCARD) & (index < some)).any(axis=0)
        top = score.argmax(axis=0)
        better = score[top, each] > best
        best[better], other[better] = score[top, each][better], start + top[better]
    return list(zip(some.tolist(), other.tolist(), best.tolist(), repeats.tolist(), strict=True))


def _bigrams(text: str) -> set:
    """The pairs of neighbouring characters of the normalised text, as numbers: two code points in 64 bits each."""
    text = normalise(text)
    data, n = text.encode("utf-32-le", "surrogatepass"), 4 * len(text)
    pairs = set(array("Q", data[: n - n % 8]))
    pairs.update(array("Q", data[4 : n - (n - 4) % 8]))
    return pairs or {text}


def _jaccard(a: set, b: set) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
