"""vLLM's and SGLang's scripts without the engines: commands, flags, and a real child process as the server."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import inference_with_SGLang
import inference_with_transformers
import inference_with_vLLM
from Firefly.component import serving
from Firefly.component.errors import UserError
from Firefly.component.listening import listen, warn_if_open
from Firefly.component.session import open_session

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [inference_with_vLLM, inference_with_SGLang]


@pytest.mark.parametrize(
    ("host", "command", "key", "warned"),
    [
        ("127.0.0.1", ["serve"], "", False),
        ("0.0.0.0", ["serve"], "", True),
        ("0.0.0.0", ["serve", "--api-key", "k"], "", False),
        ("0.0.0.0", ["serve"], "k", False),
    ],
)
def test_a_server_open_to_others_without_a_key_is_said(capsys, monkeypatch, host, command, key, warned):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("VLLM_API_KEY", key)
    warn_if_open(host, command)
    assert ("没有设密钥" in capsys.readouterr().err) is warned


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


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_says_where_passes_signals_on_and_leaves_nothing(signum):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL),  # nohup and shells hand on that they are ignored
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


def test_taken_port_and_foreign_flags_are_refused(capsys, tiny_minicpm):
    with listen("127.0.0.1", 0) as listener, pytest.raises(UserError, match="换一个端口"):
        serving.free_port("127.0.0.1", listener.getsockname()[1])
    assert inference_with_vLLM.main(["--serve", "--model", str(tiny_minicpm), "--prompt", "a"]) == 2
    assert "--serve 只启动服务" in capsys.readouterr().err
    for flag, value in (("--batch-size", "0"), ("--max-model-len", "-5"), ("--tensor-parallel-size", "0")):
        assert inference_with_vLLM.main(["--serve", "--model", str(tiny_minicpm), flag, value]) == 2
        assert f"{flag} 是 {value}，应不小于 1" in capsys.readouterr().err, (
            "said here, not by the engine a minute later"
        )


@pytest.mark.parametrize(("script", "package"), [(inference_with_vLLM, "vllm"), (inference_with_SGLang, "sglang")])
def test_an_engine_that_is_not_installed_is_said(script, package, tiny_minicpm, capsys):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    before = dict(os.environ)
    assert script.main(["--model", str(tiny_minicpm), "--prompt", "a"]) == 2
    os.environ.clear()
    os.environ.update(before)
    assert f"requirements-{package}.txt" in capsys.readouterr().err
