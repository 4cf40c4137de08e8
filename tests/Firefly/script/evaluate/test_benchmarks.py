"""benchmarks.py: the layouts of C-Eval, CMMLU and MMLU on disk, claims worked by hand, and a real run where lm-eval is there."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from Firefly.component.errors import UserError
from Firefly.component.lm_eval_data import BENCHMARKS, _fields, benchmark_of, find_subjects, read_questions
from Firefly.component.lm_eval_report import against_chance, compare_models, coverage

ROOT = Path(__file__).resolve().parents[4]
ROW = ["1 加 1 等于几？", "1", "2", "3", "4", "B"]
NAMES = ["question", "A", "B", "C", "D", "answer"]


@pytest.fixture(scope="module")
def benchmarks():
    spec = importlib.util.spec_from_file_location("benchmarks", ROOT / "Firefly/script/evaluate/benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_csv(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_ceval(folder: Path, subjects=("law", "logic"), questions: int = 6) -> Path:
    """A hand-made C-Eval: the answer to question i is letter i mod 4."""
    for subject in subjects:
        for split, count in (("dev", 5), ("val", questions)):
            rows = [
                dict(zip(NAMES, [f"{subject}{split}{i}？", *"甲乙丙丁", "ABCD"[i % 4]], strict=True))
                for i in range(count)
            ]
            write_jsonl(folder / f"ceval/{split}/{subject}_{split}.jsonl", rows)
    return folder


def test_every_layout_gives_the_same_question(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, *choices, _ = ROW
    hub = tmp_path / "hub/law/test-00000-of-00001.parquet"
    hub.parent.mkdir(parents=True)
    pq.write_table(pa.table({"question": [first], "choices": [choices], "answer": [1]}), hub)
    files = [
        write_csv(tmp_path / "val/law_val.csv", ["id", *NAMES, "explanation"], ["0", *ROW, ""]),
        write_csv(tmp_path / "test/law.csv", ["", *[n.capitalize() for n in NAMES]], ["0", *ROW]),
        write_csv(tmp_path / "mmlu/law_test.csv", ROW),
        write_jsonl(tmp_path / "val/law.jsonl", [dict(zip(NAMES, ROW, strict=True))]),
        hub,
    ]
    for path in files:
        assert list(read_questions(path)) == [(first, choices, 1)], path


def test_subjects_are_found_by_split_in_every_layout(tmp_path):
    for name in ("ceval/val/law_val.csv", "ceval/dev/law_dev.csv", "ceval/val/.law_val.csv", "ceval/val/readme.txt"):
        write_csv(tmp_path / name, ROW)
    for name in (
        "hub/law/test-0.parquet",
        "hub/all/test-0.parquet",
        "hub/law/dev-0.parquet",
        "mmlu/data/test/law_test.csv",
    ):
        write_csv(tmp_path / name, ROW)
    assert {k: v.name for k, v in find_subjects(tmp_path / "ceval", "val").items()} == {"law": "law_val.csv"}
    assert find_subjects(tmp_path / "ceval", "test") == {}
    assert list(find_subjects(tmp_path / "hub", "test")) == ["law"], "'all' repeats every subject"
    assert list(find_subjects(tmp_path / "mmlu", "test")) == ["law"]


@pytest.mark.parametrize(
    "row", [["问", "1", "2", "3"], ["问", "1", "2", "3", "4", "E"], ["问", "1", "2", "3", "4", ""]]
)
def test_a_broken_question_is_named(tmp_path, row):
    with pytest.raises(UserError, match="x.csv：第 2 题不完整"):
        list(read_questions(write_csv(tmp_path / "x.csv", ROW, row)))


def test_rows_have_the_fields_that_the_prompts_read():
    question = ("问", ["1", "2", "3", "4"], 2)
    assert _fields(BENCHMARKS["ceval-valid"], *question)["answer"] == "C"
    assert set(_fields(BENCHMARKS["cmmlu"], *question)) == {"Question", "A", "B", "C", "D", "Answer"}
    assert _fields(BENCHMARKS["mmlu"], *question) == {"question": "问", "choices": ["1", "2", "3", "4"], "answer": 2}
    assert [benchmark_of(t) for t in ("mmlu_law", "cmmlu", "hellaswag")] == ["mmlu", "cmmlu", None]


def result(right: int, wrong: int) -> dict:
    scores = {f"{i}:h": float(i < right) for i in range(right + wrong)}
    return {"ceval-valid": {"scores": {"ceval-valid_law": scores}}}


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        (35, "unclear"),  # 5 gained of 40, none lost: p = 2/32
        (36, "better"),  # 6 gained: p = 2/64
        (20, "worse"),
    ],
)
def test_models_are_compared_on_the_questions_they_differ_on(right, verdict):
    models = {"base": result(30, 10), "stage2": result(right, 40 - right)}
    (row,) = compare_models(models, ["ceval-valid"])
    assert row["verdict"] == verdict
    assert row["net"] == pytest.approx((right - 30) / 40)
    assert ("不能说" in row["sentence"]) == (verdict == "unclear")
    (_, again) = compare_models(models | {"third": result(36, 4)}, ["ceval-valid"])
    assert again["verdict"] == "unclear", "p = 0.031 is not below 0.05 / 2"


def test_chance_and_coverage_are_said():
    assert "看不出高于瞎猜" in against_chance("m", "ceval-valid", result(12, 28)["ceval-valid"])
    assert " 高于瞎猜" in against_chance("m", "ceval-valid", result(20, 20)["ceval-valid"])
    assert against_chance("m", "gsm8k", result(20, 20)["ceval-valid"]) is None
    notes = coverage(["ceval-valid"], {"ceval-valid": ["hit", "law"]}, {"ceval-valid": ["hit"]}, 5)
    assert "52 科中的 1 科" in notes[0]
    assert "自定的科目 hit" in notes[1]
    assert "--limit" in notes[2]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--models", "tiny"], "应写成 名字=路径"),
        (["--models", "a=x", "--tasks", " ,"], "--tasks 是空的"),
        (["--models", "a=x", "--tasks", "cmmlu,cmmlu_law"], "cmmlu_law 已包含在 cmmlu 里"),
        (["--models", "a=x", "--num-fewshot", "-1"], "--num-fewshot 是 -1"),
        (["--models", "a=x", "--task-dir", "no/such"], "没有这个文件夹"),
    ],
)
def test_bad_flags_are_one_sentence(benchmarks, tmp_path, capsys, flags, says):
    assert benchmarks.main([*flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("错误：") == 1


def test_without_lm_eval_it_says_what_to_install(benchmarks, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert benchmarks.main(["--models", "a=x", "--out", str(tmp_path / "out")]) == 2
    assert "pip install -r requirements-eval.txt" in capsys.readouterr().err


@pytest.fixture
def lm_eval():
    """lm-eval is installed for evaluation only (requirements-eval.txt)."""
    return pytest.importorskip("lm_eval")


@pytest.fixture
def adapter(lm_eval, tiny_minicpm, tmp_path) -> Path:
    """A LoRA adapter that changes the answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from Firefly.component.checkpoint import load_causal_lm

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(load_causal_lm(tiny_minicpm), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tiny_minicpm)}))
    return tmp_path / "adapter"


def plain_choice(folder: Path, dev: list[dict], row: dict) -> int:
    """The letter that a model finds likeliest after C-Eval's prompt, by full logits on our own reading of the task."""
    import torch

    from Firefly.component.checkpoint import load_causal_lm, load_tokenizer

    model, tokenizer = load_causal_lm(folder).float().eval(), load_tokenizer(folder)

    def ask(r):
        return f"{r['question']}\n" + "".join(f"{x}. {r[x]}\n" for x in "ABCD") + "答案："

    text = "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
    text += "".join(f"{ask(r)} {r['answer']}\n\n" for r in dev) + ask(row)
    start, sums = len(tokenizer(text)["input_ids"]), []
    for letter in "ABCD":
        ids = tokenizer(f"{text} {letter}")["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(log_probs[t - 1, ids[t]].item() for t in range(start, len(ids))))
    assert ids[0] == tokenizer.bos_token_id
    return max(range(4), key=sums.__getitem__)


def test_a_real_run_on_a_tiny_model_and_its_adapter(lm_eval, benchmarks, tiny_minicpm, adapter, tmp_path, capsys):
    """Every answer of the base is the one that full logits give; the adapter is really on; the second run reuses the first."""
    data = make_ceval(tmp_path / "data")
    out = tmp_path / "out"
    argv = ["--models", f"base={tiny_minicpm}", f"lora={adapter}", "--tasks", "ceval-valid", "--data-dir", str(data)]
    argv += ["--num-fewshot", "2", "--out", str(out)]
    assert benchmarks.main(argv) == 0
    report = json.loads((out / "benchmarks.json").read_text())
    base = report["models"]["base"]["tasks"]["ceval-valid"]
    assert base["questions"] == 12
    assert set(base["subjects"]) == {"ceval-valid_law", "ceval-valid_logic"}
    kept = {
        n: json.loads((out / f"models/{n}.json").read_text())["tasks"]["ceval-valid"]["scores"]
        for n in ("base", "lora")
    }
    rows = [json.loads(line) for line in (data / "ceval/val/law_val.jsonl").read_text().splitlines()]
    dev = [json.loads(line) for line in (data / "ceval/dev/law_dev.jsonl").read_text().splitlines()][:2]
    right = {f"{i}": float(plain_choice(tiny_minicpm, dev, row) == i % 4) for i, row in enumerate(rows)}
    assert {key.split(":")[0]: score for key, score in kept["base"]["ceval-valid_law"].items()} == right
    assert base["value"] == pytest.approx(sum(s for each in kept["base"].values() for s in each.values()) / 12)
    assert base["stderr"] > 0
    assert kept["base"] != kept["lora"]
    assert "52 科中的 2 科" in (out / "benchmarks.md").read_text()
    assert benchmarks.main(argv) == 2
    assert "已有测试结果" in capsys.readouterr().err
    before = (out / "benchmarks.json").read_bytes()
    assert benchmarks.main([*argv, "--overwrite"]) == 0
    assert capsys.readouterr().err.count("用已有的结果") == 2
    assert (out / "benchmarks.json").read_bytes() == before
    assert f"{100 * base['value']:.1f}%" in (out / "evaluation.html").read_text()


def test_other_questions_of_the_same_length_are_measured_anew(benchmarks, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [dict(zip(NAMES, ROW, strict=True))])
    before = benchmarks.digest_of([path])
    assert benchmarks.digest_of([path]) == before
    path.write_text(path.read_text().replace('"B"', '"C"'))
    assert benchmarks.digest_of([path]) != before


@pytest.mark.parametrize(
    ("tasks", "flags", "says"),
    [
        ("cmmlu", [], "没有 cmmlu 文件夹"),
        ("ceval-valid_physics", [], "没有科目 physics"),
        ("ceval-valid", ["--num-fewshot", "9"], "只有 5 道例题"),
        ("ceval-valid", ["--data-dir", "no/such"], "没有这个文件夹"),
    ],
)
def test_data_that_is_not_there_is_one_sentence(
    lm_eval, benchmarks, tiny_minicpm, tmp_path, capsys, tasks, flags, says
):
    data = make_ceval(tmp_path / "data")
    argv = ["--models", f"a={tiny_minicpm}", "--tasks", tasks, "--data-dir", str(data), "--out", str(tmp_path / "out")]
    assert benchmarks.main([*argv, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("错误：") == 1
