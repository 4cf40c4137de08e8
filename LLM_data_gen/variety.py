"""Keep the questions of a run apart: find those that nearly repeat an earlier one, ask for others, say how alike they are.

    questions = Questions()
    questions.twin(text) -> str | None          the earlier question that ``text`` nearly repeats
    questions.add(text)
    questions.expect(texts)                     the questions of one answer, before asking about each: their signatures in half the time
    angles(topic, n, first=0, seed=0) -> list   who asks, in what situation, about which side of the topic: for the prompt
    similarity(questions, seed=0) -> dict       distinct_share, self_similarity and the most alike pairs: for the report

A question is compared in its normalised form, and with those of all topics.
"""

import math
import random
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from sft_data.quality import normalise
from sft_data.simhash import simhashes

NEAR_BITS = 14  # and
NEAR_JACCARD = 0.65  # chosen by the table in Questions
SAMPLE_ABOVE, SAMPLE = 2000, 250  # similarity() looks at all of so many questions; of more, at a sample
_BLOCK = 64  # questions at a time
_STEP = 1 << 14  # signatures at a time: they and what is made of them stay in the cache
_ODD = 0x9E3779B97F4A7C15
_MARKS = 1024  # bits in which a question leaves a mark for each of its bigrams
_FEW = 4  # candidates that are looked at one by one
_WORST = 10

# The three numbers have no common factor, so that stepping through all three lists at once meets every combination before
# any comes again (the Chinese remainder theorem), and nine lines in a row share no role, situation or angle.
_ROLES, _SITUATIONS, _ANGLES = (
    words.split()
    for words in (
        "刚接触的新手 大一新生 备考的高中生 在读研究生 高年级本科生 快毕业的学生 学生家长 中学教师 大学教师 社区工作者 "
        "刚入职的新人 有经验的从业者 准备转行的人 部门负责人 小公司的老板 自由职业者 写报道的记者 做调研的人 自学的爱好者 "
        "退休的老人 刚到外地的人 在华留学生 替家人打听的人 社团志愿者 做科普的博主",
        "时间很紧 预算有限 试过但不顺利 听到几种说法 身边无人可问 手头资料不全 正在做计划 要讲给别人听 怕走弯路",
        "从哪里开始 具体的步骤 要做哪些准备 常见的错误 几种选择的比较 背后的原因 一个实际例子 时间怎样安排 花费与投入 "
        "风险与注意事项 怎样判断好坏 出了问题怎么办 容易混淆的概念 有哪些规定 长远的影响 怎样更进一步",
    )
)

_STEPS = [
    (len(items), [step for step in range(1, len(items)) if math.gcd(step, len(items)) == 1])
    for items in (_ROLES, _SITUATIONS, _ANGLES)
]


class Questions:
    """The questions of a run, in the order in which they came; 144 bytes each beside the text.

    Candidates are all earlier questions within NEAR_BITS of the SimHash that preparation uses; twins are those that have
    NEAR_JACCARD of their bigrams in common. There is no index: 14 bits are too many for blocks that must be equal, and
    numpy compares one question with 6,000 in 30 us, with 60,000 in 110 us.

    Share found of 600 edited or reworded questions, in %, first of 800 of a teacher, then of 15,459 of Firefly's form (law
    and medicine, many from one mould); and how many real ones are dropped as twins of others:

                                  1 edit     2 edits    3 edits   rewordings   dropped
        SimHash alone, 6 bits     80,  62    49, 38     31, 25    16, 39       0,  68
        SimHash alone, 8 bits     95,  83    75, 60     57, 44    38, 53       0, 147
        12 bits and Jaccard 0.65  100, 99    97, 90     93, 79    74, 77       0, 231
        14 bits and Jaccard 0.65  100, 100   100, 96    97, 87    88, 86       0, 272
        16 bits and Jaccard 0.65  100, 100   100, 99    100, 92   93, 89       0, 290
        Jaccard 0.65, all pairs   100, 100   100, 100   100, 94   96, 92       0, 303

    Of 18 pairs read at 14 bits and 0.65 none was unrelated: most were one mould with a word or two changed (治疗方案 for
    症状), which is no variety either. SimHash alone at 6 bits also took two texts for one because both had rows of "?".
    """

    def __init__(self, questions: Iterable[str] = ()):
        self._texts: list[str] = []
        self._room(1024)
        self._expected: dict[str, tuple[np.uint64, list[int]]] = {}
        self._since: list[int] = []  # signatures added since candidates were looked for
        questions = list(questions)
        for start in range(0, len(questions), _BLOCK):
            self.expect(questions[start : start + _BLOCK])
            for text in questions[start : start + _BLOCK]:
                self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def expect(self, texts: Sequence[str]) -> None:
        """Make ready, in one go, what twin and add will need of ``texts``."""
        texts = list(dict.fromkeys(texts))
        padded = [text if len(text) > 1 else f"{text}\0\0" for text in map(normalise, texts)]
        signatures = simhashes(padded)
        close = self._candidates(signatures)
        self._expected = dict(zip(texts, zip(signatures.tolist(), close, strict=True), strict=True))

    def add(self, text: str) -> None:
        n = len(self)
        if n == len(self._signatures):
            self._room(2 * n)
        signature, _ = self._of(text)
        self._signatures[n], self._marked[n] = signature, 0
        self._since.append(signature)
        self._texts.append(text)

    def twin(self, text: str) -> str | None:
        """Return the earliest question that ``text`` nearly repeats, or None."""
        signature, close = self._of(text)
        new = [i for i, other in enumerate(self._since) if (signature ^ other).bit_count() <= NEAR_BITS]
        if new:
            close = [*close, *(len(self) - len(self._since) + i for i in new)]
        mine = _bigrams(text) if close else set()
        for i in self._possible(np.array(close), text) if len(close) > _FEW else close:
            if _jaccard(mine, _bigrams(self._texts[i])) >= NEAR_JACCARD:
                return self._texts[i]
        return None

    def _candidates(self, signatures: np.ndarray) -> list[list[int]]:
        """Of each signature: the questions so far that are within NEAR_BITS of it, in order."""
        self._since = []
        close = [[] for _ in signatures]
        for start in range(0, len(self), _STEP):
            some = self._signatures[start : min(start + _STEP, len(self))]
            differing = np.bitwise_count(signatures[:, None] ^ some)
            for place in np.flatnonzero(differing <= NEAR_BITS).tolist():
                close[place // len(some)].append(start + place % len(some))
        return close

    def _possible(self, close: np.ndarray, text: str) -> list[int]:
        """Those of the candidates that may be twins. Two share no more bigrams than marks, and those that found a mark taken;
        of many questions from one mould this leaves few to be looked at one by one.
        """
        for i in close[self._marked[close] == 0].tolist():
            self._marks[i], self._marked[i], self._sizes[i] = _marks(self._texts[i])
        marks, marked, size = _marks(text)
        shared = np.bitwise_count(self._marks[close] & marks).sum(axis=1, dtype=np.int32)
        shared += np.minimum(size - marked, self._sizes[close] - self._marked[close])
        return close[shared >= NEAR_JACCARD * (size + self._sizes[close] - shared)].tolist()

    def _of(self, text: str) -> tuple[int, list[int]]:
        """Its signature, and the candidates among the questions that were there when it was expected."""
        if text not in self._expected:
            self.expect([text])
        return self._expected[text]

    def _room(self, most: int) -> None:
        n = len(self)
        kinds = {"_signatures": np.uint64, "_marks": (np.uint64, _MARKS // 64), "_marked": np.int32, "_sizes": np.int32}
        for name, kind in kinds.items():
            column = np.empty(most, kind)
            column[:n] = getattr(self, name)[:n] if n else 0
            setattr(self, name, column)


def angles(topic: str, n: int, first: int = 0, seed: int = 0) -> list[str]:
    """Lines ``first`` to ``first + n`` of those of ``topic``, each a person and what he wants to know, in 30 characters.

    A topic has 3,600 of them in an order of its own; any nine in a row have no role, situation or angle in common.
    """
    rng = random.Random(f"{seed} {topic}")
    (role, by_role), (situation, by_situation), (angle, by_angle) = [
        (rng.randrange(size), rng.choice(steps)) for size, steps in _STEPS
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


def _marks(text: str) -> tuple[np.ndarray, int, int]:
    """A bit, of 1,024, for each bigram, (16,) uint64; how many bits that are, at least 1; how many bigrams."""
    bigrams, bits = _bigrams(text), np.zeros(_MARKS, bool)
    bits[[hash(bigram) * _ODD >> 54 & _MARKS - 1 for bigram in bigrams]] = True
    return np.packbits(bits).view(np.uint64), int(bits.sum()), len(bigrams)


def _jaccard(a: set, b: set) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
