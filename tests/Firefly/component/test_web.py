"""The chat page's server on real sockets, with a real tiny MiniCPM and with a server that never ends by itself."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import uvicorn

import inference_with_transformers
import inference_with_vLLM
from Firefly.component.errors import UserError
from Firefly.component.inference import Request
from Firefly.component.web import build_app, check_web_flags, hide_paths, open_page
from Firefly.component.web_models import (
    Stopped,
    before_each_layer,
    connect_models,
    fit_history,
    load_models,
    parse_names,
)

HELLO = [{"role": "user", "content": "你是谁？"}]
FOREVER = {"max_new_tokens": 1 << 20, "temperature": 0}


@contextlib.contextmanager
def serving(models, only_here=True):
    """Serve the page on a free port in a thread; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(models, "系统", only_here), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)
    listener.close()


def parse(*argv: str, script=inference_with_transformers):
    return script.build_parser().parse_args(["--web", *argv])


@pytest.fixture(scope="module")
def models(tiny_minicpm):
    return load_models(parse("--web-models", f"base={tiny_minicpm}", f"stage1={tiny_minicpm}", "--temperature", "0"))


@pytest.fixture(scope="module")
def adapter(tiny_minicpm, tmp_path_factory) -> Path:
    """A LoRA adapter that changes answers; it names its base."""
    import torch
    from peft import LoraConfig, get_peft_model

    from Firefly.component.checkpoint import load_causal_lm

    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter") / "style"
    get_peft_model(load_causal_lm(tiny_minicpm), lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def port(models):
    with serving(models) as port:
        yield port


def call(port: int, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    return connection, connection.getresponse()


def post(port: int, body: object, **headers: str):
    headers = {"Content-Type": "application/json"} | headers
    return call(port, "POST", "/api/chat", body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)


def ask(port: int, messages=HELLO, model="base", **settings) -> list[dict]:
    _, answer = post(port, {"model": model, "messages": messages, "settings": settings})
    assert answer.status == 200
    return [json.loads(line) for line in answer]


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


def test_a_stopped_answer_ends_between_two_layers(tiny_minicpm):
    """Not only between two tokens: reading a long prompt may take minutes."""
    import torch

    from Firefly.component.checkpoint import load_causal_lm

    model, begun = load_causal_lm(tiny_minicpm), []

    def emit(event):
        begun.append(event)
        if len(begun) == 3:  # the model itself, its first layer, its second layer
            raise Stopped

    with pytest.raises(Stopped), before_each_layer(model, emit):
        model(torch.tensor([[1, 2, 3]]))
    model(torch.tensor([[1, 2, 3]]))
    assert begun == [{}] * 3, "and nothing stays behind"


def test_who_waits_for_shared_weights_is_told_so(tiny_minicpm, adapter):
    models = load_models(parse("--model", str(tiny_minicpm), "--adapter", f"style={adapter}"))
    with serving(models) as port:
        first, answer = post(port, {"model": "base", "messages": HELLO, "settings": FOREVER})
        assert json.loads(answer.readline())["text"]
        second, waiting = post(port, {"model": "style", "messages": HELLO, "settings": {"max_new_tokens": 2}})
        assert "答完轮到它" in json.loads(waiting.readline())["wait"]
        first.sock.shutdown(socket.SHUT_RDWR)
        assert "done" in json.loads(waiting.read().splitlines()[-1])
        second.close()


def test_a_conversation_is_cut_while_an_answer_still_fits(tiny_minicpm):
    from dataclasses import replace

    from Firefly.component.session import open_session

    session = open_session(parse("--model", str(tiny_minicpm), "--max-new-tokens", "512"))
    turn = [{"role": "user", "content": "龘" * 10}, {"role": "assistant", "content": "校训"}]
    whole = len(session.encode(Request(0, [*turn, *HELLO])))
    tight = replace(session, context=whole + 1)  # all of it would fit, and leave one token for the answer
    request, left_out = fit_history(tight, [*turn, *HELLO])
    assert (left_out, request.messages) == (1, HELLO)
    assert fit_history(replace(session, context=2 * whole), [*turn, *HELLO])[1] == 0


def test_adapters_share_their_base_and_stand_beside_it(tiny_minicpm, adapter):
    models = load_models(parse("--model", str(tiny_minicpm), "--adapter", f"style={adapter}", "--temperature", "0"))
    merged = load_models(parse("--web-models", f"stage1={adapter}", "--temperature", "0"))
    assert [model.name for model in [*models, *merged]] == ["base", "style", "stage1"]
    with serving([*models, *merged]) as port:
        texts = [
            ask(port, model=name, max_new_tokens=12)[-1]["done"]["text"]
            for name in ("style", "base", "style", "stage1")
        ]
    assert texts[0] == texts[2] == texts[3] != texts[1]


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
        ({"model": "nope", "messages": HELLO}, "没有这个模型：'nope'，有的是：base、stage1"),
        ({"model": ["base"], "messages": HELLO}, "没有这个模型"),
        ({"model": "base"}, "messages 应是"),
        ({"model": "base", "messages": [{"role": "tool", "content": "x"}]}, "role 是 'tool'"),
        ({"model": "base", "messages": [{"role": "user", "content": " "}]}, "内容是空的"),
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


class Endless(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that streams until its client hangs up."""

    seen: list[dict] = []
    listed: list[str] = []
    hung_up = threading.Event()
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _json(self, status: int, value: dict):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.listed.append(self.path)
        self._json(200, {"object": "list", "data": [{"id": n, "object": "model"} for n in ("/srv/models/a", "b")]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        if body["messages"][-1]["content"] == "坏":
            return self._json(400, {"error": {"message": "/srv/models/a/x.json is bad"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "b"}
        chunk["choices"] = [{"index": 0, "delta": {"content": "字"}, "finish_reason": None}]
        try:
            while body["messages"][-1]["content"] != "断":
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                time.sleep(0.01)
        except OSError:
            self.hung_up.set()
        self.close_connection = True


@pytest.fixture
def endless():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()


def test_a_servers_models_stop_with_the_page(endless):
    Endless.listed.clear()
    models = connect_models(parse("--client", endless, "--top-p", "0.5", script=inference_with_vLLM))
    assert Endless.listed == ["/v1/models"], "asked once"
    assert [model.name for model in models] == ["a", "b"], "a server may call its model by a path"
    with serving(models) as port:
        connection, answer = post(port, {"model": "a", "messages": HELLO, "settings": {"seed": 7}})
        assert json.loads(answer.readline()) == {"text": "字"}
        sent = Endless.seen[-1]
        assert (sent["model"], sent["seed"], sent["top_p"]) == ("/srv/models/a", 7, 0.5)
        assert "temperature" not in sent, "what was not given is the server's to decide"
        connection.sock.shutdown(socket.SHUT_RDWR)
        assert Endless.hung_up.wait(5), "the server is told that nobody listens"
        (event,) = ask(port, [{"role": "user", "content": "坏"}], "b")
        assert "HTTP 400" in event["error"]
        assert "/srv" not in event["error"]
        (event,) = ask(port, [{"role": "user", "content": "断"}], "b")
        assert "中途断开" in event["error"]


def test_names_of_a_server_can_be_chosen(endless):
    args = parse("--client", endless, "--web-models", "base=b", "stage1=/srv/models/a", script=inference_with_vLLM)
    assert [model.name for model in connect_models(args)] == ["base", "stage1"]
    with pytest.raises(UserError, match="没有这个模型，有的是"):
        connect_models(parse("--client", endless, "--web-models", "x=c", script=inference_with_vLLM))
    with pytest.raises(UserError, match="--model c：服务端没有这个模型"):
        connect_models(parse("--client", endless, "--model", "c", script=inference_with_vLLM))
    assert [m.name for m in connect_models(parse("--client", endless, "--model", "b", script=inference_with_vLLM))] == [
        "b"
    ]


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
