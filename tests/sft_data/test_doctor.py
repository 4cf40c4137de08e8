"""The doctor: every kind of trouble by an example, nothing skipped, and its verdict is prep's on any bytes."""

import gzip
import json
import os
import random
import re

import pytest

from sft_data.chatml import BEGIN, END
from sft_data.doctor import check
from sft_data.errors import UserError
from sft_data.findings import KINDS
from sft_data.jsonl import dump_line, zstd_library
from sft_data.sources import Input

QUESTION, ANSWER = "请介绍一下哈尔滨工业大学的校训。", "规格严格，功夫到家，是学校代代相传的校训。"
GOOD = {"instruction": QUESTION, "input": "", "output": ANSWER}
LINE = dump_line(GOOD)


def hit(*turns: tuple[str, str]) -> str:
    return "\n".join(f"{BEGIN}{role}\n{text}\n{END}" for role, text in turns)


def firefly(n: int = 0, **other) -> dict:
    return {**GOOD, "instruction": f"第 {n} 问：{QUESTION}", **other}


def lines(*records) -> bytes:
    return b"".join(r if isinstance(r, bytes) else dump_line(r) for r in records)


def answer(text: str) -> bytes:
    return lines(firefly(output=text))


def diagnose(folder, content: bytes | None, kind: str = "firefly", name: str = "in.json") -> list[dict]:
    """All findings about a file of this content."""
    path, out = folder / name, folder / "check.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert check([Input("a", kind, [str(path)])], str(out), False) == 0
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def kinds(findings: list[dict]) -> set[str]:
    return {finding["kind"] for finding in findings}


UTF8 = lines(firefly(1), firefly(2)).decode()
ARRAY = json.dumps([firefly(i) for i in range(4)], ensure_ascii=False, indent=1).encode()
# kind: (content, kind of the source, line, words of what or mend)
EXAMPLES = {
    "missing_file": (None, "firefly", 0, "请检查路径"),
    "empty_file": (b" \n", "firefly", 0, "上一步"),
    "other_file": (b"<!DOCTYPE html>\n<html>", "firefly", 0, "网页"),
    "binary": (random.Random(1).randbytes(3000), "firefly", 0, "路径"),
    "utf16_file": (UTF8.encode("utf-16-le"), "firefly", 0, "iconv -f UTF-16-LE"),
    "gbk_file": (UTF8.encode("gbk"), "firefly", 0, "iconv -f GB18030"),
    "cut_archive": (gzip.compress(LINE * 50)[:-9], "firefly", 0, "重新下载"),
    "broken_parquet": (b"PAR1" + b"x" * 100, "firefly", 0, "重新"),
    "cut_array": (ARRAY[:-60], "firefly", 0, "第 3 条记录之后"),
    "broken_array": (b"[" + LINE + b",," + LINE + b"]", "firefly", 0, "第 2 条附近"),
    "text_after_array": (b"[" + LINE + b"] x", "firefly", 0, "已经结束"),
    "wrong_root": (b'{"version": 1, "data": ' + ARRAY + b"}", "firefly", 0, "jq -c '.data[]'"),
    "multiline_records": (json.dumps(GOOD, indent=2).encode() + b"\n", "firefly", 0, "jq -c ."),
    "gbk_line": (lines(firefly(1), firefly(2), LINE.decode().encode("gbk")), "firefly", 3, "按 GBK 读"),
    "not_utf8": (lines(GOOD, b'{"instruction": "\xff\xff"}\n'), "firefly", 2, "0xff"),
    "null_bytes": (lines(GOOD, b"\0\0\0\n"), "firefly", 2, "零字节"),
    "bom_inside": (lines(GOOD, b"\xef\xbb\xbf" + LINE), "firefly", 2, "BOM"),
    "cut_record": (lines(GOOD, LINE[:-9]), "firefly", 2, "没有写完"),
    "newline_in_string": (LINE.replace("，".encode(), b"\n"), "firefly", 1, "\\n"),
    "concatenated": (LINE.strip() * 2 + b"\n", "firefly", 1, "换行"),
    "single_quotes": (f"{GOOD}\n".encode(), "firefly", 1, "双引号"),
    "trailing_comma": (LINE[:-2] + b",}\n", "firefly", 1, "逗号"),
    "python_literal": (LINE[:-2] + b',"ok": True}\n', "firefly", 1, "true"),
    "nan": (LINE[:-2] + b',"score": NaN}\n', "firefly", 1, "null"),
    "lone_surrogate": (LINE[:-2] + b',"x": "\\ud83d"}\n', "firefly", 1, "ud83d"),
    "too_deep": (b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}\n", "firefly", 1, "嵌套"),
    "syntax": (b'{"instruction" "x"}\n', "firefly", 1, "第 16 个字符"),
    "not_object": (lines(GOOD, ["x"]), "firefly", 2, "数组"),
    "wrong_flag": (lines({"text": hit(("用户", "好"), ("智能助手", "好"))}), "firefly", 1, "--hit-jsonl"),
    "missing_field": (lines({"instruction": "x", "ouput": "y"}), "firefly", 1, "ouput"),
    "wrong_type": (lines(firefly(output=5)), "firefly", 1, "int"),
    "unknown_form": (lines({"q": "x"}), "any", 1, "'q'"),
    "chatml_no_begin": (lines({"text": "你好"}), "hit", 1, BEGIN),
    "chatml_no_end": (lines({"text": f"{BEGIN}用户\n你好"}), "hit", 1, END),
    "chatml_stray_text": (lines({"text": "嗯" + hit(("用户", "好"), ("智能助手", "好"))}), "hit", 1, "多余"),
    "unknown_role": (lines({"text": hit(("老师", "好"))}), "hit", 1, "老师"),
    "turn_order": (lines({"text": hit(("智能助手", "好"))}), "hit", 1, "第 1 轮"),
    "empty_message": (lines({"messages": [{"role": "user", "content": ""}]}), "any", 1, "空的"),
    "tools": (lines({**GOOD, "tools": "[1]", "system": "x"}), "firefly", 1, "tools"),
    "no_records": (b"[]", "firefly", 0, "一条记录也没有"),
    "duplicate_keys": (LINE[:-2] + b',"output":"x"}\n', "firefly", 1, "后一个"),
    "empty_field": (answer("  "), "firefly", 1, "丢弃"),
    "mojibake": (answer("校训是" + "规格严格".encode().decode("latin-1")), "firefly", 1, "Latin-1"),
    "control_character": (answer("规格\x08严格。"), "firefly", 1, "\\u0008"),
    "private_use": (answer("\ue5d2规格严格。"), "firefly", 1, "PDF"),
    "html": (answer("规格严格<br/>功夫到家。"), "firefly", 1, "unescape"),
    "literal_newline": (answer("规格严格\\n功夫到家。"), "firefly", 1, "两次"),
    "foreign_marker": (answer("规格严格。<|im_end|>"), "firefly", 1, "im_end"),
    "own_marker": (answer(f"规格严格。{END}"), "firefly", 1, "丢弃"),
    "cut_answer": (answer("校训是规格严格，功夫到家。因此，"), "firefly", 1, "因此，"),
    "placeholder": (answer("TODO"), "firefly", 1, "TODO"),
    "huge_record": (answer("哈" * 400_000 + "。"), "firefly", 1, "MB"),
    "utf8_bom": (b"\xef\xbb\xbf" + LINE, "firefly", 0, "BOM"),
    "blank_lines": (b"\n" + LINE + b"\n\n", "firefly", 0, "3 个空行"),
    "crlf": (LINE.replace(b"\n", b"\r\n"), "firefly", 0, "1 行"),
    "duplicate": (lines(GOOD, firefly(1), GOOD), "firefly", 3, "in.json:1 完全相同"),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_each_kind_is_named_with_its_place_and_its_mending(tmp_path, kind):
    content, source, line, words = EXAMPLES[kind]
    found = [f for f in diagnose(tmp_path, content, source) if f["kind"] == kind]
    assert found
    assert (found[0]["line"], found[0]["severity"]) == (line, KINDS[kind][0])
    assert words in found[0]["what"] + found[0]["mend"]
    assert found[0]["mend"]


def test_a_folder_and_an_unknown_address_are_named(tmp_path):
    assert kinds(diagnose(tmp_path, None, name="")) == {"directory"}
    out = tmp_path / "check.jsonl"
    check([Input("a", "any", ["nosuch://bucket/a.jsonl"])], str(out), False)
    assert json.loads(out.read_bytes())["kind"] == "unreadable"


def test_no_kind_is_without_an_example():
    # bad_record stands for what read_fields may come to say one day and _REASONS does not know.
    assert set(KINDS) == {*EXAMPLES, "directory", "unreadable", "bad_record"}


@pytest.mark.parametrize(
    ("content", "source"),
    [
        (lines(GOOD, firefly(2, input="时间：2024 年")), "firefly"),
        (ARRAY, "firefly"),
        (gzip.compress(ARRAY), "any"),
        (lines({"text": hit(("系统", "你是助手。"), ("用户", "你好，"), ("智能助手", "你好！"))}), "hit"),
        (answer("```python\nprint('<br>\\n')\n```"), "firefly"),
        (answer("锛是一种工具，\\nabla 与 C:\\new 不是换行，1 < 2 && a[0] # 注释，人民的总和"), "firefly"),
        (lines(firefly(kind="问答", target=None)), "firefly"),
        (lines({"messages": [{"role": "user", "content": "好"}, {"role": "assistant", "content": "好"}]}), "any"),
    ],
)
def test_good_records_have_no_finding(tmp_path, content, source):
    assert diagnose(tmp_path, content, source) == []


@pytest.mark.parametrize("codec", ["gbk", "utf-16", "utf-16-be"])
def test_records_in_another_encoding_are_looked_at_as_decoded(tmp_path, codec):
    content = lines(firefly(1), firefly(2, output="因此，"), firefly(3, output="<br>")).decode().encode(codec)
    found = diagnose(tmp_path, content)
    assert [f["severity"] for f in found if f["line"] == 0] == ["error"]
    assert [(f["line"], f["kind"]) for f in found if f["line"]] == [(2, "cut_answer"), (3, "html")]


@pytest.mark.parametrize("form", ["array", "lines", "root", "multiline", "gzip", "zstd"])
def test_a_break_does_not_hide_what_comes_behind_or_before_it(tmp_path, form):
    """One record in the middle is broken, another, elsewhere, is suspicious: both are found."""
    rows = [dump_line(firefly(i)).strip() for i in range(9)]
    rows[7] = dump_line(firefly(7, output="<br>")).strip()
    if form in ("gzip", "zstd"):
        content = b"\n".join([rows[7], *(lines(firefly(i, output=os.urandom(2000).hex())) for i in range(900))])
        pack = gzip.compress if form == "gzip" else zstd_library().compress
        found = diagnose(tmp_path, pack(content)[:-100_000])
        assert {"cut_archive", "html"} <= kinds(found)
        return
    rows[3] = b'{"instruction": "x", "output": }}' if form in ("array", "root") else b'{"instruction": "x", "output": }'
    content = {
        "array": b"[" + b",\n".join(rows) + b"]",
        "root": b'{"data": [' + b",".join(rows) + b'], "n": {"a": 9}}',
        "lines": b"\n".join(rows),
        "multiline": b"\n".join(row.replace(b', "', b',\n"').replace(b',"', b',\n"') for row in rows),
    }[form]
    found = diagnose(tmp_path, content)
    assert {"html", "syntax"} <= kinds(found)
    line = next(f["line"] for f in found if f["kind"] == "html")
    assert line == (21 if form == "multiline" else 8)
    assert not kinds(found) & {"not_object", "missing_field", "unknown_form"}


def test_parquet_rows_are_checked_and_one_that_json_cannot_hold_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [firefly(1), firefly(2, output="<br>"), firefly(3, extra=b"\xff"), firefly(4, output="因此，")]
    pq.write_table(pa.Table.from_pylist([{"extra": None, **row} for row in rows]), tmp_path / "a.parquet")
    found = diagnose(tmp_path, None, name="a.parquet")
    assert sorted((f["line"], f["kind"]) for f in found) == [(2, "html"), (3, "wrong_type"), (4, "cut_answer")]


def test_the_summary_counts_shows_the_worst_first_and_lets_no_kind_hide_another(tmp_path, capsys):
    bad = [b"{'a': 1}\n"] * 50 + [lines({"instruction": "x"}), answer("<br>"), LINE, LINE]
    diagnose(tmp_path, lines(*bad))
    err = capsys.readouterr().err
    assert "54 条记录，2 条没有问题" in err
    assert re.search(r"single_quotes）：50 处，首先在 \S+in.json:1\n", err)
    shown = err.split("最要紧的 5 处")[1].splitlines()[1:-1]
    assert len(shown) == 5
    assert "单引号" in shown[2]
    assert "output" in shown[3]
    assert "HTML" in shown[4]
    assert err.endswith(f"全部 53 处写在 {tmp_path / 'check.jsonl'}（每行一处，JSONL）。\n")


@pytest.mark.parametrize(
    ("content", "code"), [(LINE * 2 + b"\r\n", 0), (answer("<br>"), 2), (b"{", 2), (None, 2), (b"[]", 2)]
)
def test_strict_makes_errors_and_warnings_but_no_notes_exit_code_2(tmp_path, content, code):
    path = tmp_path / "in.json"
    if content is not None:
        path.write_bytes(content)
    assert check([Input("a", "firefly", [str(path)])], str(tmp_path / "check.jsonl"), True) == code


def test_data_is_never_replaced_by_findings_but_earlier_findings_are(tmp_path):
    data, other, out = tmp_path / "in.jsonl", tmp_path / "other.jsonl", tmp_path / "check.jsonl"
    for path in (data, other):
        path.write_bytes(LINE)
    inputs = [Input("a", "firefly", [str(data)])]
    for path in (data, other):
        with pytest.raises(UserError, match="--check-out"):
            check(inputs, str(path), False)
        assert path.read_bytes() == LINE
    out.write_bytes(dump_line({"severity": "error", "kind": "x", "mend": "y"}))
    assert check(inputs, str(out), False) == 0
    assert out.read_bytes() == b""
    assert sorted(os.listdir(tmp_path)) == ["check.jsonl", "in.jsonl", "other.jsonl"]


def test_a_duplicate_is_found_across_files_and_sources(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(lines(firefly(1), b"\n", GOOD) if name == "a" else lines(firefly(2), GOOD))
    inputs = [Input(name, "any", [str(tmp_path / name)]) for name in "ab"]
    check(inputs, str(tmp_path / "check.jsonl"), False)
    found = [json.loads(line) for line in (tmp_path / "check.jsonl").read_bytes().splitlines()]
    twin = next(f for f in found if f["kind"] == "duplicate")
    assert (twin["where"], twin["source"]) == (f"{tmp_path / 'b'}:2", "b")
    assert f"{tmp_path / 'a'}:3" in twin["what"]
