"""The reader is tried on every kind of file a user may hand it; each bad one must be named with its place and mend."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft_data.errors import UserError
from sft_data.jsonl import dump_line, mend_last_line, read_records
from sft_data.storage import write_atomically

zstd = pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")

ROOT = Path(__file__).resolve().parents[2]
RECORDS = [{"instruction": f"第{i}问", "input": "", "output": "答" * i} for i in range(5)]
LINES = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, ensure_ascii=False, indent=1).encode()


def read(tmp_path, content, name="data.json", on_bad=None):
    path = tmp_path / name
    path.write_bytes(content)
    return [obj for _, obj in read_records(path, on_bad)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("content", [LINES, ARRAY], ids=["lines", "array"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n \n"], ids=["", "bom", "bom-blank"])
def test_every_good_form_reads_alike_whatever_its_name(tmp_path, pack, content, bom):
    assert read(tmp_path, pack(bom + content), "any.name") == RECORDS


def test_places_count_blank_lines_and_array_elements(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n\n" + LINES.replace(b"\n", b"\r\n\r\n"))
    assert [where for where, _ in read_records(path)] == [f"{path}:{n}" for n in (3, 5, 7, 9, 11)]
    path.write_bytes(b" " * 999 + b"\n" + LINES)
    assert [where for where, _ in read_records(path)] == [f"{path}:{n}" for n in (2, 3, 4, 5, 6)]
    path.write_bytes(ARRAY)
    assert [where for where, _ in read_records(path)] == [f"{path} 第 {n} 条" for n in (1, 2, 3, 4, 5)]


def test_an_empty_array_has_no_records_and_a_last_line_needs_no_newline(tmp_path):
    assert read(tmp_path, b"[]") == []
    assert read(tmp_path, LINES.rstrip()) == RECORDS


def test_numbers_stay_plain_in_an_array(tmp_path):
    assert read(tmp_path, b'[{"a": 1.5, "b": 2, "c": null}]') == [{"a": 1.5, "b": 2, "c": None}]


BINARY = bytes(range(256)) * 20
CHINESE = "[{" + '"output": "中文内容"' + "}]"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "文件是空的"),
        (b"\n \n\n", "文件是空的"),
        (BINARY, "f:1：这是二进制文件"),
        (b"[" + BINARY, "二进制文件"),
        (LINES + BINARY, "f:6：这是二进制文件"),
        (LINES.decode().encode("gbk"), "f:1：文字像是 GBK 编码.*iconv"),
        (CHINESE.encode("gbk"), "GBK 编码.*iconv"),
        (b"[" + b'{"a": 1},' * 999 + CHINESE[1:].encode("gbk"), "f 第 1000 条：文字像是 GBK 编码.*iconv"),
        (LINES.decode().encode("utf-16"), "UTF-16 编码.*iconv"),
        (ARRAY[:-2], "第 5 条记录之后被截断"),
        (ARRAY[:-20], "第 4 条记录之后被截断"),
        (b"[", "第 0 条记录之后被截断"),
        (ARRAY + b"x", "第 5 条记录之后已经结束，后面还有 'x'"),
        (ARRAY.replace(b"},", b"},,", 1), "第 2 条附近有语法错误"),
        (ARRAY[:-1] + b"}]", "第 5 条附近有语法错误"),
        (b"[1}]", "第 1 条附近有语法错误"),
        (b'[{"a": "x}, {"b": 1}]', "第 1 条附近有语法错误"),
        (ARRAY.replace(b"},", b"}", 1), "f 第 1 条：第 61 字符附近不是合法的 JSON"),
        (LINES[:-12], "f:5：最后一行不完整"),
        (LINES + b'{"a": 1,}\n', "f:6：第 9 列附近不是合法的 JSON"),
        (LINES + b'"text"\n', "f:6：这一行是 str 而不是 JSON 对象"),
        (b"[1]", "第 1 条：是 int"),
        (b'{\n "a": 1\n}\n', "f:1：.*每行须是一个完整的 JSON"),
        (b'{"a": "\\ud83d"}\n', "f:1：.*不成对"),
        (b'{"a": NaN}\n', "f:1：.*NaN"),
        (b'{"a": 1,}', "f:1：第 9 列附近不是合法的 JSON"),
        (b"[\xe4]", "f 第 1 条：.*不是合法的 JSON"),
        (b"[" * 5000, "截断|语法错误"),
        (b"[{" + b'"a":[' * 90_000 + b"]" * 90_000 + b"}]", "f 第 1 条：.*(嵌套太深|不是合法)"),
        (b'[{"a": ' + b"1" * 5000 + b",}]", "f 第 1 条：.*(数字太长|不是合法)"),
        (gzip.compress(LINES * 999, mtime=0)[:-9], "压缩文件不完整"),
        (gzip.compress(LINES, mtime=0)[:30] + b"zzzz" + gzip.compress(LINES)[34:], "压缩文件不完整或已损坏"),
        (zstd.compress(LINES * 9999)[:-9], "压缩文件不完整"),
        (zstd.compress(LINES)[:20] + b"zzzzzzzz", "压缩文件不完整或已损坏"),
    ],
)
def test_a_bad_file_is_named_with_its_place_and_its_mend(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, content, "f")
    assert str(caught.value).endswith("。")


@pytest.mark.parametrize("content", [ARRAY, json.dumps([{"a": 1, "b": ["字", None, True, -1.5e3]}] * 3).encode()])
def test_an_array_cut_at_any_byte_is_never_taken_for_whole(tmp_path, content):
    for end in range(1, len(content)):
        with pytest.raises(UserError, match="截断"):
            read(tmp_path, content[:end], "f")


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="找不到这个文件"):
        list(read_records(tmp_path / "none.json"))
    with pytest.raises(UserError, match="这是一个目录"):
        list(read_records(tmp_path))


def test_bad_lines_are_handed_over_and_the_rest_is_read(tmp_path):
    bad = []
    assert read(tmp_path, b"{]\n" + LINES + b"3\n" + LINES[:9], "f", bad.append) == RECORDS
    assert [str(error).split("：")[0].rpartition(":")[2] for error in bad] == ["1", "7", "8"]
    assert read(tmp_path, b'[1, {"a": 2}, "x"]', "f", bad.append) == [{"a": 2}]
    assert len(bad) == 5
    with pytest.raises(UserError, match="截断"):  # a file broken as a whole is not a bad record
        read(tmp_path, ARRAY[:-9], "f", bad.append)


def test_a_line_of_ten_megabytes(tmp_path):
    long = {"output": "长" * (10_000_000 // 3)}
    assert read(tmp_path, dump_line(long) + LINES) == [long, *RECORDS]
    assert read(tmp_path, b"[" + dump_line(long) + b"]") == [long]


def test_writing_renames_only_at_the_end(tmp_path):
    target = tmp_path / "new" / "out.jsonl"
    with write_atomically(target) as file:
        file.write(dump_line({"文": "字"}))
        assert not target.exists()
    assert target.read_bytes() == '{"文":"字"}\n'.encode()
    assert os.listdir(target.parent) == ["out.jsonl"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path, error):
    target = tmp_path / "out.jsonl"
    target.write_text("old")

    def fail():
        with write_atomically(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_space_names_the_file_and_keeps_the_old_one(tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    os.symlink("/dev/full", tmp_path / "out.jsonl.part")  # a device that is always full, where the part is written
    with pytest.raises(OSError, match="No space left") as caught, write_atomically(target) as file:
        file.write(b"x" * 100)
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("before", "after", "cut"),
    [
        (b"", b"", 0),
        (b'{"a":1}\n', b'{"a":1}\n', 0),
        (b'{"a":1}\n{"a":2}', b'{"a":1}\n{"a":2}\n', 0),
        (b'{"a":1}\n{"a":', b'{"a":1}\n', 5),
        (b'{"a":', b"", 5),
        (b'{"a":1}\n{"a":"' + b"x" * 200_000, b'{"a":1}\n', 200_006),
    ],
)
def test_mending_the_last_line_of_an_append_only_file(tmp_path, before, after, cut):
    path = tmp_path / "x.jsonl"
    path.write_bytes(before)
    assert mend_last_line(path) == cut
    assert path.read_bytes() == after
    assert mend_last_line(tmp_path / "none") == 0


def test_a_real_interrupt_leaves_the_old_file(tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    code = (
        "import sys, time\nfrom sft_data.storage import write_atomically\nfrom sft_data.errors import exit_cleanly\n"
        "@exit_cleanly\ndef main(argv=None):\n"
        "    with write_atomically(sys.argv[1]) as file:\n        file.write(b'half')\n        print('go', flush=True)\n"
        "        time.sleep(30)\nsys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"go\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]
