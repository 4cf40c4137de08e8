"""The chat page's server on real sockets, with a real tiny MiniCPM."""

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest

import inference_with_transformers
import inference_with_vLLM
from Firefly.component.errors import UserError
from Firefly.component.inference import Request
from Firefly.component.web import check_web_flags, hide_paths, open_page
from Firefly.component.web_models import load_models, parse_names
from tests.Firefly.component.page import FOREVER, HELLO, ask, call, parse, post, serving


@pytest.fixture(scope="module")
def models(tiny_minicpm):
    return load_models(parse("--web-models", f"base={tiny_minicpm}", f"stage1={tiny_minicpm}", "--temperature", "0"))


@pytest.fixture(scope="module")
def port(models):
    with serving(models) as port:
        yield port


def generating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "answer"]


def wait_until(holds, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.02)


def test_the_page_comes_with_its_guard_and_names_no_path(port, tiny_minicpm):
    for path in ("/", "/chat.js", "/markdown.js", "/chat.css"):
        _, answer = call(port, "GET", path)
        text = answer.read().decode()
        assert answer.status == 200
        assert "default-src 'none'; script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert not re.search("https?://", text), "nothing comes from another address"
    _, answer = call(port, "GET", "/api/models")
    text = answer.read().decode()
    about = json.loads(text)
    assert [model["name"] for model in about["models"]] == ["base", "stage1"]
    assert about["models"][0]["defaults"]["temperature"] == 0
    assert about["system"] == "系统"
    assert str(tiny_minicpm.parent) not in text
    assert call(port, "GET", "/../web.py")[1].status == 404


def test_answers_stream_and_are_those_of_the_script(port, tiny_minicpm):
    events = ask(port, temperature=0, max_new_tokens=12)
    pieces = [event["text"] for event in events[:-1]]
    args = inference_with_transformers.build_parser().parse_args(
        ["--model", str(tiny_minicpm), "--temperature", "0", "--max-new-tokens", "12"]
    )
    expected = inference_with_transformers.load_engine(args).stream(Request(0, HELLO), lambda piece: None)
    assert len(pieces) > 3
    assert expected.text.endswith(pieces[-1])
    assert events[-1] == {
        "done": {
            "text": expected.text,
            "finish_reason": expected.finish_reason,
            "completion_tokens": expected.completion_tokens,
        }
    }


def test_settings_reach_the_model(port):
    def text(**settings):
        return ask(port, max_new_tokens=24, temperature=1.0, **settings)[-1]["done"]["text"]

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text(seed=1, repetition_penalty=9.0) != text(seed=1)
    assert text(seed=1, top_p=1e-9) == text(seed=2, top_p=1e-9)
    assert ask(port, max_new_tokens=3, temperature=0)[-1]["done"]["completion_tokens"] == 3


def test_hanging_up_ends_the_generation_also_of_those_that_wait(port):
    """The tiny model's context holds many seconds of answer; its thread must end long before."""
    first, answer = post(port, {"model": "base", "messages": HELLO, "settings": FOREVER})
    assert json.loads(answer.readline())["text"]
    second, _ = post(port, {"model": "base", "messages": HELLO, "settings": FOREVER})  # waits for its turn
    wait_until(lambda: len(generating()) == 2)
    for connection in (second, first):
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    started = time.monotonic()
    wait_until(lambda: not generating())
    stopped_after = time.monotonic() - started
    assert stopped_after < 2
    assert ask(port, max_new_tokens=2)[-1]["done"], "the model answers the next one"


def test_an_answer_without_any_text_stops_too(port, monkeypatch):
    monkeypatch.setattr("Firefly.component.session.TextStream.add", lambda stream, token: "")
    connection, answer = post(port, {"model": "base", "messages": HELLO, "settings": FOREVER})
    assert answer.status == 200
    time.sleep(0.2)
    assert generating()
    connection.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not generating())


def test_models_answer_at_once(port):
    """Two columns: the second model's first piece does not wait for the first model's last."""
    one, first = post(port, {"model": "base", "messages": HELLO, "settings": FOREVER})
    two, second = post(port, {"model": "stage1", "messages": HELLO, "settings": FOREVER})
    assert json.loads(first.readline())["text"] == json.loads(second.readline())["text"]
    assert len(generating()) == 2
    for connection in (one, two):
        connection.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not generating())


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(port):
    old = [{"role": "user", "content": "龘" * 11_000}, {"role": "assistant", "content": "校训"}]  # 3 tokens each
    events = ask(port, [{"role": "system", "content": "系统"}, *old, *HELLO], max_new_tokens=2)
    assert "略去了最早的 1 轮" in events[0]["notice"]
    assert events[-1]["done"]
    (event,) = ask(port, [{"role": "user", "content": "龘" * 20000}])
    assert "请缩短这一条" in event["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "不是完整的 JSON"),
        (b"[" * 100_000, "不是完整的 JSON"),
        (b"[]", "应是 JSON 对象"),
        (b" " * (1 << 20) + b"{}", "超过 1 MB"),
        (b" " * (5 << 20) + b"{}", "超过 1 MB"),
        ({"model": "nope", "messages": HELLO}, "没有这个模型：'nope'，有的是：base、stage1"),
        ({"model": ["base"], "messages": HELLO}, "没有这个模型"),
        ({"model": "base"}, "messages 应是"),
        ({"model": "base", "messages": [{"role": "tool", "content": "x"}]}, "role 是 'tool'"),
        ({"model": "base", "messages": [{"role": "user", "content": " "}]}, "内容是空的"),
        ({"model": "base", "messages": [{"role": "user", "content": "\ud800"}]}, "不成对的代理字符"),
        ({"model": "base", "messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "最后一条消息应是提问"),
        ({"model": "base", "messages": HELLO, "settings": {"temperature": 9}}, "temperature 是 9，应是数，不小于 0"),
        ({"model": "base", "messages": HELLO, "settings": {"temperature": float("nan")}}, "temperature 是 nan"),
        ({"model": "base", "messages": HELLO, "settings": {"top_p": 0}}, "top_p 是 0，应是数，大于 0、不大于 1"),
        ({"model": "base", "messages": HELLO, "settings": {"max_new_tokens": 1.5}}, "应是整数"),
        ({"model": "base", "messages": HELLO, "settings": {"seed": True}}, "seed 是 True"),
        ({"model": "base", "messages": HELLO, "settings": {"model_dir": "/"}}, "没有 'model_dir' 这个设置"),
    ],
)
def test_bad_questions_are_one_sentence(port, body, says):
    _, answer = post(port, body)
    assert answer.status == 400
    assert says in json.loads(answer.read())["error"]


def test_who_hangs_up_before_the_question_is_whole_is_no_failure(port, capfd):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        connection.sendall(head.encode())
        time.sleep(0.2)
    assert ask(port, max_new_tokens=2)[-1]["done"]
    assert "ClientDisconnect" not in capfd.readouterr().err


def test_other_sites_are_kept_out(port, models):
    question = {"model": "base", "messages": HELLO, "settings": {"max_new_tokens": 2}}
    _, answer = post(port, question, **{"Content-Type": "text/plain"})
    assert answer.status == 400
    _, answer = post(port, question, Host="evil.example:7860")
    assert answer.status == 403
    assert "--host" in json.loads(answer.read())["error"]
    for host in ("localhost:9", "[::1]:9", "127.0.0.1"):
        assert call(port, "GET", "/", Host=host)[1].status == 200
    with serving(models, only_here=False) as open_port:
        assert call(open_port, "GET", "/", Host="gpu-server:7860")[1].status == 200


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--prompt", "x"], "不能同时给 --prompt"),
        (["--web-models", "a=x", "--model", "x"], "不能同时给 --model"),
        (["--port", "70000"], "--port 70000"),
        (["--temperature", "-1"], "--temperature 是 -1.0"),
        ([], "没有给出模型"),
        (["--web-models", "a=/nowhere/x"], "/nowhere/x"),
        (["--web-models", "x/m", "y/m"], "名字 m 用了两次"),
        (["--web-models", "=m"], "应写成 名字=模型"),
    ],
)
def test_bad_flags_are_one_sentence(argv, says, capsys):
    assert inference_with_transformers.main(["--web", "--port", "0", *argv]) == 2
    assert says in capsys.readouterr().err


def test_an_engines_page_wants_a_server():
    with pytest.raises(UserError, match="--serve 启动服务"):
        check_web_flags(parse("--model", "x", script=inference_with_vLLM))
    with pytest.raises(UserError, match="不能同时给 --web"):
        inference_with_vLLM.check_server_flags(parse("--serve", script=inference_with_vLLM))


def test_a_port_in_use_is_known_before_the_weights_are_read(tiny_minicpm):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        args = parse("--model", str(tiny_minicpm), "--port", str(taken.getsockname()[1]))
        with pytest.raises(UserError, match="不能在这里监听"):
            open_page(args)


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    assert parse_names(["base=x/y", "openbmb/MiniCPM4-0.5B", "a=b"], "--model") == {
        "base": "x/y",
        "MiniCPM4-0.5B": "openbmb/MiniCPM4-0.5B",
        "a=b": "a=b",
    }
    assert (
        hide_paths("在 /home/a/b.json 里，/v1 与 https://x.y/z/w 不变") == "在 （路径） 里，/v1 与 https://x.y/z/w 不变"
    )
