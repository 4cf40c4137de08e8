"""The benchmark of generation counts what it says: broken and doubled rows, topics not filled, requests of a whole run."""

import json
import sys

import pytest

from benchmarks import bench_generation, generation_runs
from benchmarks.generation_runs import FaultServer, Job, names


def test_rows_are_read_as_the_next_step_would(tmp_path):
    job = Job(tmp_path, "", ["甲", "乙", "丙"], n=2)
    rows = [{"text": text, "topic": topic} for text, topic in (("1", "甲"), ("2", "甲"), ("3", "乙"), ("3", "乙"))]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    job.out.write_text(lines + '{"text": "cut\n' + '{"text": "5", "topic": "丙"}')
    found = job.rows()
    assert (found.by_topic, found.broken, found.doubled) == ({"甲": 2, "乙": 2, "丙": 1}, 2, 1)
    assert job.lost() == 1
    assert job.kept() == {"甲", "乙", "丙"}
    job.journal.write_text('{"topic": "甲"}\n')
    assert job.kept() == {"甲"}


def test_a_run_is_measured_and_its_errors_found(tmp_path):
    with FaultServer() as server:
        job = Job(tmp_path, server.url, names(5), n=2)
        done = job.run()
        assert (done.status, job.lost(), len(server.asked), done.errors) == (0, 0, 5, [])
        assert 0 < done.cpu_s < 60
        assert not sys.platform.startswith("linux") or 10 < done.peak_mb < 500
    job.script = tmp_path / "no_such_script.py"
    assert job.run().status == 2


def test_the_floor_sends_the_same_requests(tmp_path):
    with FaultServer() as server:
        job = Job(tmp_path, server.url, names(5))
        assert generation_runs.floor(job).status == 0
        assert sorted(server.asked) == [(topic, 6) for topic in job.topics]


def test_a_run_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(generation_runs, "PATIENCE_S", 1.0)
    with FaultServer(lambda *_: {"delay_s": 60}) as server:
        assert Job(tmp_path, server.url, names(1)).run().status == -9


@pytest.mark.parametrize("cases", ["x", "a,y"])
def test_an_unknown_case_is_named(cases, capsys):
    assert bench_generation.main(["--cases", cases]) == 2
    assert cases[-1] in capsys.readouterr().err
