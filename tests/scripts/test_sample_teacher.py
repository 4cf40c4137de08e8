import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from LLM_data_gen.prompt import build_messages
from sft_data.chatml import render_chatml

ROOT = Path(__file__).resolve().parents[2]


def line(topic, question, answer="回答"):
    roles = {"system": "设定", "user": question, "assistant": answer}
    messages = [{"role": role, "content": content} for role, content in roles.items()]
    return json.dumps({"topic": topic, "text": render_chatml(messages)}, ensure_ascii=False) + "\n"


def start(samples, *flags):
    command = [
        sys.executable,
        str(ROOT / "scripts/sample_teacher.py"),
        "--port",
        "0",
        "--samples",
        str(samples),
        *flags,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A running teacher with two topics, one inside the other's name; yields its address."""
    samples = tmp_path_factory.mktemp("teacher") / "s.jsonl"
    lines = [line("校训", f"校训问题{i}") for i in range(4)] + [line("校训与校风", "校风问题")]
    samples.write_text("".join(lines), encoding="utf-8")
    process = start(samples)
    yield process.stdout.readline().strip()
    process.terminate()
    _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "不是语言模型" in said
    assert "5 条样例（2 个主题）" in said
    assert "没有主题「没听说过」" in said


def post(url, messages, **extra):
    body = json.dumps({"model": "any", "messages": messages, **extra}).encode()
    request = urllib.request.Request(url + "/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def ask(url, topic, n, known=()):
    data = json.loads(post(url, build_messages(topic, n, known)))
    assert data["model"] == "sample-replay"
    assert data["choices"][0]["finish_reason"] == "stop"
    assert data["usage"]["completion_tokens"] > 0
    return [sample["input"] for sample in json.loads(data["choices"][0]["message"]["content"])]


def test_replays_the_topic_and_moves_on_to_what_was_not_given(teacher):
    assert ask(teacher, "校训", 2) == ["校训问题0", "校训问题1"]
    assert ask(teacher, "校训", 2) == ["校训问题2", "校训问题3"]
    assert ask(teacher, "校训", 3, ["校训问题1"]) == ["校训问题0", "校训问题2", "校训问题3"]  # all given: over again
    assert ask(teacher, "校训与校风", 6) == ["校风问题"]


def test_unknown_topic_gets_any_sample(teacher):
    assert len(ask(teacher, "没听说过", 3)) == 3


def test_models_stream_and_bad_requests(teacher):
    with urllib.request.urlopen(teacher + "/models", timeout=10) as response:
        assert json.load(response)["data"][0]["id"] == "sample-replay"
    events = post(teacher, build_messages("校训与校风", 1), stream=True).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    delta = json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]
    assert json.loads(delta["content"])[0]["input"] == "校风问题"
    with pytest.raises(urllib.error.HTTPError) as error:
        post(teacher, "not a list")
    assert error.value.code == 400


def test_ctrl_c_ends_it_cleanly_and_latency_is_kept(tmp_path):
    (tmp_path / "s.jsonl").write_text(line("甲", "问题"), encoding="utf-8")
    process = start(tmp_path / "s.jsonl", "--latency-ms", "300")
    url = process.stdout.readline().strip()
    started = time.monotonic()
    assert ask(url, "甲", 1) == ["问题"]
    assert time.monotonic() - started >= 0.3
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in said


@pytest.mark.parametrize("content", [None, "", '{"topic": "甲"}\n', '{"topic": "甲", "text": "无标记"}\n'])
def test_bad_samples_are_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "s.jsonl").write_text(content, encoding="utf-8")
    process = start(tmp_path / "s.jsonl")
    out, said = process.communicate(timeout=10)
    assert (process.returncode, out) == (2, "")
    assert said.startswith("错误：")
    assert said.count("\n") == 1
