"""vLLM's and SGLang's scripts without the engines: commands, the client, and a real child process as the server."""

import ast
import importlib.metadata
import importlib.util
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
import inference_with_transformers
import inference_with_vLLM
from Firefly.component import serving
from Firefly.component.errors import UserError
from Firefly.component.session import open_session

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


def test_no_server_there_is_said(capsys):
    url = f"http://127.0.0.1:{serving.free_port('127.0.0.1', 0)}/v1"
    assert inference_with_SGLang.main(["--client", url, "--prompt", "a"]) == 2
    assert "连不上服务" in capsys.readouterr().err


def flags_of(script) -> dict[str, tuple]:
    """Every flag with what it means; --batch-size and where a server listens differ by engine."""
    actions = {action.option_strings[0]: action for action in script.build_parser()._actions if action.option_strings}
    for engine in ("--batch-size", "--port", "--host"):
        actions.pop(engine)
    return {flag: (a.dest, a.default, a.nargs, a.type, a.choices, a.help) for flag, a in actions.items()}


def test_the_scripts_are_alike_word_for_word():
    """The same flags with the same meaning; and where two scripts do the same, they say it with the same words."""
    ours, vllm, sglang = map(flags_of, (inference_with_transformers, *SCRIPTS))
    assert vllm == sglang
    assert ours.items() <= vllm.items()
    trees = [ast.parse(Path(script.__file__).read_text()) for script in (inference_with_transformers, *SCRIPTS)]
    mains = [next(ast.unparse(n) for n in tree.body if getattr(n, "name", "") == "main") for tree in trees]
    serve = "    if args.serve:\n        check_server_flags(args)\n        return serve(args)\n"
    assert mains[1] == mains[2]
    assert mains[0] == mains[1].replace(serve, "")


@pytest.fixture
def adapter(tmp_path) -> Path:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 24, "base_model_name_or_path": "x"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def build_command(script, tiny_minicpm, adapter, folder: Path, *flags: str) -> tuple[list[str], Path]:
    import torch

    argv = ["--model", str(tiny_minicpm), "--adapter", f"style={adapter}", "--serve", "--port", "9", *flags]
    args = script.build_parser().parse_args(argv)
    session = open_session(args)
    serving.write_server_settings(session, folder)
    settings = script.engine_settings(args, session, torch.float32, on_gpu=False)
    return script.server_command(args, session, settings, folder), session


def test_vllm_command_names_view_adapter_template_and_settings(tiny_minicpm, adapter, tmp_path):
    command, session = build_command(inference_with_vLLM, tiny_minicpm, adapter, tmp_path, "--", "--nnodes", "2")
    text = " ".join(command)
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    view = Path(command[command.index("--model") + 1])
    assert json.loads((view / "config.json").read_text())["model_type"] == "granite"
    for part in (
        "--host 127.0.0.1 --port 9",
        "--served-model-name tiny-minicpm",
        f"--lora-modules style={adapter}",
        "--max-lora-rank 32",  # the least that vLLM allows for 24
        "--dtype float32",
        "--enforce-eager",
        f"--generation-config {tmp_path}",
        "--nnodes 2",
    ):
        assert part in text
    assert (tmp_path / "chat_template.jinja").read_text() == session.tokenizer.chat_template
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["eos_token_id"] == list(session.stop_ids)
    assert (written["temperature"], written["top_p"]) == (0.8, 0.8)  # the model's own
    assert "trust" not in text


def test_vllm_on_a_gpu_is_started_by_its_own_command(tiny_minicpm, adapter, tmp_path, monkeypatch):
    """``vllm serve`` alone knows --headless; it takes the model by position, and refuses --model."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.33.0")
    flags = ["--data-parallel-size", "2", "--", "--headless"]
    command, _ = build_command(inference_with_vLLM, tiny_minicpm, adapter, tmp_path, *flags)
    assert command[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    assert json.loads((Path(command[4]) / "config.json").read_text())["model_type"] == "granite"
    assert "--model" not in command
    assert "--data-parallel-size 2" in " ".join(command)
    assert serving.is_worker(command)


def test_data_parallel_offline_is_refused_by_name(tiny_minicpm, capsys):
    argv = ["--model", str(tiny_minicpm), "--prompt", "a", "--data-parallel-size", "2"]
    assert inference_with_vLLM.main(argv) == 2
    assert "--data-parallel-size 只用于 --serve" in capsys.readouterr().err


def test_sglang_command_and_the_folder_it_serves(tiny_minicpm, adapter, tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    command, session = build_command(
        inference_with_SGLang, tiny_minicpm, adapter, folder, "--tensor-parallel-size", "2"
    )
    text = " ".join(command)
    for part in (
        "-m sglang.launch_server",
        f"--model-path {folder}",
        "--tp-size 2",
        "--dp-size 1",
        "--host 127.0.0.1 --port 9",
        "--enable-lora",
        f"--lora-paths style={adapter}",
        "--device cpu",
    ):
        assert part in text
    from Firefly.component.minicpm import granite_view

    serving.link_missing(granite_view(tiny_minicpm), folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "granite"
    assert (folder / "model.safetensors").samefile(tiny_minicpm / "model.safetensors")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == list(session.stop_ids)


CHILD = """
import http.server, signal, sys, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args): pass
time.sleep(0.3)
print("started", flush=True)
signal.signal(signal.SIGINT, lambda *a: sys.exit(7))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""
PARENT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from Firefly.component.errors import exit_cleanly
from Firefly.component import serving
@exit_cleanly
def main(argv=None):
    port = serving.free_port("127.0.0.1", 0)
    return serving.serve([sys.executable, "-c", sys.argv[1], str(port)], "127.0.0.1", port, "base", {{}}, timeout=20)
sys.exit(main())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_where_passes_signals_on_and_leaves_nothing(signum):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    process.send_signal(signum)
    rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0, "stopped on request"
    assert rest == "", "the server's own output is not data"
    assert f"curl {url}/chat/completions" in errors
    port = int(url.split(":")[2].split("/")[0])
    assert serving.free_port("127.0.0.1", port) == port


def test_serve_reports_a_server_that_does_not_start():
    done = subprocess.run([sys.executable, "-c", PARENT, "import sys; sys.exit(3)"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "退出码 3" in done.stderr
    assert done.stdout == ""


def test_taken_port_and_foreign_flags_are_refused(server, capsys, tiny_minicpm):
    port = int(server.rsplit(":", 1)[1])
    with pytest.raises(UserError, match="换一个端口"):
        serving.free_port("127.0.0.1", port)
    assert inference_with_vLLM.main(["--serve", "--model", str(tiny_minicpm), "--prompt", "a"]) == 2
    assert "--serve 只启动服务" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "package"), [(inference_with_vLLM, "vllm"), (inference_with_SGLang, "sglang")])
def test_an_engine_that_is_not_installed_is_said(script, package, tiny_minicpm, capsys):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    before = dict(os.environ)
    assert script.main(["--model", str(tiny_minicpm), "--prompt", "a"]) == 2
    os.environ.clear()
    os.environ.update(before)
    assert f"requirements-{package}.txt" in capsys.readouterr().err
