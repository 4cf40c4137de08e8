"""The doctor on any bytes: its verdict is prep's, every record is accounted for, and it always comes to an end."""

import gzip
import json
import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_data.chatml import BEGIN, END
from sft_data.doctor import check
from sft_data.errors import UserError
from sft_data.jsonl import dump_line, read_records
from sft_data.scan import read_fields
from sft_data.sources import Input

GOOD = {
    "instruction": "请介绍一下哈尔滨工业大学的校训。",
    "input": "",
    "output": "规格严格，功夫到家，是学校代代相传的校训。",
}
CHATML = f"{BEGIN}用户\n好\n{END}\n{BEGIN}智能助手\n好\n{END}"


def lines(*records: dict) -> bytes:
    return b"".join(map(dump_line, records))


def diagnose(folder, content: bytes, kind: str = "firefly") -> list[dict]:
    path, out = folder / "in.json", folder / "check.jsonl"
    path.write_bytes(content)
    assert check([Input("a", kind, [str(path)])], str(out), False) == 0
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def prep_reads(path, kind: str) -> bool:
    """Whether the functions of prep read the whole file. An error that is no UserError is one all the same."""
    try:
        for _, record in read_records(path):
            read_fields(record, kind)
    except (UserError, ValueError, AttributeError, RecursionError):
        return False
    return True


RECORDS = [
    GOOD,
    {**GOOD, "output": "<br>因此，"},
    {"text": CHATML},
    {"messages": [{"role": "user", "content": "好"}, {"role": "assistant", "content": "x"}]},
    {"instruction": [1], "output": None, "history": {}},
]
WHOLE = st.lists(st.sampled_from(RECORDS), min_size=1, max_size=5)
SHAPES = {
    "jsonl": lambda records: lines(*records),
    "array": lambda records: json.dumps(records, ensure_ascii=False).encode(),
    "pretty": lambda records: json.dumps(records, ensure_ascii=False, indent=1).encode(),
    "root": lambda records: json.dumps({"data": records}).encode(),
    "gbk": lambda records: lines(*records).decode().encode("gb18030"),
    "gzip": lambda records: gzip.compress(lines(*records), mtime=0),
    "multiline": lambda records: "\n".join(json.dumps(r, ensure_ascii=False, indent=1) for r in records).encode(),
}
INSERTS = (
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe5",
    b"[[" * 900,
    b"NaN",
)


@st.composite
def mutated(draw) -> bytes:
    data = SHAPES[draw(st.sampled_from(sorted(SHAPES)))](draw(WHOLE))
    for _ in range(draw(st.integers(0, 4))):
        at, how = draw(st.integers(0, len(data))), draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
        if how == "flip":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif how == "insert":
            data = data[:at] + draw(st.sampled_from(INSERTS) | st.binary(max_size=8)) + data[at:]
        else:
            data = data[:at] if how == "cut" else data[:at] + data[at + draw(st.integers(1, 40)) :]
    return data


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=400, deadline=5000, suppress_health_check=QUIET, derandomize=True)
@given(
    content=mutated() | st.binary(max_size=300) | st.binary(max_size=60).map(lambda b: b"PAR1" + b),
    kind=st.sampled_from(["hit", "firefly", "any"]),
)
def test_on_any_bytes_the_doctor_says_error_exactly_where_prep_would_stop(tmp_path, capsys, content, kind):
    found = diagnose(tmp_path, content, kind)
    errors = [f for f in found if f["severity"] == "error"]
    assert bool(errors) != prep_reads(tmp_path / "in.json", kind), (found, content)
    # Every record is fine or has a finding; in text without structure, two may lie on one line.
    read, fine = map(int, re.search(r"、(\d+) 条记录，(\d+) 条没有问题", capsys.readouterr().err).groups())
    of_records = [f["line"] for f in found if f["line"] and f["severity"] != "note"]
    assert len(set(of_records)) <= read - fine <= len(of_records)
    assert len(set(of_records)) == read - fine or "multiline_records" in {f["kind"] for f in found}


@settings(max_examples=60, deadline=5000, suppress_health_check=QUIET, derandomize=True)
@given(
    spoiled=st.dictionaries(
        st.integers(2, 11), st.sampled_from([b"{", b"x", b"\xff", b"[]", b"{}", b'{"a":']), max_size=8
    )
)
def test_in_jsonl_every_bad_line_has_its_finding(tmp_path, spoiled):
    content = [spoiled.get(i, dump_line({**GOOD, "input": str(i)}).strip()) + b"\n" for i in range(1, 12)]
    found = diagnose(tmp_path, b"".join(content))
    assert {f["line"] for f in found if f["severity"] == "error"} == set(spoiled)


@pytest.mark.parametrize(
    "content",
    [
        b'[1 {"a":}' + b'{"a":' * 30_000,
        b"[}" + b'[{"a' * 30_000,
        b"[}" + b'{"' * 30_000,
        b"{\n" + b'"' * 300_001,
        b"[" * 300_000,
        b'{"data": [{"text": "' + b"x" * 2_000_000,
        b"[{}" + random.Random(1).randbytes(300_000),
    ],
    ids=["nested", "open strings", "quotes", "quotes in lines", "brackets", "endless string", "random in array"],
)
def test_spiteful_text_takes_no_longer_than_other_text(tmp_path, content):
    """Each has a place in every few bytes where an object might begin; to try each to the end would take minutes."""
    started = time.monotonic()
    assert any(f["severity"] == "error" for f in diagnose(tmp_path, content))
    assert time.monotonic() - started < 30
