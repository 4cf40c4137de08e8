"""gen_SFT_data.py in peace: what it asks, what it accepts, what it reports, what it refuses to begin."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import gen_SFT_data

ROOT = Path(__file__).resolve().parent.parent
helpers = runpy.run_path(str(ROOT / "tests/LLM_data_gen/gen_helpers.py"))
FaultServer, good_samples, folder = helpers["FaultServer"], helpers["good_samples"], helpers["folder"]
arguments, run, array, names = helpers["arguments"], helpers["run"], helpers["array"], helpers["names"]
rows_by_topic, report = helpers["rows_by_topic"], helpers["report"]


def journal(folder):
    return [json.loads(line) for line in (folder / "o_journal.jsonl").read_text(encoding="utf-8").splitlines()]


def test_whole_run_then_a_second_one_that_asks_nothing(folder, capsys):
    topics = names(25)
    with FaultServer() as server:
        assert run(folder, server, topics, n=3) == 0
        assert len(server.asked) == 25
        assert server.most_at_once <= 10
        before = (folder / "o.jsonl").read_bytes()
        assert run(folder, server, topics, n=3) == 0
        assert len(server.asked) == 25
    assert rows_by_topic(folder) == dict.fromkeys(topics, 3)
    assert (folder / "o.jsonl").read_bytes() == before
    told = report(folder)
    assert told["topics"] == {"asked": 25, "done": 25, "failed": 0}
    assert (told["run"]["samples_accepted"], told["run"]["requests"]) == (75, 25)
    assert told["run"]["prompt_tokens"] > told["run"]["cached_tokens"] > 0
    assert told["run"]["completion_tokens"] == told["all_runs"]["completion_tokens"] > 75 * 100
    assert (folder / "o_gen_report.html").stat().st_size > 5000
    assert sorted(entry["topic"] for entry in journal(folder)) == sorted(topics)
    assert not (folder / "o_failed_topics.txt").exists()
    output = capsys.readouterr()
    assert "没有发出请求" in output.err
    assert output.out == ""


def test_more_samples_a_topic_later_asks_only_for_the_difference(folder):
    with FaultServer() as server:
        run(folder, server, names(2), n=2)
        server.asked.clear()
        assert run(folder, server, names(2), n=5) == 0
    assert sorted(server.asked) == [(topic, 3) for topic in names(2)]
    assert "第零个问题" in server.bodies[-1]["messages"][1]["content"]  # told what it has
    assert rows_by_topic(folder) == dict.fromkeys(names(2), 5)
    assert len(report(folder)["earlier_runs"]) == 1


def test_long_orders_are_split(folder):
    with FaultServer() as server:
        assert run(folder, server, names(1), n=20) == 0
    assert [n for _, n in server.asked] == [8, 8, 4]


def test_only_what_is_missing_is_asked_again(folder):
    sound = array("甲", 4)
    answers = [
        "```json\n" + array("甲", 1) + "\n```",  # one of four
        sound[: sound.rindex("关于")],  # cut off within the fourth: the second and third are new
        "没有",
    ]
    with FaultServer(lambda number, topic, n: answers[number] if number < 3 else array("甲", n, 3)) as server:
        assert run(folder, server, ["甲"], n=4) == 0
    assert [n for _, n in server.asked] == [4, 3, 1, 1]
    assert rows_by_topic(folder) == {"甲": 4}
    told = report(folder)["run"]
    assert told["samples_returned"] == 1 + 4 + 1
    assert {reason: entry["count"] for reason, entry in told["samples_rejected"].items()} == {
        "duplicate": 1,
        "not_an_object": 1,
    }
    assert {problem: entry["count"] for problem, entry in told["answers_by_problem"].items()} == {
        "cut_off": 1,
        "no_samples": 1,
    }


def test_every_rejected_sample_has_its_reason(folder):
    bad = good_samples("甲", 5)
    bad[0]["output"] = "很短"
    bad[1]["input"] = "English only, nothing else in this question."
    bad[2] = "不是对象"
    del bad[3]["output"]
    first = json.dumps([*bad, bad[4], *good_samples("甲", 2, 10)], ensure_ascii=False)
    with FaultServer(lambda number, topic, n: first) as server:
        assert run(folder, server, ["甲"], n=2) == 0
    told = report(folder)["run"]
    counts = {reason: entry["count"] for reason, entry in told["samples_rejected"].items()}
    assert counts == {
        "output_too_short": 1,
        "input_low_chinese": 1,
        "not_an_object": 1,
        "missing_field": 1,
        "duplicate": 1,
        "surplus": 1,
    }
    assert told["samples_returned"] == 8 == 2 + sum(counts.values())


def test_topics_that_cannot_be_filled_are_listed_and_can_be_fed_back(folder, capsys):
    def plan(number, topic, n):
        return "抱歉，没有。" if topic == "乙" else {"status": 500} if topic == "丙" else None

    with FaultServer(plan) as server:
        assert run(folder, server, ["甲", "乙", "丙"], max_tries=3, max_rounds=2) == 1
        assert Counter(topic for topic, _ in server.asked) == {"甲": 1, "乙": 2, "丙": 3}
        failed = folder / "o_failed_topics.txt"
        assert sorted(failed.read_text(encoding="utf-8").split()) == ["丙", "乙"]
        assert set(report(folder)["run"]["topics_failed"]) == {"乙", "丙"}
        server.plan = lambda *_: None
        argv = arguments(folder, server, [])
        argv[argv.index("--topics-file") + 1] = str(failed)
        assert gen_SFT_data.main(argv) == 0
    assert rows_by_topic(folder) == {"甲": 2, "乙": 2, "丙": 2}
    assert not failed.exists()
    assert "2 个主题没有凑齐" in capsys.readouterr().err


def test_a_dry_run_asks_nothing_and_needs_no_key(folder, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    topics = folder / "topics.txt"
    topics.write_text("".join(f"{topic}\n" for topic in names(100)), encoding="utf-8")
    argv = ["--topics-file", str(topics), "--out", str(folder / "o.jsonl"), "--dry-run"]
    assert gen_SFT_data.main(argv) == 0
    said = capsys.readouterr().err
    assert "至少 100 次请求" in said
    assert re.search(r"估计 ¥[\d.]+ – ¥[\d.]+ – ¥[\d.]+", said)  # of deepseek-flash
    assert not (folder / "o.jsonl").exists()


def test_the_budget_stops_the_run_and_is_for_all_runs_together(folder, capsys, monkeypatch):
    from LLM_data_gen import cost, spending

    price = cost.Price("x", "CNY", "https://x.cn", "2026-11-01", cost.Rates(1.0, 0.1, 2000.0))
    monkeypatch.setattr(spending, "price_of", lambda *_: price)
    usage = {"prompt_tokens": 0, "completion_tokens": 500}  # one yuan an answer
    with FaultServer(lambda number, topic, n: {"usage": usage}) as server:
        assert run(folder, server, names(100), budget=30, max_concurrency=2) == 1
        asked = len(server.asked)
        assert 28 <= asked <= 30
        assert "到了 --budget 30" in capsys.readouterr().err
        assert report(folder)["all_runs"]["cost"] == asked
        assert run(folder, server, names(100), budget=30) == 1
        assert len(server.asked) == asked
        assert run(folder, server, names(100), budget=40) == 1
        assert asked < len(server.asked) <= 40
    assert sum(entry["cost"] for entry in journal(folder)) == len(server.asked)


def test_a_budget_without_a_price_is_refused(folder, capsys):
    with FaultServer() as server:
        assert run(folder, server, names(2), budget=5) == 2
    assert "算不出花费" in capsys.readouterr().err
    assert not server.asked


def test_an_output_that_was_lost_is_made_again_of_the_journal(folder, capsys):
    with FaultServer() as server:
        assert run(folder, server, names(20)) == 0
        before = (folder / "o.jsonl").read_bytes()
        (folder / "o.jsonl").unlink()
        assert run(folder, server, names(20)) == 0
        assert len(server.asked) == 20
    assert (folder / "o.jsonl").read_bytes() == before
    assert "取回 40 条" in capsys.readouterr().err


def test_the_surplus_of_an_answer_is_used_when_more_are_wanted(folder):
    with FaultServer(lambda number, topic, n: array(topic, 5)) as server:
        assert run(folder, server, names(3), n=2) == 0
        assert run(folder, server, names(3), n=5) == 0
        assert len(server.asked) == 3
    assert rows_by_topic(folder) == dict.fromkeys(names(3), 5)


def test_revalidate_asks_nothing_and_keeps_what_was_there(folder, capsys):
    with FaultServer() as server:
        run(folder, server, names(3))
        before = (folder / "o.jsonl").read_bytes()
        argv = [*arguments(folder, server, names(3)), "--revalidate"]
        assert gen_SFT_data.main(argv) == 0
        assert len(server.asked) == 3
        assert gen_SFT_data.main([*argv, "--out", str(folder / "other.jsonl")]) == 2
    assert (folder / "o.jsonl").read_bytes() == before == (folder / "o_before_revalidate.jsonl").read_bytes()
    assert "没有这份日志" in capsys.readouterr().err


def test_what_is_not_accepted_and_what_was_thought_can_be_kept(folder):
    bad = good_samples("甲", 3)
    bad[0]["output"] = "很短"
    answer = {"content": json.dumps(bad, ensure_ascii=False), "reasoning": "先想一想"}
    with FaultServer(lambda *_: answer) as server:
        argv = arguments(folder, server, ["甲"], rejected_out=folder / "rejected.jsonl")
        assert gen_SFT_data.main([*argv, "--keep-reasoning", "--json-mode", "--mode", "reasoner"]) == 0
    rejected = json.loads((folder / "rejected.jsonl").read_text(encoding="utf-8"))
    assert (rejected["reason"], rejected["sample"]["output"]) == ("output_too_short", "很短")
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["reasoning"] for row in rows] == ["先想一想"] * 2
    assert "先想一想" not in rows[0]["text"]
    assert server.bodies[0]["response_format"] == {"type": "json_object"}
    assert server.bodies[0]["thinking"] == {"type": "enabled"}
    assert '"samples"' in server.bodies[0]["messages"][1]["content"]


def test_near_questions_are_replaced_and_each_sample_is_asked_from_another_side(folder):
    first = good_samples("甲", 2)
    first[1] = first[1] | {"input": first[0]["input"].replace("我想请教", "我想问问")}
    answers = [json.dumps(first, ensure_ascii=False), array("甲", 1, 7)]
    with FaultServer(lambda number, topic, n: answers[number]) as server:
        assert run(folder, server, ["甲"]) == 0
    assert report(folder)["run"]["samples_rejected"]["near_duplicate"]["count"] == 1
    sides = [re.findall("提问者是(.+)，", body["messages"][1]["content"]) for body in server.bodies]
    assert [len(found) for found in sides] == [2, 1]
    assert len({*sides[0], *sides[1]}) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"n_per_topic": 0}, "--n-per-topic"),
        ({"max_concurrency": 0}, "--max-concurrency"),
        ({"timeout_s": 0}, "--timeout-s"),
        ({"temperature": "nan"}, "--temperature"),
        ({"topics_file": "nowhere.txt"}, "nowhere.txt"),
        ({"base_url": "api.example.com"}, "--base-url"),
        ({"out": "."}, "目录"),
        ({"out": "topics.txt/o.jsonl"}, "目录"),
        ({"out": "topics.txt"}, "--topics-file"),
        ({"rejected_out": "topics.txt"}, "--topics-file"),
        ({"rejected_out": "o.jsonl"}, "--out"),
        ({"rejected_out": "o_journal.jsonl"}, "日志"),
        ({"out": "notes.txt"}, "notes.txt:1"),
        ({"rejected_out": "notes.txt"}, "notes.txt:1"),
        ({"extra": "no json"}, "--extra"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_asked(folder, capsys, flags, said):
    (folder / "notes.txt").write_text("第一行\n最后一行没有换行", encoding="utf-8")
    with FaultServer() as server:
        assert run(folder, server, names(2), **flags) == 2
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "第一行\n最后一行没有换行"
    assert not server.asked
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("错误") and said in line]


def test_help_is_quick_from_any_folder_and_names_every_promised_flag(folder):
    started = time.monotonic()
    result = subprocess.run([sys.executable, str(ROOT / "gen_SFT_data.py"), "--help"], capture_output=True, text=True)
    assert time.monotonic() - started < 1.0
    assert result.returncode == 0
    promised = ["--api-key", "--base-url", "--model", "--mode", "--out", "--topics-file", "--n-per-topic"]
    promised += ["--max-concurrency", "--temperature"]
    assert set(promised) <= set(re.findall(r"--[a-z-]+", result.stdout))
    args = gen_SFT_data.build_parser().parse_args([])
    assert (args.n_per_topic, args.max_concurrency, args.temperature) == (6, 50, 0.8)
    assert (args.model, args.mode, os.fspath(args.out)) == ("deepseek-chat", "chat", "data/raw/hit/train.jsonl")
