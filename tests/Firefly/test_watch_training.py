"""See it learn, through train.py: held-out loss by source, answers, curves, early stopping and warnings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from Firefly.component import samples
from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.prompt import encode_conversation, record_to_messages

from .conftest import ROOT, conversation

SOURCES = ("HIT", "开放 问答", "Firefly")


def records(n=18):
    return [conversation(i) | {"category": SOURCES[i % 3]} for i in range(n)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def logged(out, key):
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


@pytest.fixture
def eval_file(tmp_path):
    return write_jsonl(tmp_path / "eval.jsonl", [conversation(i) | {"category": SOURCES[i % 3]} for i in range(7)])


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    import component.samples  # train.py's own copy of the module

    for module in (samples, component.samples):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 8)


@pytest.fixture
def watched(train_main, write_args, tmp_path, eval_file):
    """Return a function that trains with evaluations; keyword arguments change the JSON's values."""

    def run(name="out", code=0, **changes):
        values = {
            "output_dir": str(tmp_path / name),
            "eval_file": eval_file,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "max_steps": 4,
        }
        assert train_main(["--train_args_file", write_args(records(), **(values | changes))]) == code
        return tmp_path / name

    return run


def test_loss_of_each_source_and_of_all(watched, eval_file, tiny_minicpm):
    """Against a slow loop over single records; nothing is learned, so the base model has the same losses."""
    out = watched(max_steps=1, learning_rate=0.0, per_device_eval_batch_size=2)
    results = json.loads((out / "train_results.json").read_text())
    tokenizer, model = load_tokenizer(out), load_causal_lm(tiny_minicpm, dtype=torch.float32)
    sums = {source: [0.0, 0] for source in SOURCES}
    for line in Path(eval_file).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        ids, labels = (torch.tensor(x)[None] for x in encode_conversation(tokenizer, record_to_messages(record)))
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        count = int((labels[0, 1:] != -100).sum())
        sums[record["category"]][0] += loss * count
        sums[record["category"]][1] += count
    for source, key in zip(SOURCES, ("HIT", "开放_问答", "Firefly"), strict=True):
        assert results[f"eval_loss_{key}"] == pytest.approx(sums[source][0] / sums[source][1], rel=1e-5)
    total, count = (sum(column) for column in zip(*sums.values(), strict=True))
    assert results["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert results["eval_target_tokens"] == count


def test_evaluations_change_nothing_in_training(watched):
    """Bitwise, with dropout, over an epoch's end: neither the losses nor the weights."""
    without = watched("without", eval_strategy="no", eval_file=None, lora_dropout=0.3, max_steps=7)
    out = watched("with", lora_dropout=0.3, max_steps=7, eval_steps=1, gradient_checkpointing=True)
    assert logged(out, "loss") == logged(without, "loss")
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (without, out))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_files_of_a_run_and_of_a_resumed_one(watched, tmp_path):
    """A resumed run's answers, table and curves are those of the uncut one."""
    out = watched(save_strategy="steps", save_steps=2, report_to="tensorboard", max_steps=6)
    text = (out / "eval_samples.md").read_text(encoding="utf-8")
    assert text.count("## 问题 ") == 3
    assert text.count("**第 ") == 9
    assert "| HIT | 开放 问答 | Firefly |" in text
    assert "校训是什么？" in text
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "runs").rglob("events*"))
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)
    for step in (4, 6):
        shutil.rmtree(cut / f"checkpoint-{step}")
    watched("cut", save_strategy="steps", save_steps=2, max_steps=6, resume_from_checkpoint_path=str(cut))
    assert (cut / "eval_samples.md").read_text(encoding="utf-8") == text


def test_own_questions(watched, tmp_path, capsys):
    questions = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "哈工大在哪？", "reference": "哈尔滨"}])
    text = (watched(eval_questions=questions) / "eval_samples.md").read_text(encoding="utf-8")
    assert text.count("## 问题 ") == 1
    assert "哈工大在哪？" in text
    assert "哈尔滨" in text
    watched("other", code=2, eval_questions=str(tmp_path / "nowhere.jsonl"))
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_early_stopping_and_the_best_weights(watched, capsys):
    """A learning rate that ruins the model after its first steps; stopped, the best step's weights are what is saved."""
    ruin = {"learning_rate": 0.5, "max_steps": 40, "eval_steps": 1, "early_stopping_patience": 2, "warmup_steps": 0,
            "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "lr_scheduler_type": "constant"}  # fmt: skip
    out = watched(**ruin)
    losses = logged(out, "eval_loss")
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 2 < 40
    err = capsys.readouterr().err
    assert f"在第 {len(losses)} 步停止" in err
    assert f"最低的是第 {best + 1} 步" in err
    assert json.loads((out / "train_results.json").read_text())["eval_loss"] == losses[best]
    a, b = (load_file(f / "adapter_model.safetensors") for f in (out, out / f"checkpoint-{best + 1}"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    last = str(out / f"checkpoint-{len(losses)}")
    watched(code=2, resume_from_checkpoint_path=last, **ruin)
    assert "已经早停" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "eval_strategy"),
        ({"early_stopping_patience": 0}, "不小于 1"),
        ({"eval_questions": "q.jsonl", "eval_strategy": "no", "eval_file": None}, "eval_file"),
    ],
)
def test_keys_that_need_evaluations(watched, capsys, change, word):
    watched(code=2, **change)
    assert word in capsys.readouterr().err


def test_warnings_name_the_cause_once(watched, capsys):
    watched(learning_rate=0.1, warmup_steps=50, max_seq_length=48, save_strategy="steps", save_steps=100, max_steps=4)
    err = capsys.readouterr().err
    for word in ("偏大", "warmup_steps=50", "save_steps=100", "max_seq_length=48 对这份数据偏短"):
        assert err.count(word) == 1, word
    watched("good", learning_rate=1e-4, max_steps=4)
    assert "WARNING" not in capsys.readouterr().err


def test_a_template_without_a_stop_token(watched, capsys, tiny_minicpm, tmp_path):
    folder = tmp_path / "endless"
    shutil.copytree(tiny_minicpm, folder)
    turn = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '\\n' }}"
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}" + prompt
    tokenizer.save_pretrained(folder)
    watched(model_name_or_path=str(folder), template_name="auto", eval_strategy="no", max_steps=1)
    assert capsys.readouterr().err.count("不是停止 token") == 1


def test_a_model_that_does_not_learn(watched, capsys, tiny_minicpm, tmp_path):
    """Its output layer is zero: every token is as likely as any other, the loss is ln(vocabulary) and stays there."""
    blank = tmp_path / "blank"
    shutil.copytree(tiny_minicpm, blank)
    weights = load_file(blank / "model.safetensors")
    from safetensors.torch import save_file

    save_file({k: torch.zeros_like(v) for k, v in weights.items()}, blank / "model.safetensors", {"format": "pt"})
    watched(model_name_or_path=str(blank), learning_rate=1e-9, max_steps=12, train_mode="full", eval_strategy="no")
    err = capsys.readouterr().err
    assert err.count("等于瞎猜") == 1
    assert err.count("梯度范数都是 0") == 1


def test_nan_and_a_missing_matplotlib(watched, tmp_path, capsys, monkeypatch):
    watched(code=2, learning_rate=1e30, train_mode="full", max_grad_norm=0, eval_strategy="no", max_steps=9)
    assert (tmp_path / "out" / "loss.png").exists()  # the way there
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = watched("bare")
    assert capsys.readouterr().err.count("没有装 matplotlib") == 1
    assert not (out / "loss.png").exists()


@pytest.mark.parametrize("task", ["pretrain", "dpo"])
def test_other_tasks(watched, write_args, tmp_path, task):
    if task == "pretrain":
        rows = [{"text": "规格严格，功夫到家。" * (1 + i % 4)} for i in range(12)]
    else:
        rows = [{"prompt": f"第{i}问？", "chosen": "好的，规格严格。", "rejected": "不。"} for i in range(12)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = watched(task_type=task, train_file=data, eval_file=None, eval_ratio=0.25)
    text = (out / "eval_samples.md").read_text(encoding="utf-8")
    assert text.count("**第 ") == 6
    assert (out / "loss.png").exists()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(watched, write_args, tmp_path, eval_file):
    """Seven held-out records of three sources: no source divides by two."""
    one = watched("one", per_device_train_batch_size=4)
    args = write_args(records(), output_dir=str(tmp_path / "two"), per_device_train_batch_size=2, eval_file=eval_file,
                      eval_strategy="steps", eval_steps=2, max_steps=4)  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, "--train_args_file", args], cwd=ROOT / "Firefly", check=True, env=env, timeout=180)
    for key in ("eval_loss", "eval_loss_HIT", "eval_loss_开放_问答", "eval_loss_Firefly"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(one, key), rel=1e-4)
    lines = (tmp_path / "two" / "eval_samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
