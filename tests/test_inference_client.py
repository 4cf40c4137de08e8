"""--client: every script asks a running OpenAI-compatible server, over real HTTP, and says plainly what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import inference_with_SGLang
import inference_with_vLLM
from Firefly.component import serving
from Firefly.component.client import said_plainly, server_url
from Firefly.component.errors import UserError
from Firefly.component.listening import reach_here_directly

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [inference_with_vLLM, inference_with_SGLang]


class Echo(BaseHTTPRequestHandler):
    """An OpenAI-compatible server in the small: streams the last message back, character by character."""

    seen: list[dict] = []
    stopped = threading.Event()
    owner = "vllm"
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _json(self, status: int, value: dict):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith("/page"):
            return self._json(200, ["no model"])
        cards = [{"id": "m", "parent": None}, {"id": "style", "parent": "m"}]
        data = [card | {"object": "model", "created": 0, "owned_by": self.owner} for card in cards]
        self._json(200, {"object": "list", "data": data})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        text = body["messages"][-1]["content"]
        if text == "坏":
            return self._json(400, {"error": {"message": "too long", "type": "BadRequestError"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if text == "乱":
            self.wfile.write(b"data: {no json\n\n")
        if text == "错":
            self.wfile.write(b'data: {"error": {"message": "out of memory"}}\n\n')
        while text == "慢" and not self.stopped.wait(0.2):
            self.wfile.write(b": still at it\n\n")
        for piece in text:
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if text != "断":
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._event(
                {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(text), "total_tokens": 0}}
            )
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, value: dict):
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "base", **value}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Echo.seen = []
    Echo.stopped.clear()
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


@pytest.mark.parametrize("script", SCRIPTS)
def test_client_writes_the_same_jsonl_in_order(script, server, tmp_path):
    path, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"第{i}问", "id": i}) + "\n" for i in range(40)))
    flags = ["--client", server, "--input", str(path), "--output", str(out), "--batch-size", "8", "--top-p", "0.5"]
    assert script.main([*flags, "--repetition-penalty", "1.1"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["response"] for row in rows] == [f"第{i}问" for i in range(40)]
    expected = {"finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 3}
    assert {key: rows[7][key] for key in expected} == expected
    body = next(b for b in Echo.seen if b["messages"][-1]["content"] == "第7问")
    assert (body["model"], body["seed"], body["max_tokens"], body["top_p"]) == ("m", 42 + 7, 512, 0.5)
    assert body["repetition_penalty"] == 1.1
    assert "temperature" not in body, "what was not given is the server's to decide"
    asked = len(Echo.seen)
    assert script.main([*flags, "--repetition-penalty", "1.1"]) == 0
    assert len(Echo.seen) == asked, "a finished file is not asked again"


@pytest.mark.parametrize("script", SCRIPTS)
def test_client_streams_one_answer(script, server, capsys):
    argv = ["--client", f"{server}/v1", "--model", "style", "--system", "系统", "--prompt", "你好吗", "--stream"]
    assert script.main(argv) == 0
    assert capsys.readouterr().out == "你好吗\n"
    assert Echo.seen[0]["model"] == "style"
    assert Echo.seen[0]["messages"][0] == {"role": "system", "content": "系统"}


@pytest.mark.parametrize(("owner", "sent"), [("vllm", "style"), ("sglang", "m:style")])
def test_rows_choose_adapters_by_the_name_that_the_server_answers_to(server, tmp_path, monkeypatch, owner, sent):
    """SGLang lists an adapter as NAME, answers to BASE:NAME, and gives the base's answer to NAME without a word."""
    monkeypatch.setattr(Echo, "owner", owner)
    path, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    rows = [{"prompt": "甲"}, {"prompt": "乙", "adapter": "base"}, {"prompt": "丙", "adapter": "style"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--client", server, "--input", str(path)]
    assert inference_with_SGLang.main([*flags, "--use-adapter", "style", "--output", str(out)]) == 0
    assert {b["messages"][-1]["content"]: b["model"] for b in Echo.seen} == {"甲": sent, "乙": "m", "丙": sent}
    assert json.loads(out.read_text().splitlines()[2])["adapter"] == "style"
    Echo.seen.clear()
    path.write_text('{"prompt": "甲"}\n{"prompt": "丁", "adapter": "x"}\n')
    assert inference_with_SGLang.main(flags) == 2
    assert Echo.seen == [], "nothing is asked when one row cannot be"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "nope", "--prompt", "a"], "没有这个模型，有的是：m、style"),
        (["--prompt", "坏"], "HTTP 400：too long"),
        (["--prompt", "断"], "中途断开"),
        (["--prompt", "错"], "服务端没有答完（out of memory）"),
        (["--prompt", "乱"], "不是 OpenAI 兼容服务"),
        (["--prompt", "a", "--adapter", "x"], "--adapter 由服务端决定"),
    ],
)
def test_what_a_server_refuses_is_one_sentence(server, capsys, flags, says):
    assert inference_with_vLLM.main(["--client", server, *flags]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("module", ["httpx", "httpx2", "builtins"])
def test_a_server_that_dies_in_mid_stream_is_said_with_every_openai(module):
    """openai 3 makes an APIConnectionError of it; openai 2 lets its HTTP library's own error through."""
    error = type("RemoteProtocolError", (Exception,), {"__module__": module})("incomplete chunked read")
    with pytest.raises(type(error) if module == "builtins" else UserError, match="incomplete"), said_plainly("x:1"):
        raise error


def test_a_proxy_in_the_environment_is_not_asked_for_a_server_here(server, capsys, monkeypatch):
    """People behind a proxy name it in their environment; it would look for 127.0.0.1 on itself."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "internal.example")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    assert inference_with_vLLM.main(["--client", server, "--prompt", "你好"]) == 0
    assert capsys.readouterr().out == "你好\n"
    names = ["internal.example", "127.0.0.1", "localhost", "::1"]
    assert os.environ["no_proxy"].split(",") == names
    reach_here_directly()
    assert os.environ["no_proxy"].split(",") == names, "not once for every call"


def test_an_address_that_is_no_such_server_is_said(server, capsys):
    """A chat page, a login page: 200, and something else."""
    assert inference_with_vLLM.main(["--client", f"{server}/page", "--prompt", "a"]) == 2
    assert f"{server}/page/v1：这个地址回答的不是 OpenAI 兼容服务的格式" in capsys.readouterr().err


def test_ctrl_c_does_not_wait_for_the_answers_under_way(server, tmp_path):
    """Nor does an error in one of them: the rest may take minutes."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "慢"}\n' * 3)
    command = [sys.executable, str(ROOT / "inference_with_vLLM.py"), "--client", server, "--input", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while len(Echo.seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        path.write_text('{"prompt": "慢"}\n{"prompt": "坏"}\n')
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    finally:
        process.kill()
        Echo.stopped.set()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert done.returncode == 2
    assert "HTTP 400：too long" in done.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://", "http://[::1", "http://127.0.0.1:80a", "ftp://x/v1"])
def test_what_is_no_address_is_said(url, capsys):
    assert inference_with_vLLM.main(["--client", url, "--prompt", "a"]) == 2
    assert f"--client {url}：应是 http://主机:端口/v1" in capsys.readouterr().err


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_is_taken_however_it_is_copied(tail):
    assert server_url(f"http://h:8000{tail}") == "http://h:8000/v1"


def test_no_server_there_is_said(capsys):
    url = f"http://127.0.0.1:{serving.free_port('127.0.0.1', 0)}/v1"
    assert inference_with_SGLang.main(["--client", url, "--prompt", "a"]) == 2
    assert "连不上服务" in capsys.readouterr().err
