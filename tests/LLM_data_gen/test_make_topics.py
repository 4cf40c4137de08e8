"""make_topics.py against a teacher on a real socket: what it asks, keeps, refuses, and what a kill leaves behind."""

import asyncio
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from aiohttp import web

from LLM_data_gen import client, make_topics
from LLM_data_gen.journal import only_run
from LLM_data_gen.topics import read_topics

SCRIPT = Path(make_topics.__file__)
SUBJECT = "哈尔滨工业大学"
CATEGORIES = ["校史", "专业", "生活"]


def topic(number):
    """Any number of topics that have no character in common."""
    return "".join(chr(0x4E00 + 8 * number + i) for i in range(8))


class FakeTeacher:
    """Answers /v1/chat/completions and /v1/responses with what ``plan(category, n, call number)`` returns.

    A str is the text, a dict the whole body of a response, an int a status, (seconds, reply) a late one; None: distinct topics.
    """

    def __init__(self, plan=lambda category, n, number: None):
        self.plan, self.asked, self.bodies, self.paths, self._given = plan, [], [], [], 0

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/responses", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _answer(self, request):
        body = await request.json()
        prompt = (body.get("messages") or body["input"])[-1]["content"]
        found = re.search(r"类别：(.+)", prompt)
        category, n = (found[1], int(re.search(r"拟定 (\d+) 个", prompt)[1])) if found else ("", 0)
        number = len(self.asked)
        self.asked.append((category, n))
        self.bodies.append(body)
        self.paths.append(request.path)
        reply = self.plan(category, n, number)
        if isinstance(reply, tuple):
            await asyncio.sleep(reply[0])
            reply = reply[1]
        if isinstance(reply, int):
            return web.Response(status=reply, text='{"error": {"message": "tool type not known"}}')
        if reply is None:
            reply = dump(CATEGORIES if not category else self.fresh(n))
        if isinstance(reply, str) and request.path.endswith("/responses"):
            reply = response(reply)
        if isinstance(reply, str):
            message = {"role": "assistant", "content": reply}
            usage = {"prompt_tokens": 100, "completion_tokens": 20}
            reply = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        return web.json_response(reply)

    def fresh(self, n):
        self._given += n
        return [topic(i) for i in range(self._given - n, self._given)]


def dump(value):
    return json.dumps(value, ensure_ascii=False)


def response(text, notes=(), searches=1):
    """A reply of the Responses API, as OpenAI documents it."""
    action = {"type": "search", "query": "哈工大", "sources": [{"type": "url", "url": "https://hit.edu.cn/all"}]}
    calls = [{"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action}] * searches
    part = {"type": "output_text", "text": text, "annotations": list(notes)}
    message = {"type": "message", "role": "assistant", "content": [part]}
    return {"status": "completed", "output": [*calls, message], "usage": {"input_tokens": 900, "output_tokens": 50}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path


def arguments(server, n, *flags):
    base = ["--subject", SUBJECT, "--n", str(n), "--out", "topics.txt", "--base-url", server.url, "--model", "m"]
    return [*base, *map(str, flags)]


def run(server, n, *flags):
    return make_topics.main(arguments(server, n, *flags))


def written(name="topics.txt"):
    return read_topics(Path(name), lambda message: None)


def sections():
    return re.findall(r"^# (.+)$", Path("topics.txt").read_text(encoding="utf-8"), re.MULTILINE)[1:]


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_categories_are_asked_for_then_topics_evenly(folder, capsys):
    with FakeTeacher() as server:
        assert run(server, 10) == 0
    assert server.asked[0] == ("", 0)
    assert sorted(server.asked[1:]) == sorted([("校史", 4), ("专业", 3), ("生活", 3)])
    assert len(written()) == len(set(written())) == 10
    assert sections() == CATEGORIES
    said = capsys.readouterr()
    assert said.out == ""
    assert "主题 10 个，3 类；丢弃 0 个；" in said.err
    assert "4 个回答，输入 400、输出 80 token" in said.err
    assert "sk-test" not in said.err + (folder / "topics_journal.jsonl").read_text(encoding="utf-8")
    assert not (folder / "topics_sources.jsonl").exists()
    assert SUBJECT in server.bodies[1]["messages"][-1]["content"]
    assert server.bodies[1]["temperature"] == 0.8


def test_long_orders_come_in_several_rounds(folder):
    with FakeTeacher() as server:
        assert run(server, 90, "--categories", "校史") == 0
    assert server.asked == [("校史", 40), ("校史", 40), ("校史", 10)]
    assert topic(39) in server.bodies[1]["messages"][-1]["content"]  # told what it has


def test_what_repeats_is_asked_for_again_in_its_category(folder, capsys):
    def plan(category, n, number):
        if number == 0:
            return dump(
                [
                    "校园网怎样连接和排错",
                    "校园网，怎样连接和排错？",
                    "校园网怎么连接和排错",
                    "太短了",
                    "1. 校史馆的参观路线",
                ]
            )
        return dump([topic(number), topic(number + 5), topic(number + 9)])

    with FakeTeacher(plan) as server:
        assert run(server, 5, "--categories", "校史") == 0
    assert server.asked == [("校史", 5), ("校史", 3)]
    assert written() == ["校园网怎样连接和排错", "校史馆的参观路线", topic(1), topic(6), topic(10)]
    assert "丢弃 3 个（重复 1、相近 1、太短 1）" in capsys.readouterr().err
    assert "校史馆的参观路线" in server.bodies[1]["messages"][-1]["content"]  # told what it has


def test_the_result_does_not_depend_on_which_answer_came_first(folder):
    def run_with(slow):
        def plan(category, n, number):
            own = CATEGORIES.index(category) * 50
            names = [topic(99), topic(own)] if n == 2 else [topic(own + 1)]
            return (0.2 if category == slow else 0, dump(names))

        with FakeTeacher(plan) as server:
            assert run(server, 6, "--categories", "校史,专业,生活", "--overwrite") == 0
        (folder / "topics_journal.jsonl").unlink()
        return (folder / "topics.txt").read_bytes()

    assert run_with("校史") == run_with("生活")
    assert written() == [topic(n) for n in (99, 0, 50, 51, 100, 101)]


def test_too_few_is_said_with_why_and_the_file_is_written(folder, capsys):
    with FakeTeacher(lambda category, n, number: dump(["新生报到前的物品清单"])) as server:
        assert run(server, 3, "--categories", "校史,专业") == 1
    assert written() == ["新生报到前的物品清单"]
    said = capsys.readouterr().err
    assert "要 3 个，少 2 个：各类别都问不出新的主题" in said
    # 校史 gives it once, then twice the same; 专业 twice the same
    assert len(server.asked) == 5
    assert "重复 4" in said


def test_after_too_few_the_same_command_can_ask_on(folder):
    with FakeTeacher(lambda category, n, number: dump([topic(99)])) as server:
        assert run(server, 3, "--categories", "校史") == 1
        server.asked.clear()
        server.plan = lambda category, n, number: None
        assert run(server, 3, "--categories", "校史", "--overwrite") == 0
        assert server.asked == [("校史", 2)]
    assert written() == [topic(99), topic(0), topic(1)]


def test_a_request_that_keeps_failing_is_made_up_for_in_the_next_round(folder, capsys, monkeypatch):
    quick = functools.partial(client.Settings, max_tries=1, retry_wait_s=0.01)
    monkeypatch.setattr(client, "Settings", lambda **given: quick(**given))
    with FakeTeacher(lambda category, n, number: 500 if number == 0 else None) as server:
        assert run(server, 4, "--categories", "校史,专业", "--max-concurrency", 1) == 0
    assert server.asked == [("校史", 2), ("专业", 2), ("校史", 2)]
    assert "校史：请求 1 次都失败" in capsys.readouterr().err


def test_nothing_usable_writes_nothing(folder, capsys):
    with FakeTeacher(lambda category, n, number: "抱歉，我不能回答。") as server:
        assert run(server, 3, "--categories", "校史") == 1
    assert not (folder / "topics.txt").exists()
    assert len(server.asked) == make_topics.ROUNDS
    assert "读不懂的回答 6 个" in capsys.readouterr().err


# --- stopped and started again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_after_a_kill_only_what_is_missing_is_asked(folder, how):
    with FakeTeacher(lambda category, n, number: (60, None) if category == "生活" else None) as server:
        process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments(server, 9)], cwd=folder)
        journal = folder / "topics_journal.jsonl"
        deadline = time.monotonic() + 20
        while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(how)
        if how == signal.SIGINT:  # the first one waits for what is paid for
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(how)
        assert process.wait() == (130 if how == signal.SIGINT else -how)
        assert not (folder / "topics.txt").exists()
        server.asked.clear()
        server.plan = lambda category, n, number: None
        assert run(server, 9) == 0
        assert server.asked == [("生活", 3)]
        assert len(written()) == 9
        assert sections() == CATEGORIES
        server.asked.clear()
        before = written()
        assert run(server, 9, "--overwrite") == 0  # finished: nothing is asked, the same comes out
        assert server.asked == []
        assert written() == before
        assert run(server, 12, "--overwrite") == 0
        assert sum(n for _, n in server.asked) == 3
        assert set(before) < set(written())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_the_answers_that_are_on_their_way(folder, how):
    with FakeTeacher(lambda category, n, number: (0.8, None) if category else None) as server:
        process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments(server, 9)], cwd=folder)
        while len(server.asked) < 4:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        assert process.wait() == 130
        server.asked.clear()
        assert run(server, 9) == 0
        assert server.asked == []
        assert len(written()) == 9


def test_a_partial_last_line_of_the_journal_is_cut(folder):
    with FakeTeacher() as server:
        run(server, 6)
        whole = (folder / "topics_journal.jsonl").read_bytes()
        (folder / "topics_journal.jsonl").write_bytes(whole[:-30])
        (folder / "topics.txt").unlink()
        server.asked.clear()
        assert run(server, 6) == 0
        assert [n for _, n in server.asked] == [2]


def test_a_refused_key_stops_with_the_paid_answers_kept(folder, capsys):
    with FakeTeacher(lambda category, n, number: 401 if number == 2 else None) as server:
        assert run(server, 6, "--max-concurrency", 1) == 2
        assert len(server.asked) == 3
        assert "API 密钥无效" in capsys.readouterr().err
        assert not (folder / "topics.txt").exists()
        server.asked.clear()
        server.plan = lambda category, n, number: None
        assert run(server, 6) == 0
    assert [n for _, n in server.asked] == [2, 2]


def test_the_journal_of_another_order_is_refused_and_stays(folder, capsys):
    with FakeTeacher() as server:
        run(server, 3)
        before = (folder / "topics_journal.jsonl").read_bytes()
        argv = ["--subject", "别的大学", *arguments(server, 3)[2:], "--overwrite"]
        assert make_topics.main(argv) == 2
    assert "另一次任务" in capsys.readouterr().err
    assert (folder / "topics_journal.jsonl").read_bytes() == before


# --- with a search tool -----------------------------------------------------------------------------------------------


def test_sources_stand_beside_each_topic(folder):
    def plan(category, n, number):
        if not category:
            return None
        items = [
            {"topic": "新生报到前的物品清单", "sources": ["https://hit.edu.cn/made-up"]},
            {"topic": "图书馆自习座位怎样预约", "sources": []},
        ]
        text = dump(items)
        at = text.index("图书馆") + 3
        note = {"type": "url_citation", "start_index": at, "end_index": at + 2, "title": "图书馆"}
        return response(text, [note | {"url": "https://lib.hit.edu.cn/seat?utm_source=openai"}])

    with FakeTeacher(plan) as server:
        assert run(server, 2, "--web-search", "--categories", "校史") == 0
    assert server.paths == ["/v1/responses"]
    body = server.bodies[0]
    assert body["tools"] == [{"type": "web_search"}]
    assert set(body) == {"model", "input", "tools"}
    records = [json.loads(line) for line in (folder / "topics_sources.jsonl").read_text("utf-8").splitlines()]
    page = {"title": "图书馆", "url": "https://lib.hit.edu.cn/seat"}
    assert records[1] == {"topic": "图书馆自习座位怎样预约", "category": "校史", "sources": [page]}
    # nothing cited within it, and its own URL is none that the service looked at: the pages of the answer
    assert records[0]["sources"] == [{"title": "", "url": "https://hit.edu.cn/all"}, page]
    assert written() == [record["topic"] for record in records]


@pytest.mark.parametrize("status", [404, 400])
def test_a_service_without_the_tool_is_named_with_what_to_do(folder, capsys, status):
    with FakeTeacher(lambda category, n, number: status) as server:
        assert run(server, 9, "--web-search") == 2
        assert len(server.asked) == 1
    said = capsys.readouterr().err
    assert f"没有可用的搜索工具（POST /responses 得到 HTTP {status}）：请去掉 --web-search" in said
    assert "tool type not known" in said
    assert "Traceback" not in said
    assert os.listdir(folder) == ["topics.txt.lock"]


def test_a_service_that_passes_over_the_tool_is_found_out_early(folder, capsys):
    def plan(category, n, number):
        names = [topic(number * n + i) for i in range(n)]
        return response(dump(CATEGORIES if not category else names), searches=0)

    with FakeTeacher(plan) as server:
        assert run(server, 90, "--web-search", "--max-concurrency", 1) == 2
        assert len(server.asked) == 3
    assert "一次搜索也没有" in capsys.readouterr().err


# --- bad flags --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--n", 0], "--n 0 太小"),
        (["--max-concurrency", 0], "--max-concurrency 0 太小"),
        (["--temperature", -1], "--temperature -1.0 太小"),
        (["--temperature", "nan"], "--temperature nan 太小"),
        (["--subject", " "], "--subject 要写出"),
        (["--categories", " ，, "], "没有类别"),
        (["--categories", "missing.txt"], "找不到类别文件"),
        (["--out", "."], "这是一个目录"),
        (["--out", "kept.txt"], "文件已经存在"),
        (["--base-url", "example"], "不是完整的网址"),
    ],
)
def test_bad_flags_are_one_sentence_and_no_request(folder, capsys, flags, said):
    (folder / "kept.txt").write_text("保留\n", encoding="utf-8")
    with FakeTeacher() as server:
        assert run(server, 3, *flags) == 2
        assert server.asked == []
    error = capsys.readouterr().err
    assert said in error
    assert error.count("错误：") == 1
    assert (folder / "kept.txt").read_text(encoding="utf-8") == "保留\n"


def test_a_second_run_on_one_output_is_refused(folder, capsys):
    with only_run(Path("topics.txt")), FakeTeacher() as server:
        assert run(server, 3) == 2
        assert server.asked == []
    assert "另一个运行正在写" in capsys.readouterr().err


def test_categories_of_a_file_keep_their_order(folder):
    (folder / "c.txt").write_text("# 说明\n三个校区\n校史、文化\n\n", encoding="utf-8")
    with FakeTeacher() as server:
        assert run(server, 3, "--categories", "c.txt") == 0
    assert sections() == ["三个校区", "校史", "文化"]


def test_help_is_quick_and_runs_from_any_folder(tmp_path):
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--web-search" in result.stdout
    assert not re.search(r"\| +(aiohttp|orjson|numba|torch)$", result.stderr, re.MULTILINE)
