"""What an engine is held against: tiny MiniCPMs made on the spot, 64 questions, and what transformers answers them.

For engine_check.py and for tests/vllm_cpu.
"""

import json
from pathlib import Path

from Firefly.component.errors import UserError

TOPICS = ["校训", "图书馆", "选课", "威海校区", "奖学金", "实验室", "一校三区", "研究生复试"]
TEXTS = [f"请介绍一下哈尔滨工业大学的{topic}。你是谁？我是中文智能助手，怎样写好一篇作文？" for topic in TOPICS] * 3
QUESTIONS = [f"{topic}怎么样？{'请详细说说。' * k}" for k in range(8) for topic in TOPICS]
ANSWERS = ["--max-new-tokens", "24"]
GREEDY = ["--temperature", "0", *ANSWERS]


def make_models(root: Path) -> dict[str, Path]:
    """Base, two adapters on it, the base merged with "style". Byte tokens are never drawn: halves of characters have no one text."""
    import torch
    from peft import LoraConfig, get_peft_model

    from Firefly.component.checkpoint import load_causal_lm, load_tokenizer, save_checkpoint
    from Firefly.component.template import use_template
    from scripts.make_tiny_model import build_tiny_model

    base = build_tiny_model(root / "base", TEXTS, vocab_size=600, hidden_size=128, num_layers=2, layer_std=0.2)
    model, tokenizer = load_causal_lm(base), load_tokenizer(base)
    rows = [i for token, i in tokenizer.get_vocab().items() if token.startswith("<0x")]
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] *= 1e-3
    save_checkpoint(model, base, tokenizer)
    use_template(tokenizer, "minicpm4")
    for seed, adapter in enumerate(("second", "style")):
        config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(base), config)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data.normal_(0, 0.1, generator=generator)
        save_checkpoint(model, root / adapter, tokenizer)
    save_checkpoint(model.merge_and_unload(), root / "merged", tokenizer)
    return {name: root / name for name in ("base", "style", "merged", "second")}


def write_questions(path: Path) -> Path:
    lines = [json.dumps({"prompt": question}, ensure_ascii=False) + "\n" for question in QUESTIONS]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def answer_with_transformers(models: dict[str, Path], questions: Path, folder: Path) -> dict[str, bytes]:
    """Return each model's result file, greedy and float32 on the CPU."""
    import inference_with_transformers

    results = {}
    for name, model in models.items():
        out = folder / f"transformers_{name}.jsonl"
        argv = ["--model", str(model), "--input", str(questions), "--output", str(out), *GREEDY]
        if inference_with_transformers.main([*argv, "--device", "cpu", "--dtype", "float32"]) != 0:
            raise UserError("inference_with_transformers.py 没有跑通，没有可以参照的回答；原因见上。")
        results[name] = out.read_bytes()
    return results


def responses(results: bytes) -> list[str]:
    return [json.loads(line)["response"] for line in results.splitlines()]


def mix(questions: Path, path: Path, expected: dict[str, bytes]) -> list[str]:
    """Write the questions to ``path``, each with an adapter's name, "base" or none; return the answers to expect.

    Rows without a name are to be asked with ``--use-adapter second``.
    """
    answers, wanted = {name: responses(data) for name, data in expected.items()}, []
    with path.open("w", encoding="utf-8") as file:
        for i, line in enumerate(questions.read_text(encoding="utf-8").splitlines()):
            name = ("style", "base", "second", None)[i % 4]
            row = json.loads(line) | ({"adapter": name} if name else {})
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            wanted.append(answers[name or "second"][i])
    return wanted
