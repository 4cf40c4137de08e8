"""gen_SFT_data.py on a provider's bad days, killed, interrupted and started twice; a real server on real sockets."""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
helpers = runpy.run_path(str(ROOT / "tests/LLM_data_gen/gen_helpers.py"))
FaultServer, completion, folder = helpers["FaultServer"], helpers["completion"], helpers["folder"]
arguments, run, array, names = helpers["arguments"], helpers["run"], helpers["array"], helpers["names"]
rows_by_topic, report, KEY = helpers["rows_by_topic"], helpers["report"], helpers["KEY"]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404])
def test_refusal_from_the_start_stops_within_what_is_in_flight(folder, capsys, status):
    with FaultServer(lambda *_: {"status": status, "body": f"no: {KEY}"}) as server:
        assert run(folder, server, names(100)) == 2
    assert len(server.asked) <= 10
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("错误")]
    assert len(errors) == 1
    assert str(status) in errors[0]
    assert not (folder / "o.jsonl").exists()


def test_refusal_in_mid_run_keeps_what_is_done_and_resumes(folder):
    topics = names(60)
    with FaultServer(lambda number, topic, n: {"status": 402} if number >= 20 else None, latency_s=0.02) as server:
        assert run(folder, server, topics) == 2
        assert len(server.asked) <= 30
        done = rows_by_topic(folder)
        assert len(done) == 20
        server.asked.clear()
        server.plan = lambda *_: None
        assert run(folder, server, topics) == 0
    assert "402" in report(folder)["earlier_runs"][0]["stopped"]
    assert {topic for topic, _ in server.asked} == set(topics) - set(done)
    assert rows_by_topic(folder) == dict.fromkeys(topics, 2)


def test_answers_in_flight_when_the_run_must_stop_are_kept(folder):
    def plan(number, topic, n):
        return {"status": 401} if number == 4 else {"delay_s": 0.3, "body": json.dumps(completion(array(topic, n)))}

    with FaultServer(plan) as server:
        assert run(folder, server, names(50), max_concurrency=5) == 2
    assert len(server.asked) == 5
    assert len(rows_by_topic(folder)) == 4


def test_a_bad_day_loses_no_topic(folder):
    bad = [{"status": 429}, {"status": 500}, "drop", "这次没有样本。", {"body": "<html>"}]

    def plan(number, topic, n):
        return bad[number // 7 % len(bad)] if number % 7 == 3 else None

    topics = names(200)
    with FaultServer(plan) as server:
        assert run(folder, server, topics) == 0
    assert rows_by_topic(folder) == dict.fromkeys(topics, 2)
    assert len(server.asked) <= 1.3 * len(topics)
    told = report(folder)["run"]
    assert told["answers_by_problem"]["no_samples"]["count"] > 0
    assert told["requests"] == len(server.asked) == told["answers"] + sum(told["failed"].values())


def test_an_outage_costs_no_topic_its_tries_and_few_requests(folder, capsys):
    down = []

    def plan(number, topic, n):
        if number >= 30 and not down:
            down.append(time.monotonic())
        return {"status": 503} if down and time.monotonic() - down[0] < 1.5 else None

    topics = names(80)
    with FaultServer(plan) as server:
        assert run(folder, server, topics, max_tries=2, retry_wait_s=0.05) == 0
    assert rows_by_topic(folder) == dict.fromkeys(topics, 2)
    assert report(folder)["run"]["failed"]["HTTP 503"] < 25  # ten in flight, and the probes
    assert "服务已恢复" in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_the_run(folder, capsys):
    with FaultServer() as server:
        pass
    assert run(folder, server, names(20), max_outage_s=0.3) == 2
    assert "没有给出回答" in capsys.readouterr().err


@pytest.mark.parametrize("named", [False, True])
def test_a_cap_on_requests_in_flight_is_found(folder, named):
    with FaultServer(latency_s=0.05, cap=39, cap_in_body=named) as server:
        assert run(folder, server, names(800), n=1, max_concurrency=200) == 0
    assert rows_by_topic(folder) == dict.fromkeys(names(800), 1)
    assert server.over_cap < 0.1 * len(server.asked)  # 25 of them at once, at the start; benchmarks/ holds the 5 %


def test_answers_that_break_off_cost_no_round_and_their_whole_samples_are_kept(folder):
    with FaultServer(lambda number, *_: {"drop_after": 7} if number < 3 else None) as server:
        assert run(folder, server, ["甲"], n=4, max_rounds=1) == 0
    entries = [json.loads(line) for line in (folder / "o_journal.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["status"] for entry in entries[:3]] == ["partial"] * 3
    assert entries[0]["usage_estimated"]
    assert server.asked[1][1] < 4  # the samples that had come whole were not asked for again
    assert rows_by_topic(folder) == {"甲": 4}


def test_an_answer_cut_at_its_first_sample_is_asked_for_in_smaller_parts(folder):
    def plan(number, topic, n):
        return {"content": array(topic, n)[:60], "finish_reason": "length"} if n > 2 else None

    with FaultServer(plan) as server:
        assert run(folder, server, ["甲"], n=6, max_rounds=8) == 0
    assert [n for _, n in server.asked][:4] == [6, 3, 1, 1]


def test_an_unknown_model_stops_the_run_with_those_that_are_there(folder, capsys):
    unknown = {"status": 404, "body": '{"error": {"message": "The model does not exist"}}'}
    with FaultServer(lambda *_: unknown, models=["model-a"]) as server:
        assert run(folder, server, names(100)) == 2
    assert "model-a" in capsys.readouterr().err


def start(folder, server, topics, **flags):
    command = [sys.executable, str(ROOT / "gen_SFT_data.py"), *arguments(folder, server, topics, **flags)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_rows(folder, rows, name="o.jsonl"):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if (folder / name).exists() and (folder / name).read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.005)
    raise AssertionError("no rows came")


def test_kill_and_resume_asks_only_for_what_is_missing(folder):
    topics = names(60)
    with FaultServer(latency_s=0.05) as server:
        for rows in (10, 60):
            process = start(folder, server, topics)
            wait_for_rows(folder, rows)
            process.kill()
            process.communicate()
        with open(folder / "o.jsonl", "ab") as file:
            file.write(b'{"text": "<|beginofutter')  # as a kill in the middle of a write would leave it
        with open(folder / "o_journal.jsonl", "ab") as file:
            file.write(b'{"time": "2026')
        done = {json.loads(line)["topic"] for line in (folder / "o_journal.jsonl").read_bytes().splitlines()[:-1]}
        server.asked.clear()
        process = start(folder, server, topics)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert {topic for topic, _ in server.asked} == set(topics) - done
    assert len(server.asked) == len(topics) - len(done)
    assert rows_by_topic(folder) == dict.fromkeys(topics, 2)
    assert "最后一行没有写完" in output
    everything = output.encode() + b"".join(path.read_bytes() for path in folder.iterdir())
    assert KEY.encode() not in everything


def test_ctrl_c_keeps_rows_and_says_how_to_go_on(folder):
    with FaultServer(latency_s=0.05) as server:
        process = start(folder, server, names(400))
        wait_for_rows(folder, 10)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert "用同一条命令可以继续" in output
    assert report(folder)["run"]["stopped"] == "中断"
    assert sum(rows_by_topic(folder).values()) == report(folder)["run"]["samples_accepted"] >= 10


def test_ctrl_c_waits_for_the_answers_in_flight(folder):
    with FaultServer(latency_s=0.5) as server:
        process = start(folder, server, names(400))
        wait_for_rows(folder, 1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "已付费" in output
    entries = (folder / "o_journal.jsonl").read_bytes().count(b"\n")
    assert entries == len(server.asked) == len(rows_by_topic(folder))


def test_ctrl_c_takes_the_answers_that_wait_to_be_looked_at(folder, monkeypatch):
    monkeypatch.setattr("LLM_data_gen.filling._GATHER_S", 60)

    def interrupt():
        wait_for_rows(folder, 3, "o_journal.jsonl")
        os.kill(os.getpid(), signal.SIGINT)

    with FaultServer() as server:
        threading.Thread(target=interrupt).start()
        assert run(folder, server, names(3)) == 130
    assert rows_by_topic(folder) == dict.fromkeys(names(3), 2)


def test_two_runs_on_one_output_refuse_each_other(folder, capsys):
    with FaultServer(latency_s=0.05) as server:
        process = start(folder, server, names(400))
        wait_for_rows(folder, 2)
        assert run(folder, server, names(400)) == 2
        process.kill()
        process.communicate()
    assert "另一个运行正在写这个文件" in capsys.readouterr().err


def test_the_key_is_nowhere_even_when_the_server_echoes_it(folder, capsys):
    def plan(number, topic, n):
        return array(topic, n).replace("请教老师", KEY) if number < 3 else {"status": 401, "body": f"bad key: {KEY}"}

    with FaultServer(plan) as server:
        assert run(folder, server, names(20), max_concurrency=1) == 2
    output = capsys.readouterr()
    files = b"".join(path.read_bytes() for path in folder.iterdir())
    assert len(rows_by_topic(folder)) == 3
    assert KEY.encode() not in (output.out + output.err).encode() + files
    assert "***" in output.err


def test_a_topic_that_moderation_refuses_fails_alone(folder, capsys):
    """It stands in the failed file with the reason, is asked once in a run, and keeps nobody else from being done."""
    topics = names(6)
    refusal = {"status": 400, "body": '{"error": {"message": "Content Exists Risk"}}'}
    with FaultServer(lambda number, topic, n: refusal if topic == topics[2] else None) as server:
        assert run(folder, server, topics) == 1
        assert len(server.asked) == 6
    assert rows_by_topic(folder) == dict.fromkeys(topics[:2] + topics[3:], 2)
    assert (folder / "o_failed_topics.txt").read_text(encoding="utf-8") == topics[2] + "\n"
    assert "审核" in report(folder)["run"]["topics_failed"][topics[2]]
    assert "审核" in capsys.readouterr().err


def test_answers_that_a_filter_empties_are_not_asked_for_until_the_rounds_are_over(folder):
    plan = {"content": "", "finish_reason": "content_filter"}
    with FaultServer(lambda *_: plan) as server:
        assert run(folder, server, names(1)) == 1
    assert len(server.asked) == 2
    assert "content_filter" in report(folder)["run"]["topics_failed"][names(1)[0]]


def test_streams_that_end_without_any_mark_are_no_outage(folder):
    """As a proxy leaves them that swallows the last events: the connection ended as it should."""
    from fault_answers import cut, event  # beside fault_server.py, which put its folder on the path

    def plan(number, topic, n):
        return {"body": b"".join(event({"content": piece}) for piece in cut(array(topic, n), 4)).decode()}

    with FaultServer(plan) as server:
        assert run(folder, server, names(20), max_outage_s=1) == 0
    assert len(server.asked) == 20
    assert rows_by_topic(folder) == dict.fromkeys(names(20), 2)


def test_no_paid_answer_is_lost_when_the_service_breaks_them_all_off(folder):
    """The run gives up, and what came is in the journal to the last answer."""
    with FaultServer(lambda *_: {"drop_after": 10}) as server:
        assert run(folder, server, names(30), max_outage_s=0.2) in (1, 2)
    journal = (folder / "o_journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(journal) == len(server.asked)


def test_a_model_that_thinks_unasked_gets_room_for_it(folder, capsys):
    """Its thinking counts towards max_tokens: the first answers are nothing else."""

    def plan(number, topic, n):
        small = server.bodies[number]["max_tokens"] < 12_000
        return {"content": "", "reasoning": "想" * 500, "finish_reason": "length"} if small else None

    with FaultServer(plan) as server:
        assert run(folder, server, names(8), max_concurrency=2) == 0
    assert len(server.asked) <= 10
    assert capsys.readouterr().err.count("模型在思考") == 1


def test_extra_fields_go_into_every_request(folder):
    with FaultServer() as server:
        assert run(folder, server, names(2), extra='{"enable_thinking": false, "top_p": 0.9}') == 0
    assert all(body["enable_thinking"] is False and body["top_p"] == 0.9 for body in server.bodies)


def test_a_run_killed_before_its_report_leaves_one_the_next_time(folder):
    with FaultServer() as server:
        assert run(folder, server, names(2)) == 0
        for kind in ("json", "html"):
            (folder / f"o_gen_report.{kind}").unlink()
        assert run(folder, server, names(2)) == 0
        assert len(server.asked) == 2
    assert report(folder)["samples_in_file"] == 4
    assert (folder / "o_gen_report.html").stat().st_size > 5000
