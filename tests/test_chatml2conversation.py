import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import chatml2conversation as convert
from sft_data.chatml import render_chatml

ROOT = Path(__file__).resolve().parents[1]
SYSTEM = {"role": "system", "content": "你是助手。"}
TURNS = [
    {"role": "user", "content": "问一\n第二行"},
    {"role": "assistant", "content": "答一"},
    {"role": "user", "content": "问二"},
    {"role": "assistant", "content": "答二"},
]


@pytest.fixture
def run(tmp_path):
    def run(records, *argv):
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        code = convert.main(["--in", str(source), "--out", str(out), *argv])
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
        ({"conversation_id": 1, "conversation": []}, "已经是 conversation 格式"),
        ({"text": "你好"}, "不是 HIT ChatML"),
        ({"text": 3}, "text 字段是 int"),
        ({"text": render_chatml(TURNS[:2]).replace("答一", "")}, "回答是空的"),
        ({"text": render_chatml(TURNS).replace("智能助手", "用户", 1)}, "第 1 轮应为「智能助手」"),
        ({"instruction": "写诗"}, "缺少 output"),
        ({"instruction": " ", "output": "诗"}, "用户的话是空的"),
        ({"prompt": "x"}, "既没有 text 字段"),
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
    assert convert.main(["--in", str(path), "--out", str(path)]) == 2
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
        [sys.executable, ROOT / "chatml2conversation.py", "--in", str(fifo), "--out", str(out)], stderr=subprocess.PIPE
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
