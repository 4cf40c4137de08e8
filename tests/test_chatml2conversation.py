import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import chatml2conversation as convert
from sft_data.chatml import render_chatml
from sft_data.formats import FORMATS
from sft_data.jsonl import read_records
from tests.sft_data.test_formats import SYSTEM, TURNS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path):
    def run(records, *argv):
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        way = [] if "--append" in argv else ["--overwrite"]
        code = convert.main(["--in", str(source), "--out", str(out), *way, *argv])
        return code, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if not code else None

    return run


def test_only_one_source_is_converted_and_the_rest_counted(run, capsys):
    text = render_chatml([SYSTEM, *TURNS])
    records = [{"text": text, "source": "hit"}, {"text": text, "source": "firefly"}, {"text": text}]
    code, written = run(records, "--only-source", "hit")
    assert (code, [r["source"] for r in written]) == (0, ["hit"])
    assert "读入 3 条，写出 1 条" in (err := capsys.readouterr().err)
    assert "不是来源 hit 的 2 条" in err
    assert run(records, "--only-source", "hti")[0] == 2
    assert "--only-source" in capsys.readouterr().err


def test_system_and_every_turn_are_kept(run):
    text = render_chatml([SYSTEM, *TURNS])
    assert run([{"text": text, "source": "hit", "category": "校园", "topic": "x"}]) == (
        0,
        [
            {
                "conversation_id": 1,
                "category": "校园",
                "system": "你是助手。",
                "conversation": [
                    {"human": "问一\n第二行", "assistant": "答一"},
                    {"human": "问二", "assistant": "答二"},
                ],
                "source": "hit",
            }
        ],
    )


def test_defaults_and_the_old_behaviour(run):
    text = render_chatml([SYSTEM, *TURNS[:2]])
    _, (first, second) = run(
        [{"text": text}] * 2, "--default-category", "Brainstorming", "--start-id", "7", "--drop-system"
    )
    assert (first["conversation_id"], second["conversation_id"]) == (7, 8)
    assert first["category"] == "Brainstorming"
    assert "system" not in first
    assert "source" not in first
    assert run([{"text": text}])[1][0]["category"] == "General"


def test_instruction_input_output_lines(run):
    records = [
        {"instruction": "翻译", "input": "苹果", "output": "apple"},
        {"instruction": "写诗", "input": "", "output": "诗"},
        {"instruction": "写诗", "output": "诗"},
        {"kind": "作诗", "input": "写诗", "target": "诗"},
    ]
    _, written = run(records)
    assert [record["conversation"][0]["human"] for record in written] == ["翻译\n苹果", "写诗", "写诗", "写诗"]
    assert [record["conversation"][0]["assistant"] for record in written] == ["apple", "诗", "诗", "诗"]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"conversation_id": 1, "conversation": []}, "conversation 应是非空的"),
        ({"messages": [{"role": "tool", "content": "晴"}]}, "角色是 'tool'"),
        ({"text": "你好"}, "不是 HIT ChatML"),
        ({"text": 3}, "text 字段是 int"),
        ({"text": render_chatml(TURNS[:2]).replace("答一", "")}, "回答是空的"),
        ({"text": render_chatml(TURNS).replace("智能助手", "用户", 1)}, "第 1 轮应为「智能助手」"),
        ({"instruction": "写诗"}, "缺少 output"),
        ({"instruction": " ", "output": "诗"}, "用户的话是空的"),
        ({"prompt": "x"}, "认不出这条记录的格式"),
        ('{"text": ', "不是合法的 JSON"),
    ],
)
def test_a_bad_record_is_named_and_can_be_skipped(run, capsys, record, says, tmp_path):
    good = {"text": render_chatml(TURNS)}
    (tmp_path / "out.jsonl").write_text("old")
    assert run([good, record, good])[0] == 2
    err = capsys.readouterr().err
    assert "in.jsonl:2：" in err
    assert says in err
    assert (tmp_path / "out.jsonl").read_text() == "old"
    code, written = run([good, record, good], "--skip-bad")
    assert code == 0
    assert [r["conversation_id"] for r in written] == [1, 2]
    assert "读入 3 条，写出 2 条" in capsys.readouterr().err


def test_nothing_converts_is_exit_2_and_keeps_the_old_file(run, tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("old")
    assert run([{"text": "x"}], "--skip-bad")[0] == 2
    assert "没有一条记录可以转换" in capsys.readouterr().err
    assert run(["[]"])[0] == 2
    assert run([])[0] == 2
    assert (tmp_path / "out.jsonl").read_text() == "old"


def test_missing_input_and_equal_paths(tmp_path, capsys):
    assert convert.main(["--in", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "no.jsonl：找不到" in capsys.readouterr().err
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    for way in ("--overwrite", "--append"):
        assert convert.main(["--in", str(tmp_path / "b.jsonl"), str(path), "--out", str(path), way]) == 2
        assert "同一个文件" in capsys.readouterr().err
    assert path.read_text() == "{}"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_disk_space_keeps_the_old_file(run, tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("old")
    os.symlink("/dev/full", tmp_path / "out.jsonl.part")
    assert run([{"text": render_chatml(TURNS)}])[0] == 2
    assert "磁盘空间不足" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "old"


def test_ctrl_c_keeps_the_old_file(tmp_path):
    fifo, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    os.mkfifo(fifo)
    out.write_text("old")
    process = subprocess.Popen(
        [sys.executable, ROOT / "chatml2conversation.py", "--in", fifo, "--out", out, "--overwrite"],
        stderr=subprocess.PIPE,
    )
    with open(fifo, "wb") as writer:
        writer.write(json.dumps({"text": render_chatml(TURNS)}).encode() + b"\n")
        writer.flush()
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


CHATML = render_chatml([SYSTEM, *TURNS])
SHORT = render_chatml(TURNS[:2])
META = {"file": "train.jsonl", "line": 4}


def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def read(path):
    return [obj for _, obj in read_records(path)]


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "chatml"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_there_and_back_through_every_form_and_file(tmp_path, form, name):
    """HIT ChatML -> form -> HIT ChatML: the text, and where it comes from, are what they were."""
    if name.endswith("zst"):
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    records = [
        {"text": CHATML, "category": "校园", "source": "hit", "meta": META},
        {"text": SHORT, "category": "诗", "source": "firefly", "meta": META},
    ]
    there, back = tmp_path / name, tmp_path / "back.jsonl"
    source = write(tmp_path / "in.jsonl", records)
    assert convert.main(["--in", source, "--to", form, "--out", str(there)]) == 0
    assert convert.main(["--in", str(there), "--to", "chatml", "--out", str(back)]) == 0
    assert read(back) == records


def test_several_inputs_of_several_forms_become_one_set(tmp_path):
    one = write(tmp_path / "1.jsonl", [{"text": CHATML}, {"instruction": "写诗", "output": "诗"}])
    two = write(tmp_path / "2.jsonl", [{"messages": TURNS}])
    assert (
        convert.main(["--in", one, two, "--out", str(tmp_path / "o.jsonl"), "--drop-system", "--to", "messages"]) == 0
    )
    asked = [{"role": "user", "content": "写诗"}, {"role": "assistant", "content": "诗"}]
    assert read(tmp_path / "o.jsonl") == [{"messages": m, "category": "General"} for m in (TURNS, asked, TURNS)]


def test_an_existing_file_is_left_alone_unless_told(tmp_path, capsys):
    source, out = write(tmp_path / "in.jsonl", [{"text": SHORT}]), tmp_path / "out.jsonl"
    out.write_text("old")
    assert convert.main(["--in", source, "--out", str(out)]) == 2
    assert re.search(r"out\.jsonl：文件已经存在.*--overwrite.*--append", capsys.readouterr().err)
    assert out.read_text() == "old"
    with pytest.raises(SystemExit):
        convert.main(["--in", source, "--out", str(out), "--overwrite", "--append"])
    assert convert.main(["--in", source, "--out", str(out), "--overwrite"]) == 0
    assert read(out)[0]["conversation"] == [{"human": "问一\n第二行", "assistant": "答一"}]


def test_append_keeps_old_lines_and_leaves_out_what_is_there(tmp_path, capsys):
    source = write(
        tmp_path / "in.jsonl",
        [
            {"text": SHORT, "source": "hit"},  # there already, though written with spaces and another category
            {"text": CHATML, "source": "hit"},
            {"messages": [SYSTEM, *TURNS], "source": "hit"},  # there by now
            {"text": CHATML, "source": "firefly"},
            {"text": "x", "source": "hit"},
        ],
    )
    old = (
        '{"conversation_id" : 41, "category": "诗", "conversation": [{"human": "问一\\n第二行", "assistant": "答一"}]}'
    )
    out = tmp_path / "out.jsonl"
    out.write_text(old, encoding="utf-8")  # with no newline at the end
    argv = ["--in", source, "--out", str(out), "--append", "--only-source", "hit", "--skip-bad"]
    assert convert.main(argv) == 0
    assert "读入 5 条，写出 1 条" in (err := capsys.readouterr().err)
    assert "已有 2 条，不是来源 hit 的 1 条，跳过 1 条" in err
    first, second = out.read_text(encoding="utf-8").splitlines()
    assert first == old
    assert (json.loads(second)["conversation_id"], json.loads(second)["system"]) == (42, "你是助手。")
    before = out.read_bytes()
    assert convert.main(argv) == 0  # again: nothing is new, and that is no failure
    assert "写出 0 条" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["x.json", "x.jsonl.gz", "x.parquet"])
def test_append_puts_the_old_records_first_in_every_form(tmp_path, name):
    one, two = write(tmp_path / "1.jsonl", [{"text": SHORT}]), write(tmp_path / "2.jsonl", [{"text": CHATML}])
    out = tmp_path / name
    assert convert.main(["--in", one, "--out", str(out), "--append", "--start-id", "5"]) == 0
    assert convert.main(["--in", one, two, "--out", str(out), "--append"]) == 0
    assert [(record["conversation_id"], len(record["conversation"])) for record in read(out)] == [(5, 1), (6, 2)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"text": SHORT}, "out.jsonl:1：OUT 里是 chatml 格式.*--to chatml"),
        ({"messages": TURNS[:1]}, "out.jsonl:1：--append 读不懂 OUT 里的这条：最后一条是「用户」"),
    ],
)
def test_append_to_another_form_is_refused(tmp_path, capsys, line, says):
    source, out = write(tmp_path / "in.jsonl", [{"text": SHORT}]), tmp_path / "out.jsonl"
    before = write(out, [line]) and out.read_bytes()
    assert convert.main(["--in", source, "--out", str(out), "--append"]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert out.read_bytes() == before


def test_llama_factory_is_told_of_the_file(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"text": CHATML}, {"text": SHORT}])
    assert convert.main(["--in", source, "--out", str(tmp_path / "set.json"), "--to", "sharegpt"]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "dataset_info.json" in line)
    entry = json.loads("{" + line.partition("加一项 ")[2] + "}")
    columns = {"messages": "conversations"}
    assert entry == {"set": {"file_name": str(tmp_path / "set.json"), "formatting": "sharegpt", "columns": columns}}
    assert convert.main(["--in", source, "--out", str(tmp_path / "set.jsonl.gz"), "--to", "alpaca"]) == 0
    err = capsys.readouterr().err
    assert "只读本机的 .json、.jsonl、.parquet" in err
    assert "单轮与多轮混在一起" in err
    assert convert.main(["--in", source, "--out", str(tmp_path / "set.parquet"), "--to", "alpaca"]) == 0
    assert "单轮与多轮" not in capsys.readouterr().err


def test_a_marker_that_chatml_cannot_hold_is_named_and_can_be_skipped(tmp_path, capsys):
    bad = {"messages": [TURNS[0], {"role": "assistant", "content": "<|endofutterance|>"}]}
    source, out = write(tmp_path / "in.jsonl", [{"messages": TURNS}, bad]), str(tmp_path / "o.jsonl")
    assert convert.main(["--in", source, "--out", out, "--to", "chatml"]) == 2
    assert "in.jsonl:2：「智能助手」的内容里含有格式标记" in capsys.readouterr().err
    assert convert.main(["--in", source, "--out", out, "--to", "chatml", "--skip-bad"]) == 0
    assert "读入 2 条，写出 1 条" in capsys.readouterr().err
    assert read(out) == [{"text": render_chatml(TURNS)}]
