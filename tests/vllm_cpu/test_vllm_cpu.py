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

ROOT = Path(__file__).resolve().parents[2]
TOPICS = ["校训", "图书馆", "选课", "威海校区", "奖学金", "实验室", "一校三区", "研究生复试"]
TEXTS = [f"请介绍一下哈尔滨工业大学的{topic}。你是谁？我是中文智能助手，怎样写好一篇作文？" for topic in TOPICS] * 3
FLAGS = ["--temperature", "0", "--max-new-tokens", "24"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Base, adapter on it, and the two merged. Byte tokens are never drawn: halves of characters have no one text."""
    import torch
    from peft import LoraConfig, get_peft_model

    from Firefly.component.checkpoint import load_causal_lm, load_tokenizer, save_checkpoint
    from Firefly.component.template import use_template
    from scripts.make_tiny_model import build_tiny_model

    root = tmp_path_factory.mktemp("models")
    base = build_tiny_model(root / "base", TEXTS, vocab_size=600, hidden_size=128, num_layers=2, layer_std=0.2)
    model, tokenizer = load_causal_lm(base), load_tokenizer(base)
    rows = [i for token, i in tokenizer.get_vocab().items() if token.startswith("<0x")]
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] *= 1e-3
    save_checkpoint(model, base, tokenizer)
    use_template(tokenizer, "minicpm4")
    for seed, adapter in enumerate(("second", "style")):
        model = get_peft_model(
            load_causal_lm(base), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data.normal_(0, 0.1, generator=generator)
        save_checkpoint(model, root / adapter, tokenizer)
    save_checkpoint(model.merge_and_unload(), root / "merged", tokenizer)
    return {name: root / name for name in ("base", "style", "merged", "second")}


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "x.jsonl"
    rows = [{"prompt": f"{topic}怎么样？{'请详细说说。' * k}"} for k in range(8) for topic in TOPICS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def expected(models, questions, tmp_path_factory) -> dict[str, bytes]:
    """What transformers answers."""
    import inference_with_transformers

    results = {}
    for name, folder in models.items():
        out = tmp_path_factory.mktemp("expected") / f"{name}.jsonl"
        argv = ["--model", str(folder), "--input", str(questions), "--output", str(out), *FLAGS]
        assert inference_with_transformers.main(argv) == 0
        results[name] = out.read_bytes()
    assert results["style"] == results["merged"] != results["base"] != results["second"] != results["style"]
    return results


@pytest.mark.parametrize("name", ["base", "style", "merged"])
def test_offline_output_is_transformers_byte_for_byte(name, models, questions, expected, tmp_path):
    argv = ["--model", models[name], "--input", questions, "--output", tmp_path / "y.jsonl", "--max-model-len", "1024"]
    run_script(*argv, *FLAGS)
    assert (tmp_path / "y.jsonl").read_bytes() == expected[name]


def test_several_adapters_answer_one_file_row_by_row(models, questions, expected, tmp_path):
    """Two adapters and the base in one run; rows without a name get --use-adapter."""
    names = mix(questions, tmp_path / "x.jsonl")
    argv = ["--model", models["base"], "--input", tmp_path / "x.jsonl", "--output", tmp_path / "y.jsonl"]
    argv += ["--adapter", f"style={models['style']}", "--adapter", f"second={models['second']}"]
    run_script(*argv, "--use-adapter", "second", "--max-model-len", "1024", *FLAGS)
    check_mix(tmp_path / "y.jsonl", names, expected)


def mixed(url: str, questions: Path, expected: dict[str, bytes], folder: Path) -> None:
    """Rows for the base and rows for two adapters reach the server at the same time: each gets its own answer."""
    import inference_with_vLLM

    names = mix(questions, folder / "mixed.jsonl")
    argv = ["--client", url, "--input", str(folder / "mixed.jsonl"), "--output", str(folder / "mixed_out.jsonl")]
    argv += ["--use-adapter", "second", "--batch-size", "64", "--max-new-tokens", "24"]
    assert inference_with_vLLM.main(argv) == 0
    check_mix(folder / "mixed_out.jsonl", names, expected)


def mix(questions: Path, path: Path) -> list[str | None]:
    """Write the questions to ``path`` with an adapter's name, "base" or none in each row; return the names."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    names = [("style", "base", "second", None)[i % 4] for i in range(len(rows))]
    rows = [row | ({"adapter": name} if name else {}) for row, name in zip(rows, names, strict=True)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return names


def check_mix(path: Path, names: list[str | None], expected: dict[str, bytes]) -> None:
    """Each row's answer is that of its own model; rows without a name were asked with --use-adapter second."""
    lines = path.read_text().splitlines()
    for i, (line, name) in enumerate(zip(lines, names, strict=True)):
        reference = json.loads(expected[name or "second"].splitlines()[i])
        assert json.loads(line)["response"] == reference["response"], (i, name)


def test_two_workers_share_the_model(models, questions, expected, tmp_path, monkeypatch):
    """Tensor parallel over two processes, each of which reads the Granite view; text may differ in the last place."""
    argv = ["--model", models["base"], "--input", questions, "--output", tmp_path / "y.jsonl"]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # by itself it wants a NUMA node for each
    run_script(*argv, "--tensor-parallel-size", "2", "--max-model-len", "1024", *FLAGS)
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

    argv = ["--model", str(models["merged"]), "--prompt", "x", *FLAGS]
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
