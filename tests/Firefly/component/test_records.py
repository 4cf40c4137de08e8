"""Reading JSONL in chunks: whole lines, known places, little held, and a sentence for every bad line."""

import json

import pytest

from Firefly.component.errors import UserError
from Firefly.component.records import (
    conversation_at,
    first_conversations,
    list_files,
    parse_line,
    read_chunks,
    records_of,
)

from ..conftest import conversation


def write(path, lines: list[str], bom: str = "") -> str:
    path.write_text(bom + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_chunks_are_whole_lines_in_order_and_only_as_large_as_asked(tmp_path):
    a = write(tmp_path / "a.jsonl", [json.dumps({"text": "x" * n}) for n in range(50)])
    b = write(tmp_path / "b.jsonl", ["{}"])
    chunks = list(read_chunks([a, b], 200))
    assert b"".join(line for c in chunks if c.path == a for line in c.lines) == (tmp_path / "a.jsonl").read_bytes()
    assert len(chunks) > 5
    assert all(sum(map(len, c.lines)) < 200 + 70 for c in chunks)  # the longest line has 62 bytes
    assert [c.first_line for c in chunks][:2] == [1, 1 + len(chunks[0].lines)]
    assert (chunks[-1].file, chunks[-1].first_line, chunks[-1].offset) == (1, 1, 0)


def test_reading_is_lazy(tmp_path):
    """The first chunk comes before the second file is opened, or even exists."""
    a = write(tmp_path / "a.jsonl", ["{}"])
    chunks = read_chunks([a, str(tmp_path / "later.jsonl")])
    assert next(chunks).lines == [b"{}\n"]
    with pytest.raises(FileNotFoundError):
        next(chunks)


def test_each_record_is_found_again_at_its_place(tmp_path):
    lines = [json.dumps(conversation(i, turns=1 + i % 3), ensure_ascii=False) for i in range(9)]
    path = write(tmp_path / "a.jsonl", [lines[0], "", "  ", *lines[1:]], bom="\ufeff")
    found = [item for chunk in read_chunks([path], 300) for item in records_of(chunk)]
    assert [place.line for place, _, _ in found] == [1, *range(4, 12)]
    assert [record["conversation_id"] for _, _, record in found] == list(range(9))
    assert found[1][1] == f"{path}:4"
    firsts = first_conversations(path, 5)
    assert [conversation_at(path, place.line, place.offset) for place, _, _ in found][:5] == firsts
    assert firsts[0][0] == {"role": "system", "content": "你是校园助手。"}
    assert len(first_conversations(path, 100)) == 9


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": ', ["f:7", "JSON", "删去"]),
        (b'[{"a": 1},', ["f:7", "JSON 数组"]),
        (b"[1]", ["f:7", "list"]),
        ("{'问'}".encode("gbk"), ["f:7", "UTF-8"]),
    ],
)
def test_bad_lines(line, words):
    with pytest.raises(UserError) as error:
        parse_line(line, "f:7")
    assert all(word in str(error.value) for word in words)


def test_files_of_a_folder_come_sorted_and_an_empty_one_is_answered(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    assert list_files(tmp_path, True) == [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl")]
    assert list_files(tmp_path / "b.jsonl", True) == [str(tmp_path / "b.jsonl")]
    assert list_files(tmp_path) == [str(tmp_path)]  # opening it then says that it is a folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="text"):
        list_files(tmp_path / "empty", True)
