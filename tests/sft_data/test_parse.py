"""What parse() takes out of a record is what orjson and the plain functions take out of it; the rest it leaves to them."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_data.chatml import firefly_record
from sft_data.parse import parse
from sft_data.quality import tidy
from sft_data.scan import read_fields
from sft_data.screen import fields_at


def parsed(raws: list[bytes]) -> list[list[tuple[str, str]] | None]:
    ends = np.cumsum([len(raw) for raw in raws])
    ordinary, batch = parse(b"".join(raws), ends - [len(raw) for raw in raws], ends)
    fields = fields_at(batch, list(range(len(batch.counts))))
    return [next(fields) if one else None for one in ordinary]


def plainly(raw: bytes) -> list[tuple[str, str]] | None:
    """The fields by orjson and the plain functions, tidied; None for what can't be read."""
    try:
        return read_fields(orjson.loads(raw), "any")[0]
    except (ValueError, AttributeError):
        return None


def check(raws: list[bytes]) -> int:
    """Return how many were ordinary."""
    taken = parsed(raws)
    for raw, fields in zip(raws, taken, strict=True):
        if fields is not None:
            assert [(name, tidy(text)) for name, text in fields] == plainly(raw), raw
    return sum(fields is not None for fields in taken)


TEXT = st.text('中文aé字\u200b\ud7ff😀"\\/\n\t\r\b\f\x7f\u2028 ', max_size=8)
KEYS = [
    "instruction",
    "input",
    "output",
    "target",
    "kind",
    "category",
    "history",
    "system",
    "text",
    "messages",
    "id",
    "键",
]
VALUE = TEXT | st.none() | st.integers(-9, 99) | st.lists(TEXT, max_size=2) | st.dictionaries(TEXT, TEXT, max_size=1)
RECORD = st.fixed_dictionaries(
    {"instruction": TEXT, "output": TEXT}, optional=dict.fromkeys(sorted({*KEYS} - {"instruction", "output"}), VALUE)
) | st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=5)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(RECORD, min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([b"", b" \r\n"]),
)
def test_records_of_every_kind(records, ascii_only, indent, after):
    check([json.dumps(record, ensure_ascii=ascii_only, indent=indent).encode() + after for record in records])


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_bytes_that_were_damaged(data):
    record = {"instruction": data.draw(TEXT), "input": data.draw(TEXT), "output": '回答\u00e9😀\n"' + data.draw(TEXT)}
    raw = bytearray(json.dumps(record, ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "add"]))
        byte = data.draw(
            st.sampled_from(b'"\\{}:,u0dD\x00\x1f\x80\xbf\xc0\xc2\xe0\xed\xf0\xf4\xff \n') | st.integers(0, 255)
        )
        if how == "set":
            raw[at] = byte
        elif how == "add":
            raw.insert(at, byte)
        elif len(raw) > 1:
            del raw[at]
    check([bytes(raw)])


@pytest.mark.parametrize(
    "raw",
    [
        b'{"instruction":"a","output":"b"}',
        b'{"output":"b","input":"c","instruction":"a","kind":"k"}',
        b' { "instruction" : "a" , "input" : "" , "output" : "\\u4e2d\\n\\"\\\\\\/\\b\\f\\r\\t" } \r\n',
        b'{"kind":"k","input":"a","target":"b"}',
        b'{"instruction":"x","instruction":"a","output":"b"}',
    ],
)
def test_ordinary_records_are_taken(raw):
    assert check([raw]) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"{}", b"[]", b'"a"', b'{"instruction":"a"}', b'{"instruction":"a","output":"b",}', b'{"instruction":"a","output":"b"}}',
        b'{"instruction":"a","output":1}', b'{"instruction":"a","input":null,"output":"b"}', b'{"instruction":"a","output":"\\ud83d\\ude00"}',
        b'{"instruction":"a","output":"b","history":[]}', b'{"instruction":"a","output":"b","text":"c"}', b'{"instruction":"a","output":"b\\x"}',
        b'{"instruction":"a","output":"b\n"}', b'{"instruction":"a","output":"\xed\xa0\x80"}', b'{"instruction":"a","output":"\xc0\x80"}',
        b'{"instruction":"a","input":" \\t","output":"b"}', b'{"instruct\\u0069on":"a","output":"b"}', b'{"instruction":"a" "output":"b"}',
        b'{"instruction":"a","output":"\\u12', b'{"instruction":"a","output":"\xe4\xb8',
    ],
)  # fmt: skip
def test_all_others_are_left_to_the_plain_functions(raw):
    assert check([raw]) == 0


def test_a_record_that_is_passed_over_leaves_no_trace_in_the_next():
    good = {"instruction": "问", "input": "料", "output": "答"}
    raws = [
        json.dumps(good).encode(),
        b'{"instruction":"a","input":"\\t","output":"b"}',
        b'{"output":"b"}',
        json.dumps(good).encode(),
    ]
    expected = firefly_record(good)[0]
    assert parsed(raws) == [expected, None, None, expected]
