"""The lines that compiled code writes are, to the byte, what orjson and the plain functions make of the record."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_data.chatml import carried, render_chatml
from sft_data.jsonl import dump_line
from sft_data.lines import chatml_lines
from sft_data.scan import read_fields

EXTRA = b',"source":"firefly"'


def lines_of(raws: list[bytes]) -> list[bytes]:
    ends = np.cumsum([len(raw) for raw in raws])
    return chatml_lines(b"".join(raws), ends - [len(raw) for raw in raws], ends, EXTRA)


def plainly(raw: bytes) -> bytes:
    obj = orjson.loads(raw)
    return dump_line({"text": render_chatml(read_fields(obj, "any")[1]), "source": "firefly"} | carried(obj))


# No zero-width characters: emit.py leaves records with one to the plain functions.
TEXT = st.text('中文aéb字\u3000\x85\u2029😀"\\/\n\t\r\b\f\x01\x1f\x7f n', max_size=9)
SAID = TEXT.filter(str.strip)  # what is empty does not pass the gates
RECORD = st.fixed_dictionaries(
    {"instruction": SAID, "output": SAID},
    optional={"input": TEXT, "kind": TEXT, "category": TEXT, "topic": TEXT, "id": TEXT, "history": TEXT},
) | st.fixed_dictionaries({"input": SAID, "target": SAID}, optional={"kind": TEXT, "topic": TEXT})


def escaped(text: str, how: list[int]) -> str:
    """A JSON string with some characters written as other encoders may: as \\u, or with \\/."""
    out = []
    for i, char in enumerate(text):
        if how[i % len(how)] == 1 and ord(char) < 0x10000:
            out.append(f"\\u{ord(char):04x}")
        elif how[i % len(how)] == 2 and char == "/":
            out.append("\\/")
        else:
            out.append(json.dumps(char, ensure_ascii=False)[1:-1])
    return f'"{"".join(out)}"'


@settings(max_examples=400, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=5), st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_they_equal_the_plain_ones_however_they_are_escaped(records, how):
    raws = [
        ("{" + ", ".join(f'"{key}" : {escaped(text, how)}' for key, text in record.items()) + "}").encode()
        for record in records
    ]
    for raw, record, line in zip(raws, records, lines_of(raws), strict=True):
        assert bool(line) == ("history" not in record)  # a turn of its own; all others are ordinary
        assert not line or line == plainly(raw)


def test_a_line_worked_by_hand():
    raw = r'{"kind": "问答", "instruction": "\n问\u4e00", "input": " \t", "output": "a\/b\\\n", "topic": ""}'.encode()
    assert lines_of([raw]) == [
        (
            r'{"text":"<|beginofutterance|>用户\n问一\n<|endofutterance|>\n<|beginofutterance|>智能助手\na/b\\\n'
            r'<|endofutterance|>","source":"firefly","category":"问答"}'
        ).encode()
        + b"\n"
    ]


@pytest.mark.parametrize(
    "raw", [b"{}", b"[]", b'{"output": "a"}', b'{"instruction": "a", "output": 1}', b'{"input": "a"}']
)
def test_what_is_not_ordinary_has_no_line(raw):
    assert lines_of([raw]) == [b""]


def test_none_at_all():
    assert chatml_lines(b"", np.zeros(0, np.int64), np.zeros(0, np.int64), EXTRA) == []
