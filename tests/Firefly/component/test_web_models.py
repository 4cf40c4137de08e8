"""The models behind the chat page: adapters on a real tiny MiniCPM, and a server that never ends by itself."""

import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import inference_with_vLLM
from Firefly.component.errors import UserError
from Firefly.component.inference import Request
from Firefly.component.session import open_session
from Firefly.component.web_models import Stopped, before_each_layer, connect_models, fit_history, load_models
from tests.Firefly.component.page import FOREVER, HELLO, ask, parse, post, serving


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
