"""split() finds the records that a parser finds, whatever the size of its blocks."""

import io
import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_data.blocks import local_text, split
from sft_data.jsonl import dump_line
from sft_data.storage import write_atomically

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text('a"\\中{}[],\n😀', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\', max_size=3), inner, max_size=3),
    max_leaves=8,
)


def raw_records(text: bytes, size: int) -> tuple[list[bytes], list[int]]:
    raws, numbers = [], []
    file = io.BufferedReader(io.BytesIO(text))
    for block in split(file, "f", size):
        for start, end, number in zip(block.starts, block.ends, block.numbers, strict=True):
            raws.append(block.data[start:end])
            assert text[block.base + start : block.base + end] == raws[-1]  # pass two reads it from there
            numbers.append(int(number))
    return raws, numbers


@settings(max_examples=150, deadline=None)
@given(
    st.lists(VALUES, max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"]),
)
def test_elements_of_an_array_are_those_of_the_parser(values, size, indent, before):
    text = before + json.dumps(values, ensure_ascii=False, indent=indent).encode()
    raws, numbers = raw_records(text, size)
    assert [orjson.loads(raw) for raw in raws] == orjson.loads(json.dumps(values))
    assert numbers == list(range(1, len(values) + 1))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dictionaries(st.just("a"), VALUES, min_size=1), min_size=1, max_size=6),
    st.integers(1, 40),
    st.booleans(),
)
def test_lines_are_those_of_the_file_and_blank_ones_count(values, size, newline):
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in values]
    text = b"\n\r\n".join(lines) + b"\n" * newline
    raws, numbers = raw_records(text, size)
    assert [orjson.loads(raw) for raw in raws] == [orjson.loads(line) for line in lines]
    assert numbers == list(range(1, 2 * len(lines), 2))


@pytest.mark.parametrize("pack", ["plain", "array", "gz", "zst", "parquet", "memory"])
def test_a_text_that_can_be_read_anywhere_in(tmp_path, pack):
    from sft_data.files import write_lines

    names = {"plain": "a.jsonl", "array": "a.json", "gz": "a.jsonl.gz", "zst": "a.json.zst", "parquet": "a.parquet"}
    path = "memory://blocks/a.jsonl" if pack == "memory" else str(tmp_path / names[pack])
    with write_lines(path) as out:
        for i in range(3):
            out.write(dump_line({"a": f"第{i}"}))
    text = local_text(path, tmp_path / "scratch", 7)
    assert text.is_array == (pack in ("array", "zst", "parquet"))
    assert (text.path == tmp_path / "scratch" / "7.json") == (pack not in ("plain", "array"))
    with open(text.path, "rb") as file:
        raws = [block.data[a:b] for block in split(file, path) for a, b in zip(block.starts, block.ends, strict=True)]
    assert [orjson.loads(raw)["a"] for raw in raws] == ["第0", "第1", "第2"]


def test_an_address_is_written_and_read_whole():
    from sft_data.jsonl import read_records
    from sft_data.storage import file_exists

    def fail():
        with write_atomically("memory://x/half.jsonl") as file:
            file.write(b"{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not file_exists("memory://x/half.jsonl")
    with write_atomically("memory://x/y.jsonl") as file:
        file.write(b'{"a": 1}\n')
    assert list(read_records("memory://x/y.jsonl")) == [("memory://x/y.jsonl:1", {"a": 1})]
