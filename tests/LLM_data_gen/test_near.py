"""Near twins are found and others are not, one by one and many together."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from LLM_data_gen import near
from LLM_data_gen.near import NEAR_JACCARD, Questions
from sft_data.quality import normalise
from sft_data.simhash import simhash

ROOT = Path(__file__).resolve().parents[2]
ASKED = "我是计算机学院大二学生，想参加学校的创新项目，但不知道怎样选题。请问应该先联系导师还是先定方向？"
TWINS = [
    ASKED,
    "我是计算机学院大三学生，想参加学校的创新项目，但不知道怎样选题。请问应该先联系导师还是先定方向？",
    "我是计算机学院大二学生,想参加学校的创新项目,但不知道如何选题。请问应该先联系导师,还是先定方向?",
    "您好，我是计算机学院大二学生，想参加学校的创新项目，可不知道怎样选题。请问应该先联系导师还是先定方向？",
    "  我是计算机学院大二学生，想参加学校的\u200b创新项目，但不知道怎样选题。\n请问应该先联系导师还是先定方向？",
]
OTHERS = [
    "我是计算机学院大二学生，下学期想去国外交换。请问申请材料要从什么时候开始准备，成绩单怎么办理？",
    "我是计算机学院大二学生，想参加学校的篮球队，但不知道怎样报名。请问训练时间和上课冲突时怎么办？",
    "我刚租了一间朝北的屋子，冬天墙角总是发霉，请问除了开窗通风还有哪些花钱不多的办法？",
    "",
    "问",
]


@pytest.mark.parametrize("text", TWINS)
def test_a_question_edited_or_lightly_reworded_is_a_twin(text):
    questions = Questions([*OTHERS, ASKED])
    assert questions.twin(text) == ASKED  # as it was given, not as it was compared


@pytest.mark.parametrize("text", OTHERS)
def test_another_question_is_none_even_from_the_same_mould(text):
    questions = Questions([ASKED])
    assert questions.twin(text) is None
    questions.add(text)
    assert questions.twin(text) == text
    assert questions.twin(ASKED) == ASKED


def test_the_first_of_several_twins_is_named():
    questions = Questions()
    assert questions.twin(ASKED) is None
    for text in reversed(TWINS[:3]):
        questions.add(text)
    assert questions.twin(ASKED) == TWINS[2]
    assert len(questions) == 3


def made_up(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(rng.randrange(30, 80)))


def test_one_edit_is_found_among_many_wherever_the_first_one_lies(monkeypatch):
    """More questions than there is room for at first and than are compared at a time."""
    monkeypatch.setattr(near, "_PAIRS", 500)
    rng = random.Random(1)
    texts = [made_up(rng) for _ in range(2600)]
    questions = Questions(texts)
    for i in (0, 499, 500, 1023, 1024, 2047, 2048, 2599):
        half = len(texts[i]) // 2
        assert questions.twin(texts[i][:half] + "改" + texts[i][half + 1 :]) == texts[i]
    assert all(questions.twin(made_up(rng)) is None for _ in range(200))


def from_a_mould(rng: random.Random, n: int) -> list[str]:
    mould, texts = made_up(random.Random(3)), []
    for _ in range(n):
        letters = list(mould)
        for at in rng.sample(range(len(letters)), rng.randrange(2, 20)):
            letters[at] = chr(rng.randrange(0x4E00, 0x5E00))
        texts.append("".join(letters))
    return texts


def slow_twin(text: str, earlier: list[str]) -> str | None:
    def signature(text):
        return simhash(normalise(text).ljust(2, "\0"))

    close = (t for t in earlier if (signature(t) ^ signature(text)).bit_count() <= near.NEAR_BITS)
    sets = ((t, near.bigrams_of(t), near.bigrams_of(text)) for t in close)
    return next((t for t, a, b in sets if len(a & b) / len(a | b) >= NEAR_JACCARD), None)


def test_questions_from_one_mould_are_told_apart_as_if_each_were_looked_at():
    """Some twins, many near that: what the marks leave out must be none."""
    texts = from_a_mould(random.Random(2), 160)
    questions, plain = Questions(), []
    for text in texts:
        assert questions.twin(text) == slow_twin(text, plain)
        questions.add(text)
        plain.append(text)
    assert 0 < sum(questions.twin(text) != text for text in texts) < len(texts)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_expected_the_answer_is_the_slow_one(seed, monkeypatch):
    """Batches with copies in them, of which only some are added, in any order, and questions that nobody announced."""
    monkeypatch.setattr(near, "_PAIRS", 300)
    rng = random.Random(seed)
    texts = [*from_a_mould(rng, 60), *(made_up(rng) for _ in range(20)), *TWINS, "长" * 300, "长" * 299 + "短", ""]
    questions, plain, found = Questions(texts[:5]), texts[:5], 0
    for _ in range(12):
        batch = rng.choices(texts, k=rng.randrange(1, 30))
        questions.expect(batch)
        for text in rng.sample(batch, len(batch)) + rng.choices(texts, k=rng.randrange(3)):
            assert questions.twin(text) == slow_twin(text, plain)
            if slow_twin(text, plain) is None or rng.random() < 0.2:
                questions.add(text)
                plain.append(text)
            else:
                found += 1
    assert len(questions) == len(plain)
    assert found > 50


def test_what_is_expected_changes_nothing_but_the_time():
    texts = [*TWINS, *OTHERS]
    plain, told = Questions(), Questions()
    told.expect(texts)
    for text in texts:
        assert plain.twin(text) == told.twin(text)
        plain.add(text)
        told.add(text)


def test_no_compiler_is_loaded():
    code = "import sys, LLM_data_gen.near, LLM_data_gen.variety; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
