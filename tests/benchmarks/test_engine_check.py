"""The check of an engine says what is wrong: no package, other answers, a run that fails, a process left behind."""

import json
import sys
from importlib.util import find_spec

import psutil
import pytest

from benchmarks import engine_check, engine_models


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a stand-in for inference_with_SGLang.py."""
    monkeypatch.setattr(engine_check, "ROOT", tmp_path)
    return (tmp_path / "inference_with_SGLang.py").write_text


@pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is here")
def test_no_package_is_one_sentence_before_anything_is_made(tmp_path, capsys):
    assert engine_check.main(["--engine", "SGLang", "--keep", str(tmp_path / "kept")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("错误：这个环境里没有可用的 SGLang")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "kept").exists()


def test_mixed_rows_expect_the_answers_of_their_own_model(tmp_path):
    questions = engine_models.write_questions(tmp_path / "x.jsonl")
    names = ("base", "style", "second")
    files = {name: [{"response": f"{name} {i}"} for i in range(64)] for name in names}
    expected = {name: "\n".join(map(json.dumps, rows)).encode() for name, rows in files.items()}
    wanted = engine_models.mix(questions, tmp_path / "mixed.jsonl", expected)
    assert wanted[:5] == ["style 0", "base 1", "second 2", "second 3", "style 4"]
    rows = [json.loads(line) for line in (tmp_path / "mixed.jsonl").read_text().splitlines()]
    assert [row.get("adapter") for row in rows[:5]] == ["style", "base", "second", None, "style"]
    assert len(rows) == len(wanted) == len({row["prompt"] for row in rows}) == 64


@pytest.mark.parametrize(("wrong", "holds"), [(1, True), (2, False)])
def test_nine_rows_of_ten_are_enough(script, wrong, holds, tmp_path, capsys):
    rows = [{"response": f"{'no' if i < wrong else 'yes'} {i}"} for i in range(10)]
    script(f"import sys\nopen(sys.argv[-1], 'w').write({''.join(json.dumps(row) + chr(10) for row in rows)!r})\n")
    wanted = {"base": [f"yes {i}" for i in range(10)]}
    assert engine_check.try_file("SGLang", "离线", [], "base", wanted, tmp_path) is holds
    assert f"| 离线 | {100 - 10 * wrong}.0% | 0 | {'是' if holds else '**否**'} |" in capsys.readouterr().out


def test_a_failed_run_shows_the_end_of_its_log(script, tmp_path, capsys):
    script("import sys\nfor i in range(99):\n    print('line', i, file=sys.stderr)\nsys.exit(3)\n")
    assert not engine_check.try_file("SGLang", "离线", [], "base", {"base": ["x"]}, tmp_path)
    said = capsys.readouterr()
    assert "| 离线 | — | 0 | **否** |" in said.out
    assert said.err.splitlines() == [f"line {i}" for i in range(74, 99)]


@pytest.mark.parametrize("leaves", [True, False])
def test_a_process_that_outlives_ctrl_c_is_found(script, leaves, tmp_path, monkeypatch):
    """The child is a process group of its own, as an engine is."""
    end = "pass" if leaves else "child.kill(); child.wait()"
    script(
        "import signal, subprocess, sys\n"
        f"child = subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        f"def end(*_):\n    {end}\n    sys.exit(0)\n"
        "signal.signal(signal.SIGINT, end)\nprint(child.pid, flush=True)\nsignal.pause()\n"
    )
    wait = psutil.wait_procs
    monkeypatch.setattr(psutil, "wait_procs", lambda family, timeout: wait(family, timeout=0.5))
    with engine_check.started("SGLang", tmp_path / "log") as server:
        pid = int(server.stdout.readline())
        try:
            if leaves:
                with pytest.raises(engine_check.EngineFailed, match=f"退出码是 0，还在运行的进程：{pid} "):
                    engine_check.stop(server)
            else:
                engine_check.stop(server)
        finally:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()
    assert server.poll() == 0
