"""judge.py against a real HTTP server that judges by a rule, is busy, talks nonsense, or says no."""

import importlib.util
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
KEY = "sk-test-secret-123"


@pytest.fixture(scope="module")
def judge():
    spec = importlib.util.spec_from_file_location("judge", ROOT / "Firefly/script/evaluate/judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick_waits(judge, monkeypatch):
    import component.judge_client as client

    monkeypatch.setattr(client, "WAITS", (0.01, 0.01, 0.01))
    client._say_waiting.cache_clear()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    """A judge; ``reply(n, body)`` gives (status, text or error body, headers) for the nth request, counted from 1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with handle.lock:
                handle.bodies.append(body)
                number = len(handle.bodies)
                handle.keys.add(self.headers["Authorization"])
            status, said = handle.reply(number, body)
            if status == 200:
                usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                said = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                said |= {"usage": usage}
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    handle = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    handle.bodies, handle.keys, handle.lock, handle.reply = [], set(), threading.Lock(), by_rule
    threading.Thread(target=handle.serve_forever, args=(0.02,), daemon=True).start()
    yield handle
    handle.shutdown()
    handle.server_close()


def answers_in(body) -> list[str]:
    return re.findall(r"【回答 [AB] 开始】\n(.*?)\n【回答", body["messages"][1]["content"], flags=re.DOTALL)


def by_rule(number, body):
    """The answer with more 好 wins; 随 takes whatever stands first."""
    a, b = answers_in(body)
    winner = "A" if "随" in a + b or a.count("好") > b.count("好") else "B" if b.count("好") > a.count("好") else "tie"
    return 200, json.dumps({"winner": winner, "reason": "按规则"}, ensure_ascii=False)


def write(path: Path, responses: list[str], question: str = "问题{}？") -> str:
    rows = [{"prompt": question.format(i), "response": r, "finish_reason": "stop"} for i, r in enumerate(responses)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(judge, server, tmp_path):
    """Run judge.py over two files: 8 questions won, 1 lost, 1 by place only, 1 equal."""
    base = write(tmp_path / "base.jsonl", ["差"] * 8 + ["好好"] + ["随"] + ["同样"])
    stage2 = write(tmp_path / "stage2.jsonl", ["好"] * 8 + ["好"] + ["便"] + ["同样 "])

    def call(*flags, out="out", answers=(f"base={base}", f"stage2={stage2}")):
        url = f"http://127.0.0.1:{server.server_port}"
        named = ["--answers", *answers, "--base-url", url, "--model", "m", "--out", str(tmp_path / out)]
        return judge.main([*named, *flags])

    return call


def test_both_orders_ties_and_the_report(run, server, tmp_path, capsys):
    assert run() == 0
    report = json.loads((tmp_path / "out/judge.json").read_text())
    (pair,) = report["pairs"]
    assert (pair["win"], pair["tie"], pair["lose"]) == (8, 2, 1)
    assert (pair["identical"], pair["position"]["dependent"], pair["position"]["to_first"]) == (1, 1, 1)
    assert pair["comparison"]["p_value"] == pytest.approx(2 * (1 + 9) / 2**9)  # 8 : 1
    assert "stage2 好于 base" in pair["sentence"]
    assert len(server.bodies) == 20, "two orders of ten questions; equal answers are not asked"
    assert sorted(answers_in(b) for b in server.bodies if "问题8" in b["messages"][1]["content"]) == [
        ["好", "好好"],
        ["好好", "好"],
    ]
    assert report["replies"] == {"paid": 20, "unfit": 0, "refused": 0, "prompt_tokens": 2000, "completion_tokens": 200}
    assert server.bodies[0]["temperature"] == 0
    assert server.keys == {f"Bearer {KEY}"}
    assert pair["sentence"] in (tmp_path / "out/judge.md").read_text()
    written = "".join(p.read_text() for p in (tmp_path / "out").iterdir())
    said = capsys.readouterr()
    assert KEY not in written + said.err + said.out
    assert run() == 2
    assert "已有评审结果" in capsys.readouterr().err
    before = (tmp_path / "out/judge.json").read_bytes()
    assert run("--overwrite") == 0
    assert len(server.bodies) == 20, "what is paid for is not asked again"
    assert (tmp_path / "out/judge.json").read_bytes() == before


def test_cut_run_resumes_and_pays_nothing_twice(run, server, tmp_path, capsys):
    """The seventh request is refused; the journal's last line is cut off as well."""
    server.reply = lambda n, body: by_rule(n, body) if n <= 6 else (401, {"error": {"message": f"bad key {KEY}"}})
    assert run("--concurrency", "1") == 2
    error = capsys.readouterr().err
    assert "HTTP 401" in error
    assert error.count("错误：") == 1
    assert KEY not in error
    assert len(server.bodies) == 7, "one refusal stops the run"
    journal = tmp_path / "out/verdicts.jsonl"
    assert len(journal.read_text().splitlines()) == 6
    journal.write_bytes(journal.read_bytes()[:-20])
    server.reply = by_rule
    assert run("--concurrency", "4") == 0
    assert len(server.bodies) == 7 + 15
    assert "已有 5 个判决，还要问 15 个" in capsys.readouterr().err
    assert run(out="whole") == 0
    assert (tmp_path / "out/judge.json").read_bytes() == (tmp_path / "whole/judge.json").read_bytes()


def test_busy_server_is_waited_for_within_bounds(run, server, tmp_path, capsys):
    failures = {1: 429, 2: 503, 3: 500}
    server.reply = lambda n, b: (failures[n], {"error": {"message": "busy"}}) if n in failures else by_rule(n, b)
    assert run("--concurrency", "1") == 0
    assert len(server.bodies) == 23
    server.bodies.clear()
    server.reply = lambda n, body: (503, {"error": {"message": "down"}})
    assert run("--concurrency", "1", out="down") == 2
    assert len(server.bodies) == 4, "the first and three retries"
    error = capsys.readouterr().err
    assert "重试 3 次仍不成（HTTP 503：down）" in error
    assert error.count("暂时不通（HTTP 503：down）") == 1, "said when it begins, and not by each question"
    server.bodies.clear()
    server.reply = lambda n, body: (429, {"error": {"message": "no money", "code": "insufficient_quota"}})
    assert run("--concurrency", "1", out="poor") == 2
    assert len(server.bodies) == 1, "an empty account does not fill by waiting"


def test_unfit_replies_are_asked_again_and_then_given_up(run, server, tmp_path):
    """Question 0 is answered in prose once in each order, question 1 always."""
    seen = set()

    def reply(number, body):
        text = body["messages"][1]["content"]
        with server.lock:
            new = text not in seen
            seen.add(text)
        if "问题1？" in text or ("问题0？" in text and new):
            return 200, "我觉得 B 更好。"
        return by_rule(number, body)

    server.reply = reply
    assert run("--max-samples", "11") == 0
    report = json.loads((tmp_path / "out/judge.json").read_text())
    (pair,) = report["pairs"]
    assert (pair["win"], pair["no_verdict"], pair["judged"]) == (7, 1, 10)
    assert report["replies"]["unfit"] == 2 + 2 * 3
    again = next(b for b in server.bodies if "问题0？" in b["messages"][1]["content"] and len(b["messages"]) == 4)
    assert again["messages"][2] == {"role": "assistant", "content": "我觉得 B 更好。"}
    asked = len(server.bodies)
    assert run("--overwrite") == 0
    assert len(server.bodies) == asked, "given up is settled too"


@pytest.mark.parametrize(
    "said",
    [
        {"message": "Content Exists Risk", "type": "invalid_request_error", "code": "invalid_request_error"},
        {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"},
    ],
)
def test_one_question_that_the_service_refuses_is_left_out_not_the_end(run, server, tmp_path, capsys, said):
    server.reply = lambda n, body: (
        (400, {"error": said}) if "问题3？" in body["messages"][1]["content"] else by_rule(n, body)
    )
    assert run() == 0
    report = json.loads((tmp_path / "out/judge.json").read_text())
    (pair,) = report["pairs"]
    assert (pair["win"], pair["no_verdict"], pair["judged"]) == (7, 1, 10)
    assert report["replies"] == {"paid": 18, "unfit": 0, "refused": 2, "prompt_tokens": 1800, "completion_tokens": 180}
    assert run("--overwrite") == 0
    assert len(server.bodies) == 20, "a refusal is final"
    server.reply = lambda n, body: (400, {"error": said})
    assert run(out="none") == 2
    assert "拒绝了全部 20 个问题" in capsys.readouterr().err


def test_no_verdict_at_all_is_no_success(run, server, tmp_path):
    server.reply = lambda n, body: (200, "我觉得 B 更好。")
    assert run("--max-samples", "2") == 1
    (pair,) = json.loads((tmp_path / "out/judge.json").read_text())["pairs"]
    assert (pair["judged"], pair["no_verdict"]) == (0, 2)


def test_extra_fields_and_several_models(run, server, tmp_path):
    files = [write(tmp_path / f"{n}.jsonl", ["好" * i] * 2) for i, n in enumerate("abc")]
    named = [f"{n}={f}" for n, f in zip("abc", files, strict=True)]
    extra = '{"temperature": null, "thinking": {"type": "disabled"}}'
    assert run("--pairs", "all", "--extra", extra, answers=named) == 0
    report = json.loads((tmp_path / "out/judge.json").read_text())
    assert [(p["against"], p["model"], p["win"]) for p in report["pairs"]] == [
        ("a", "b", 2),
        ("a", "c", 2),
        ("b", "c", 2),
    ]
    assert "已按 3 次比较校正" in report["pairs"][0]["sentence"]
    assert "temperature" not in server.bodies[0]
    assert server.bodies[0]["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize(
    ("base", "stage2", "says"),
    [
        (["a"], None, "找不到回答文件"),
        (["a", "b"], ["a"], "stage2 有 1 行回答，base 有 2 行"),
        (["a"], "other", ":1：stage2 的问题与 base 的"),
        (["a"], "bare", ":1：没有 response 字段"),
        (["a"], "cut", ":1：不是完整的 JSON"),
    ],
)
def test_answers_that_do_not_match_are_one_sentence(run, server, tmp_path, capsys, base, stage2, says):
    path = tmp_path / "y.jsonl"
    if isinstance(stage2, list):
        write(path, stage2)
    elif stage2 == "other":
        write(path, ["a"], "别的{}？")
    elif stage2:
        path.write_text({"bare": '{"prompt": "问题0？"}\n', "cut": '{"prompt": "问'}[stage2])
    assert run(answers=[f"base={write(tmp_path / 'x.jsonl', base)}", f"stage2={path}"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("错误：") == 1
    assert not server.bodies


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--base-url", "127.0.0.1:8000"], "应是 http://主机:端口/v1"),
        (["--extra", "{"], "--extra：不是完整的 JSON"),
        (["--concurrency", "0"], "--concurrency 是 0"),
        (["--answers", "base=x"], "至少要两个模型"),
        (["--api-key", "密钥"], "非英文字符"),
    ],
)
def test_bad_flags_are_one_sentence(run, capsys, flags, says):
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("错误：") == 1


def test_no_key_for_a_service_is_said_before_anything_is_sent(run, server, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run("--base-url", "https://judge.invalid/v1") == 2
    assert "没有给出 judge.invalid 的密钥" in capsys.readouterr().err
    assert run() == 0, "a server of one's own needs none"
