"""The name of a file says its form; whatever the form, what is read again is what was written, and equal bytes."""

import gzip
import json
import os

import pyarrow.parquet as pq
import pytest

from sft_data import files
from sft_data.errors import UserError
from sft_data.files import copy_records, form_of, refuse_existing, write_lines
from sft_data.jsonl import dump_line, read_records

NAMES = ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "a.json.zst", "a.parquet"]
RECORDS = [
    {"conversation": [{"human": "问\n一", "assistant": "答\u2028一"}, {"human": "二", "assistant": "贰"}], "id": i}
    for i in range(30)
]


def write(path, records=RECORDS):
    with write_lines(path) as out:
        for record in records:
            out.write(dump_line(record))
    return path


def table(path):
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.json", ("json", "")),
        ("X.JSON.GZ", ("json", "gz")),
        ("x.jsonl.zst", ("jsonl", "zst")),
        ("x", ("jsonl", "")),
        ("x.txt.gz", ("jsonl", "gz")),
        ("gz", ("jsonl", "")),
        ("s3://bucket/x.parquet", ("parquet", "")),
    ],
)
def test_the_form_follows_the_name(name, form):
    assert form_of(name) == form


def test_a_packed_parquet_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="自带压缩"), write_lines(tmp_path / "x.parquet.gz"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "a.parquet"])
def test_json_forms_read_back_and_equal_lines_give_equal_bytes(tmp_path, name):
    path = write(tmp_path / name)
    assert [obj for _, obj in read_records(path)] == RECORDS
    assert write(tmp_path / f"again.{name}").read_bytes() == path.read_bytes()
    assert write(tmp_path / "sub" / name).read_bytes() == path.read_bytes()
    assert os.listdir(tmp_path / "sub") == [name]


def test_what_lies_on_disk(tmp_path):
    two = [{"a": 1}, {"a": 2}]
    assert write(tmp_path / "x.jsonl", two).read_bytes() == b'{"a":1}\n{"a":2}\n'
    assert write(tmp_path / "x.json", two).read_bytes() == b'[\n{"a":1},\n{"a":2}\n]\n'
    assert write(tmp_path / "none.json", []).read_bytes() == b"[]\n"
    packed = write(tmp_path / "x.jsonl.gz", two).read_bytes()
    assert gzip.decompress(packed) == b'{"a":1}\n{"a":2}\n'
    assert packed[4:8] == bytes(4)  # no time of writing


def test_parquet_keeps_nested_records_and_their_order_over_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_ROWS", 8)
    path = write(tmp_path / "x.parquet")
    assert table(path) == RECORDS
    meta = pq.ParquetFile(path).metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [8, 8, 8, 6]
    assert meta.row_group(0).column(0).compression == "ZSTD"
    assert write(tmp_path / "again.parquet").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.parquet", "x.parquet"]


def test_parquet_unites_what_only_later_records_show(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_ROWS", 1)  # each record is a block of its own
    records = [
        {"q": "一", "history": [], "n": 1, "meta": {"file": "a"}, "s": None},
        {"q": "二", "history": [["问", "答"]], "n": 2.5, "meta": {"file": "b", "line": 3}, "s": "系统"},
        {"late": [{"role": "user"}]},
        {"late": [{"role": "user", "content": "x"}], "q": "三"},
    ]
    assert table(write(tmp_path / "x.parquet", records)) == [
        {"q": "一", "history": [], "n": 1.0, "meta": {"file": "a", "line": None}, "s": None, "late": None},
        {"q": "二", "history": [["问", "答"]], "n": 2.5, "meta": {"file": "b", "line": 3}, "s": "系统", "late": None},
        {"q": None, "history": None, "n": None, "meta": None, "s": None, "late": [{"role": "user", "content": None}]},
        {"q": "三", "history": None, "n": None, "meta": None, "s": None, "late": [{"role": "user", "content": "x"}]},
    ]


def test_a_block_ends_at_its_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BYTES", 100)
    assert pq.ParquetFile(write(tmp_path / "x.parquet", [{"a": "x" * 150}] * 3)).metadata.num_row_groups == 3


@pytest.mark.parametrize("rows", [1, 8192])
@pytest.mark.parametrize("values", [(1, "x"), (True, 2), ({"a": 1}, "x"), (["x"], [["x"]]), (1, 2**63), ({}, {})])
def test_a_column_of_two_kinds_is_named_and_nothing_is_left(tmp_path, monkeypatch, rows, values):
    monkeypatch.setattr(files, "_ROWS", rows)
    (tmp_path / "x.parquet").write_text("old")
    with pytest.raises(UserError, match=r"x\.parquet：字段 odd .*\.jsonl。"):
        write(tmp_path / "x.parquet", [{"fine": 1, "odd": value} for value in values])
    assert os.listdir(tmp_path) == ["x.parquet"]
    assert (tmp_path / "x.parquet").read_text() == "old"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, name, error):
    (tmp_path / name).write_text("old")

    def fail():
        with write_lines(tmp_path / name) as out:
            out.write(dump_line(RECORDS[0]))
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "old"


def test_an_existing_file_is_named_with_the_ways_out(tmp_path):
    there, new = tmp_path / "there.jsonl", tmp_path / "new.jsonl"
    there.touch()
    refuse_existing([new, tmp_path], overwrite=False)  # a directory has its own sentence when it is written to
    refuse_existing([new, there], overwrite=True)
    with pytest.raises(UserError, match=r"there\.jsonl：文件已经存在.*--overwrite") as caught:
        refuse_existing([new, there], overwrite=False)
    assert "--append" not in str(caught.value)
    with pytest.raises(UserError, match="--overwrite.*--append"):
        refuse_existing([there], overwrite=False, has_append=True)


def test_an_existing_file_at_an_address_is_seen():
    fsspec = pytest.importorskip("fsspec")
    refuse_existing(["memory://files-test/x.jsonl"], overwrite=False)
    with fsspec.open("memory://files-test/x.jsonl", "wb") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match=r"memory://files-test/x\.jsonl：文件已经存在"):
        refuse_existing(["memory://files-test/x.jsonl"], overwrite=False)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet"])
def test_an_address_is_written_like_a_file(name):
    pytest.importorskip("fsspec")
    path = f"memory://files-test/{name}"
    assert [obj for _, obj in read_records(write(path))] == RECORDS


@pytest.mark.parametrize("packed", [b"", b"gz"])
def test_lines_are_copied_byte_for_byte(tmp_path, packed):
    lines = b'{"a" : 1}\r\n\n{"a":2.0}'
    path = tmp_path / "old.jsonl"
    path.write_bytes(gzip.compress(lines) if packed else b"\xef\xbb\xbf" + lines)
    with write_lines(tmp_path / "new.jsonl") as out:
        copy_records(path, out)
        out.write(b'{"a":3}\n')
    assert (tmp_path / "new.jsonl").read_bytes() == lines + b'\n{"a":3}\n'


@pytest.mark.parametrize("name", ["old.json", "old.jsonl"])  # the second bears the wrong name
def test_an_array_is_copied_as_records(tmp_path, name):
    (tmp_path / name).write_text(json.dumps([{"a": 1}, {"a": 2}], indent=2))
    with write_lines(tmp_path / f"new.{name}") as out:
        copy_records(tmp_path / name, out)
        out.write(b'{"a":3}\n')
    assert [obj for _, obj in read_records(tmp_path / f"new.{name}")] == [{"a": 1}, {"a": 2}, {"a": 3}]
