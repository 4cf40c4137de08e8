"""evaluate.py against losses computed the plain way: full logits, one record at a time."""

import importlib.util
import json
import math
import shutil
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
        (["a=TINY"], '{"messages": [{"role": "user", "content": "问"}]}', ":6：没有提问和 assistant 的回答"),
        (["a=TINY"], '{"messages": [{"role": "assistant", "content": "答"}]}', ":6：没有提问和 assistant 的回答"),
        (["a=TINY"], '{"conversation": [{"human": "问", "assistant": "\\ud800"}]}', ":6：文本里有半个字符"),
        (["a/b=TINY"], None, "名字应简短，不含 /"),
        (["a=TINY", "--benchmarks", "cmmlu"], None, "请给出 --out"),
        (["a=TINY", "--data-dir", "x"], None, "请同时给出 --benchmarks"),
        (["a=TINY", "--out", __file__], None, "这是一个文件，请给出文件夹"),
        (["a=TINY", "--drop-leaked"], None, "请同时给出 --train-file"),
        (["a=TINY", "--train-file", "no/such.jsonl"], None, "找不到训练文件"),
        (["a=TINY", "--general-file", "no/such.jsonl"], None, "检查 --general-file"),
        (["a=TINY", "--generate", "-1"], None, "--generate 是 -1"),
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


def sharpen(model: Path, folder: Path, factor: float) -> Path:
    """Multiply the logits: 0 makes every token as likely as any other, much makes an untrained model surely wrong."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write(path: Path, pairs: list[tuple[str, str]], source: str) -> Path:
    rows = [{"source": source, "conversation": [{"human": q, "assistant": a}]} for q, a in pairs]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_whole_report_says_what_holds_and_the_same_bytes_each_time(evaluate, tiny_minicpm, tmp_path, capsys):
    """Eight records, one of them trained on; a model that is surely wrong, its copy, and one that knows nothing."""
    base, uniform = sharpen(tiny_minicpm, tmp_path / "b", 5), sharpen(tiny_minicpm, tmp_path / "u", 0)
    held_out = [(f"第{i}个问题是什么？", ANSWERS[i % 5] + f"这是第{i}个回答，供评估时比较。") for i in range(8)]
    files = {
        "--eval-file": write(tmp_path / "eval.jsonl", held_out, "hit"),
        "--general-file": write(tmp_path / "general.jsonl", [(q[::-1], a[::-1]) for q, a in held_out], "general"),
        "--train-file": write(tmp_path / "train.jsonl", [("别的？", "别的。"), held_out[3]], "hit"),
    }
    argv = ["--models", f"base={base}", f"again={base}", f"uniform={uniform}", "--generate", "3"]
    argv += ["--max-new-tokens", "4", *(str(x) for pair in files.items() for x in pair)]
    assert evaluate.main([*argv, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    report = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    vocab = json.loads((uniform / "config.json").read_text())["vocab_size"]
    assert report["models"]["uniform"]["loss"] == pytest.approx(math.log(vocab), abs=1e-4)
    low, high = report["models"]["base"]["loss_interval"]
    assert low < report["models"]["base"]["loss"] < high
    verdicts = {(d["before"], d["after"]): d["verdict"] for d in report["differences"]}
    assert verdicts["base", "again"] == "unclear"
    assert "again 比 base：损失差 +0.000（95% 区间 +0.000 到 +0.000，8 条）；区间含 0，不能说有提高。" in said
    assert verdicts["base", "uniform"] == verdicts["again", "uniform"] == "better"
    assert report["general"]["models"]["uniform"]["loss"] == pytest.approx(math.log(vocab), abs=1e-4)
    assert "again 比 base：通用数据的损失差 +0.000（95% 区间 +0.000 到 +0.000，8 条）；区间含 0，看不出遗忘" in said
    assert {d["verdict"] for d in report["answer_differences"]} == {"few"}, "three answers prove nothing"
    assert set(report["models"]["base"]["samples"][0]["scores"]) >= {"rougeL", "characters", "empty", "same_language"}
    leak = report["leakage"]["records"]
    assert [(one["where"], one["kind"], one["train_where"]) for one in leak] == [
        (f"{files['--eval-file']}:4", "exact", f"{files['--train-file']}:2")
    ]
    assert "这 1 条仍计入" in said
    assert evaluate.main([*argv, "--out", str(tmp_path / "again")]) == 0
    for name in ("evaluation.json", "evaluation.md", "evaluation.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_leaked_records_are_left_out_only_when_asked(evaluate, tiny_minicpm, eval_file, tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [("问题2？", ANSWERS[2])], "hit")
    argv = ["--models", f"base={tiny_minicpm}", "--eval-file", str(eval_file), "--train-file", str(train)]
    assert evaluate.main([*argv, "--drop-leaked"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    plain = plain_losses(tiny_minicpm)
    kept = [plain[i] for i in (0, 1, 3, 4)]
    assert report["models"]["base"]["loss"] == pytest.approx(
        sum(s for s, _ in kept) / sum(n for _, n in kept), abs=1e-5
    )
    assert report["dropped"] == {"没有目标 token": 0, "与训练数据重合": 1}
    assert report["read"] == 5 == report["evaluated"] + sum(report["dropped"].values())
    assert "这 1 条已不计入（--drop-leaked）" in captured.err


def test_what_was_measured_before_a_cut_is_kept(evaluate, tiny_minicpm, eval_file, tmp_path, capsys, monkeypatch):
    """Cut after the first of three answers of the second model; then one more model comes along."""
    from component import generate

    whole, real = tmp_path / "whole", generate.generate_batch
    argv = ["--models", f"base={tiny_minicpm}", f"uniform={sharpen(tiny_minicpm, tmp_path / 'u', 0)}"]
    argv += ["--eval-file", str(eval_file), "--generate", "3", "--max-new-tokens", "4", "--batch-size", "1"]
    assert evaluate.main([*argv, "--out", str(whole)]) == 0
    batches = []

    def cut(model, session, requests):
        batches.append(len(requests))
        if len(batches) == 5:
            raise KeyboardInterrupt
        return real(model, session, requests)

    monkeypatch.setattr(generate, "generate_batch", cut)
    assert evaluate.main([*argv, "--out", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out/evaluation.json").exists()
    capsys.readouterr()
    assert evaluate.main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert len(batches) == 5 + 2, "the four answers that were there are not made again"
    assert "已有 5 条损失，还要算 0 条" in capsys.readouterr().err
    for name in ("evaluation.json", "evaluation.md", "evaluation.html", "answers/base.jsonl", "answers/uniform.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name
    argv.insert(3, f"again={tiny_minicpm}")
    assert evaluate.main([*argv, "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    assert len(batches) == 7 + 3, "only the new model answers"
    assert evaluate.main([*argv, "--out", str(tmp_path / "out"), "--overwrite", "--max-new-tokens", "3"]) == 0
    assert len(batches) == 10 + 9, "another limit, other answers"


def test_losses_are_kept_batch_by_batch(evaluate, tiny_minicpm, eval_file, tmp_path, capsys):
    """Cut within the second line of a model's losses: one is kept, four batches are measured again."""
    argv = ["--models", f"base={tiny_minicpm}", "--eval-file", str(eval_file), "--batch-size", "1"]
    assert evaluate.main([*argv, "--out", str(tmp_path / "out")]) == 0
    path, report = tmp_path / "out/losses/base.jsonl", tmp_path / "out/evaluation.json"
    whole, before = path.read_bytes(), report.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3])[:-4])
    capsys.readouterr()
    assert evaluate.main([*argv, "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    assert "已有 1 条损失，还要算 4 条" in capsys.readouterr().err
    assert (path.read_bytes(), report.read_bytes()) == (whole, before)
    assert evaluate.main([*argv, "--out", str(tmp_path / "out"), "--overwrite", "--batch-size", "2"]) == 0
    assert "已有" not in capsys.readouterr().err, "other batches round otherwise"


def test_benchmarks_are_called_with_flags_that_they_know(evaluate):
    """Each flag arrives, and every model."""
    argv = ["--eval-file", "e", "--models", "a=x", "b=y", "--benchmarks", "cmmlu,mmlu", "--out", "o", "--overwrite"]
    args = evaluate.build_parser().parse_args([*argv, "--data-dir", "d", "--device", "cpu", "--batch-size", "3"])
    path, *flags = evaluate.benchmark_command(args)
    spec = importlib.util.spec_from_file_location("benchmarks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.build_parser().parse_args(flags)
    assert (found.models, found.tasks, found.out) == (["a=x", "b=y"], "cmmlu,mmlu", "o")
    assert (found.data_dir, found.device, found.batch_size, found.overwrite) == ("d", "cpu", 3, True)


def test_the_answers_are_what_the_judge_reads(evaluate, tiny_minicpm, eval_file, tmp_path):
    from component.judging import read_answers

    argv = [
        "--models",
        f"base={tiny_minicpm}",
        "--eval-file",
        str(eval_file),
        "--generate",
        "2",
        "--max-new-tokens",
        "4",
    ]
    assert evaluate.main([*argv, "--out", str(tmp_path / "out")]) == 0
    rows = read_answers(str(tmp_path / "out/answers/base.jsonl"))
    assert [(row.messages, row.reference) for row in rows] == [
        ([{"role": "user", "content": f"问题{i}？"}], ANSWERS[i]) for i in (0, 2)
    ]
