"""What a person sees while a file is being answered."""

import re

from Firefly.component import results
from Firefly.component.inference import Completion, Engine, Request


def test_progress_in_a_log_has_rates_and_the_time_left(monkeypatch, tmp_path, capsys):
    """Four rows of 10 tokens, 2 s apart, a line at most every 3 s."""
    clock = [100.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(results, "LOG_SECONDS", 3)

    def generate(requests):
        for request in requests:
            clock[0] += 2
            yield request, Completion("答", "stop", 5, 10)

    requests = [Request(i, [{"role": "user", "content": "问"}], {"prompt": "问"}) for i in range(4)]
    engine = Engine(generate, None, window=4)
    assert results.answer_all(engine, requests, str(tmp_path / "y.jsonl")) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines == [
        "已答 2/4 条，0.50 条/秒，5 token/秒，约剩 00:04",
        "已答 4/4 条，0.50 条/秒，5 token/秒，约剩 00:00",
        "答完 4 条，用时 00:08，0.50 条/秒，5 token/秒。",
    ]


def test_progress_counts_on_from_where_a_cut_run_stopped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "LOG_SECONDS", 0)
    requests = [Request(i, [{"role": "user", "content": "问"}], {"prompt": "问"}) for i in range(3)]
    (tmp_path / "y.jsonl").write_bytes(results.result_line(requests[0], Completion("答", "stop", 5, 10)))
    engine = Engine(lambda some: ((r, Completion("答", "stop", 5, 10)) for r in some), None, window=4)
    assert results.answer_all(engine, requests, str(tmp_path / "y.jsonl")) == 2
    assert re.findall(r"已答 (\d/\d) 条", capsys.readouterr().err) == ["2/3", "3/3"]
