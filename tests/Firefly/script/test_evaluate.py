"""evaluate.py against losses computed the plain way: full logits, one record at a time."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ANSWERS = [
    "规格严格，功夫到家。",
    "有三个校区。",
    "我是一个中文智能助手，可以回答学习和生活中的问题。",
    "先想清楚。",
    "春夏秋冬。",
]


@pytest.fixture(scope="module")
def evaluate():
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "Firefly/script/evaluate/evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def eval_file(tmp_path) -> Path:
    path = tmp_path / "eval.jsonl"
    rows = [
        {
            "conversation_id": i,
            "category": "HIT" if i < 2 else "General",
            "conversation": [{"human": f"问题{i}？", "assistant": answer}],
        }
        for i, answer in enumerate(ANSWERS)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def plain_losses(folder: Path) -> list[tuple[float, int]]:
    """(loss sum, target tokens) of every record, from full logits without batches."""
    import torch

    from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
    from Firefly.component.prompt import encode_conversation
    from Firefly.component.template import use_template

    model, tokenizer = load_causal_lm(folder).float().eval(), load_tokenizer(folder)
    use_template(tokenizer, "minicpm4")
    results = []
    for i, answer in enumerate(ANSWERS):
        turns = [{"role": "user", "content": f"问题{i}？"}, {"role": "assistant", "content": answer}]
        ids, labels = encode_conversation(tokenizer, turns)
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        picked = [-log_probs[t - 1, labels[t]].item() for t in range(1, len(ids)) if labels[t] != -100]
        results.append((sum(picked), len(picked)))
    return results


def test_losses_are_the_plain_ones_per_source_and_overall(evaluate, tiny_minicpm, eval_file, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [
        "--models",
        f"base={tiny_minicpm}",
        f"again={tiny_minicpm}",
        "--eval-file",
        str(eval_file),
        "--out",
        str(out),
    ]
    assert evaluate.main([*argv, "--batch-size", "3", "--generate", "2", "--max-new-tokens", "4"]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    plain = plain_losses(tiny_minicpm)
    base = report["models"]["base"]
    total, tokens = sum(s for s, _ in plain), sum(n for _, n in plain)
    assert base["target_tokens"] == tokens
    assert base["loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert base["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    hit = base["by_source"]["HIT"]
    assert hit["records"] == 2
    assert hit["loss"] == pytest.approx((plain[0][0] + plain[1][0]) / (plain[0][1] + plain[1][1]), abs=1e-5)
    assert report["models"]["again"]["loss"] == base["loss"]
    assert base["generated"] == len(base["samples"]) == 2
    assert base["ends_by_itself"] == sum(s["finish_reason"] == "stop" for s in base["samples"]) / 2
    assert base["samples"][1]["reference"] == ANSWERS[2], "spread over the file: records 0 and 2 of 5"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"| base | {base['loss']:.4f} |" in captured.err
    assert f"| base | {base['loss']:.4f} |" in (out / "evaluation.md").read_text()
    assert evaluate.main(argv) == 2
    assert "已有评估结果" in capsys.readouterr().err


def test_every_record_is_accounted_for(evaluate, tiny_minicpm, eval_file, capsys):
    """Cut so short that only some records keep a target: the others are named, and the sum is right."""
    from Firefly.component.checkpoint import load_tokenizer
    from Firefly.component.prompt import encode_prompt
    from Firefly.component.template import use_template

    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    long = json.loads(eval_file.read_text().splitlines()[0])
    long["conversation"][0]["human"] = "很长的问题" * 40
    with eval_file.open("a") as file:
        file.write(json.dumps(long, ensure_ascii=False) + "\n")
    limit = len(encode_prompt(tokenizer, [{"role": "user", "content": long["conversation"][0]["human"]}]))
    argv = ["--models", f"base={tiny_minicpm}", "--eval-file", str(eval_file), "--max-seq-length", str(limit)]
    assert evaluate.main(argv) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["read"] == 6 == report["evaluated"] + sum(report["dropped"].values())
    assert report["dropped"] == {"没有目标 token": 1}
    assert report["truncated"] == 1
    assert f"{eval_file}:6：截到 {limit} 个 token 后" in captured.err


@pytest.mark.parametrize(
    ("models", "line", "says"),
    [
        (["TINY"], None, "应写成 名字=路径"),
        (["a=TINY", "a=TINY"], None, "名字 a 用了两次"),
        (["a=no/such/model"], None, "模型文件夹不存在"),
        (["a=TINY"], '{"conversation": []}', ":6：缺少 conversation"),
        (["a=TINY"], '{"conversation"', ":6：不是完整的 JSON"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(evaluate, tiny_minicpm, eval_file, capsys, models, line, says):
    if line:
        with eval_file.open("a") as file:
            file.write(line + "\n")
    argv = ["--models", *(m.replace("TINY", str(tiny_minicpm)) for m in models), "--eval-file", str(eval_file)]
    assert evaluate.main(argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("错误：") == 1
