"""prep_sft_firefly_hit.py when it is given what it cannot use, or is stopped: one sentence, exit code, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prep_sft_firefly_hit as prep

ROOT = Path(__file__).resolve().parents[1]


def firefly(seed: int) -> dict:
    question, answer = ("".join(chr(0x4E00 + (seed * 7919 + i * 104729) % 20000) for i in range(n)) for n in (30, 100))
    return {"instruction": question, "input": "", "output": answer}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "找不到这个文件"),
        (b"", "文件是空的"),
        (json.dumps([firefly(1), firefly(2)]).encode()[:-30], "第 1 条记录之后被截断"),
        (bytes(range(256)) * 9, "二进制文件"),
        (json.dumps(firefly(1), ensure_ascii=False).encode("gbk", "ignore"), "GBK"),
    ],
)
def test_a_bad_file_is_answered_in_one_sentence_and_the_old_out_stays(tmp_path, capsys, content, says):
    source, out = tmp_path / "firefly.json", tmp_path / "mix.jsonl"
    if content is not None:
        source.write_bytes(content)
    out.write_text("old")
    assert prep.main(["--firefly-json", str(source), "--out", str(out), "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert str(source) in err
    assert len(err.strip().splitlines()) == 1
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == sorted({"mix.jsonl"} | ({"firefly.json"} if content is not None else set()))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "至少给出"),
        (["--firefly-json", "x.json", "--hit-ratio", "1.4"], "--hit-ratio 1.4"),
        (["--firefly-json", "x.json", "--total", "0"], "--total 0"),
        (["--firefly-json", "x.json", "--out-min", "900", "--out-max", "90"], "--out-min 大于"),
        (["--firefly-json", "x.json", "--near-dup-threshold", "40"], "0 到 12"),
        (["--firefly-json", "x.json", "--drop-pattern", "("], "正则"),
        (["--firefly-json", "x.json", "--log", "LOUD"], "--log LOUD"),
    ],
)
def test_flags_that_mean_nothing_are_refused(tmp_path, capsys, argv, says):
    assert prep.main([*argv, "--out", str(tmp_path / "o.jsonl")]) == 2
    assert says in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_out_may_not_be_an_input(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(firefly(1)))
    assert prep.main(["--firefly-json", str(path), "--out", str(path)]) == 2
    assert "同一个文件" in capsys.readouterr().err


def test_ctrl_c_leaves_the_old_files(tmp_path):
    fifo, out = tmp_path / "firefly.jsonl", tmp_path / "mix.jsonl"
    os.mkfifo(fifo)  # a source that never ends: the program is surely in the middle of reading
    out.write_text("old")
    process = subprocess.Popen(
        [sys.executable, "prep_sft_firefly_hit.py", "--firefly-json", str(fifo), "--out", str(out), "--overwrite"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    with open(fifo, "wb") as writer:
        for i in range(50):
            writer.write(json.dumps(firefly(i)).encode() + b"\n")
        writer.flush()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["firefly.jsonl", "mix.jsonl"]


def test_help_is_instant_and_works_from_any_folder(tmp_path):
    for script in ("prep_sft_firefly_hit.py", "chatml2conversation.py", "data/download.py"):
        start = time.monotonic()
        done = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, check=True)
        assert "usage" in done.stdout.decode()
        assert time.monotonic() - start < 2  # 0.1 s on an idle machine; torch or numpy at import would take longer
