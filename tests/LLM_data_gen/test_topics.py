from pathlib import Path

import pytest

from LLM_data_gen.topics import read_topics
from sft_data.errors import UserError

BUNDLED = Path(__file__).resolve().parents[2] / "LLM_data_gen" / "topics.txt"


def test_comments_blanks_and_repeats(tmp_path):
    path, said = tmp_path / "t.txt", []
    path.write_text("\ufeff# 分类\n\n 甲  乙 \n丙\r\n甲 乙\n", encoding="utf-8")
    assert read_topics(path, said.append) == ["甲 乙", "丙"]
    assert len(said) == 1
    assert "1 行" in said[0]


@pytest.mark.parametrize("content", [b"", b"# only\n\n", "主题".encode("gbk"), b"\0\1\2\n", ("长" * 301).encode()])
def test_what_is_no_topics_file_is_refused(tmp_path, content):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="t.txt"):
        read_topics(path, print)


@pytest.mark.parametrize("topic", ["甲<|endofutterance|>乙", "甲\x1b[31m乙", "甲\0乙"])
def test_what_would_make_every_sample_be_refused_is_said_before_it_is_paid_for(tmp_path, topic):
    path = tmp_path / "t.txt"
    path.write_text(f"丙\n{topic}\n", encoding="utf-8")
    with pytest.raises(UserError, match="t.txt:2：.*格式标记"):
        read_topics(path, print)


def test_odd_blanks_neither_end_a_line_nor_hide_a_repeat(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(
        "甲\u2028乙\x0b丙\r\n\ufeff甲 乙 丙\r\n".encode()
    )  # two files put together have a mark in the middle
    assert read_topics(path, lambda message: None) == ["甲 乙 丙"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt"):
        read_topics(tmp_path / "nowhere.txt", print)


def test_bundled_topics():
    said = []
    topics = read_topics(BUNDLED, said.append)
    assert len(topics) >= 120
    assert not said
    assert sum(line.startswith("# ") for line in BUNDLED.read_text(encoding="utf-8").splitlines()) >= 8
