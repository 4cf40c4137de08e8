"""The HTTP service on a real tiny model and real sockets: answers, streams, the old request, bad requests, the command."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from Firefly.component.generate import generate_batch
from Firefly.component.inference import Request
from tests.conftest import load_script
from tests.Firefly.script.http.served import HI, LONG, chat, greedy_session, post, raw_post

ROOT = Path(__file__).resolve().parents[4]


def test_whole_and_streamed_answers_are_those_of_generate(service):
    """Through the openai package, as people will: the tokens are those of the offline script, sampled ones too."""
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    sampling = replace(service.session.sampling, temperature=0.8, top_p=0.9, seed=5)
    (expected,) = generate_batch(service.model, replace(service.session, sampling=sampling), [Request(0, HI)])
    asked = {"model": "tiny", "messages": HI, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    assert whole.usage.completion_tokens == expected.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(chunks) > 4
    assert streamed == expected.text
    assert chunks[-2].choices[0].finish_reason == expected.finish_reason
    assert chunks[-1].usage == whole.usage


def test_the_old_request_is_answered(service):
    """What the old post.py sent, flat beside inputs, and the same answer keys."""
    old = {"max_new_tokens": 6, "top_p": 0.85, "temperature": 0.35, "repetition_penalty": 1.0, "do_sample": True}
    status, _, answer = post(f"{service.url}/firefly", {"inputs": "背诵李白的将进酒 ", **old})
    assert (status, set(answer), answer["input"]) == (200, {"input", "output"}, "背诵李白的将进酒")
    (expected,) = generate_batch(service.model, greedy_session(service), [Request(0, HI)])
    status, _, greedy = post(f"{service.url}/firefly", {"inputs": "<s>你是谁？</s>", "do_sample": False})
    assert greedy == {"input": "<s>你是谁？</s>", "output": expected.text.strip()}


def test_post_py_prints_the_answer_or_why_there_is_none(service, capsys):
    main = load_script("Firefly/script/http/post.py").main
    assert main(["--url", f"{service.url}/firefly", "--inputs", "你是谁？", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["--url", f"{service.url}/firefly", "--inputs", " "]) == 2
    assert "HTTP 400：inputs 是空的" in capsys.readouterr().err
    assert main(["--url", "http://127.0.0.1:9/firefly", "--inputs", "x"]) == 2
    assert "连不上服务" in capsys.readouterr().err
    for url, says in (
        ("nonsense", "应是 http://"),
        ("http://127.0.0.1:x", "连不上"),
        (f"{service.url}/health", "HTTP 405"),
    ):
        assert main(["--url", url, "--inputs", "x"]) == 2
        assert says in capsys.readouterr().err


def test_models_and_health_say_no_path(service, tiny_minicpm):
    with urllib.request.urlopen(f"{service.url}/v1/models") as answer:
        text = answer.read().decode()
    assert json.loads(text)["data"][0]["id"] == "tiny"
    assert "/" not in text
    with urllib.request.urlopen(f"{service.url}/health") as answer:
        assert json.load(answer) == {"status": "ok", "running": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/v1/chat/completions", b'{"messages": [', {}, 400, "invalid_json"),
        ("/v1/chat/completions", b"\xff\xff", {}, 400, "invalid_json"),
        ("/v1/chat/completions", b"[" * 50_000, {}, 400, "invalid_json"),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"\\udc00"}]}', {}, 400, "invalid_json"),
        ("/v1/chat/completions", {"messages": HI}, {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ("/v1/chat/completions", {"messages": HI, "temperature": -1}, {}, 400, "invalid_value"),
        ("/v1/chat/completions", {"messages": HI, "max_tokens": "many"}, {}, 400, "invalid_type"),
        ("/v1/chat/completions", {"messages": HI, "max_tokens": 10**9}, {}, 400, "invalid_value"),
        ("/v1/chat/completions", {"messages": 1}, {}, 400, "invalid_type"),
        ("/v1/chat/completions", {"messages": HI, "model": "/etc/passwd"}, {}, 404, "model_not_found"),
        ("/firefly", {"data": []}, {}, 400, "missing_field"),
        ("/firefly", {"inputs": "x", "top_p": 7}, {}, 400, "invalid_value"),
        ("/firefly", {"inputs": "x", "max_new_tokens": 10**9}, {}, 400, "invalid_value"),
        ("/v1/embeddings", {}, {}, 404, None),
        ("/health", {}, {}, 405, None),
    ],
)
def test_bad_requests_get_a_clear_error_body(service, path, body, headers, status, code):
    got, _, answer = post(service.url + path, body, **headers)
    assert (got, answer["error"]["code"]) == (status, code)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert any("一" <= character <= "鿿" for character in answer["error"]["message"])
    assert str(ROOT) not in json.dumps(answer)


@pytest.mark.parametrize("character", ["年", "龘"])  # one token, and three bytes
def test_a_100_kb_prompt_is_answered_or_refused_with_the_limit(service, character):
    messages = [{"role": "user", "content": character * 30_000 + "十二个月" * 3_000}]
    size = len(service.session.encode(Request(0, messages)))
    status, _, answer = chat(service, messages=messages, max_tokens=2)
    if size < service.session.context:
        assert (status, answer["usage"]["prompt_tokens"]) == (200, size)
    else:
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert f"提示有 {size} 个 token，模型最多 {service.session.context} 个" in answer["error"]["message"]


def test_30_streams_at_once_all_answer_as_one_alone(start):
    many = start(rows=8)
    questions = [f"{number} 年有几个月？" for number in range(30)]
    requests = [Request(n, [{"role": "user", "content": q}]) for n, q in enumerate(questions)]
    expected = [completion.text for completion in generate_batch(many.model, greedy_session(many), requests)]
    client = openai.OpenAI(base_url=f"{many.url}/v1", api_key="none", max_retries=0)

    def ask(request):
        chunks = client.chat.completions.create(model="tiny", messages=request.messages, temperature=0, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(ask, requests))
    assert answers == expected


def test_the_command_serves_and_stops_on_ctrl_c(tiny_minicpm, tmp_path):
    command = [sys.executable, str(ROOT / "Firefly/script/http/serve.py"), "--model", str(tiny_minicpm)]
    env = os.environ | {"FIREFLY_API_KEY": "sesame"}
    with subprocess.Popen(
        [*command, "--port", "0"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert post(f"{url}/chat/completions", {"messages": HI, "max_tokens": 2})[0] == 401
            key = {"Authorization": "Bearer sesame"}
            status, _, answer = post(f"{url}/chat/completions", {"messages": HI, "max_tokens": 2}, **key)
            assert (status, answer["model"]) == (200, tiny_minicpm.name)
            hanging = raw_post(SimpleNamespace(url=url.removesuffix("/v1")), LONG | {"stream": True}, **key)
            assert b"200 OK" in hanging.recv(1000)
            process.send_signal(signal.SIGINT)
            _, talk = process.communicate(timeout=30)
            hanging.close()
        finally:
            process.kill()
    assert process.returncode == 0
    assert "服务已停止" in talk
    assert "sesame" not in talk
    assert "Traceback" not in talk


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "70000"], "--port 是 70000"),
        (["--temperature", "-1"], "--temperature 是 -1"),
        (["--batch-size", "0"], "--batch-size 是 0"),
        (["--api-key", ""], "不能是空的"),
        (["--host", "203.0.113.1"], "--host 203.0.113.1"),
        (["--port", "0"], "没有给出模型"),
    ],
)
def test_flags_that_cannot_be(flags, words, capsys):
    assert load_script("Firefly/script/http/serve.py").main(flags) == 2
    assert words in capsys.readouterr().err


def test_another_address_without_a_key_warns(capsys, monkeypatch):
    monkeypatch.delenv("FIREFLY_API_KEY", raising=False)
    main = load_script("Firefly/script/http/serve.py").main
    assert main(["--host", "0.0.0.0", "--port", "0"]) == 2
    assert "没有设密钥" in capsys.readouterr().err
    assert main(["--host", "0.0.0.0", "--port", "0", "--api-key", "k"]) == 2
    assert "没有设密钥" not in capsys.readouterr().err


def test_the_folder_named_http_hides_nothing():
    """Scripts beside it must still import Python's own http package."""
    assert not list((ROOT / "Firefly/script/http").glob("__init__.py"))
    subprocess.run([sys.executable, "-c", "import http.client"], cwd=ROOT / "Firefly/script", check=True)
