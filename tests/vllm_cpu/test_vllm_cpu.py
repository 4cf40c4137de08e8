"""vLLM on a CPU, for real, against transformers: run by scripts/test_vllm_cpu.sh in an environment of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1, generator=generator)
    save_checkpoint(model, root / "style", tokenizer)
    save_checkpoint(model.merge_and_unload(), root / "merged", tokenizer)
    return {name: root / name for name in ("base", "style", "merged")}


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
    assert results["style"] == results["merged"] != results["base"]
    return results


@pytest.mark.parametrize("name", ["base", "style", "merged"])
def test_offline_output_is_transformers_byte_for_byte(name, models, questions, expected, tmp_path):
    argv = ["--model", models[name], "--input", questions, "--output", tmp_path / "y.jsonl", "--max-model-len", "1024"]
    done = subprocess.run(
        [sys.executable, ROOT / "inference_with_vLLM.py", *argv, *FLAGS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    assert (tmp_path / "y.jsonl").read_bytes() == expected[name]


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


def test_server_with_adapter_answers_64_at_a_time(models, questions, expected, tmp_path):
    """Base and adapter from one server, by name; Ctrl-C leaves no process behind."""
    import inference_with_vLLM

    argv = [
        "--model",
        models["base"],
        "--adapter",
        f"style={models['style']}",
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
        for name in ("base", "style"):
            out = tmp_path / f"{name}.jsonl"
            argv = ["--client", url, "--model", name, "--input", str(questions), "--output", str(out)]
            assert inference_with_vLLM.main([*argv, "--batch-size", "64", "--max-new-tokens", "24"]) == 0
            assert out.read_bytes() == expected[name]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert server.returncode == 0
    children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"--port {url.rsplit(':', 1)[1].split('/')[0]} " not in children


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
