"""The tasks beside sft, and the keys of every task, through train.py: pretrain, dpo, LoRA's variants, last answer only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import inference_with_transformers
from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.generate import load_model
from Firefly.component.prompt import encode_conversations, record_to_messages
from Firefly.component.session import open_session
from Firefly.script import merge_lora

from .conftest import QUESTIONS, ROOT, conversation

TEXTS = ["规格严格，功夫到家。" * n for n in (1, 3, 2, 40)]
FILES = sorted(path for task in ("dpo", "pretrain") for path in (ROOT / "Firefly/train_args" / task).glob("*/*.json"))


def logged(out: Path, key: str) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    (folder / "more").mkdir(parents=True)
    for name, texts in (("a.jsonl", TEXTS[:2]), ("more/b.jsonl", TEXTS[2:])):
        (folder / name).write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return folder


@pytest.fixture
def pretrain_args(write_args, documents):
    def write(**changes):
        values = {"task_type": "pretrain", "train_file": str(documents), "template_name": "auto", "max_seq_length": 64}
        return write_args([], **{**values, **changes})

    return write


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_pretrain_loss_is_the_mean_over_every_token_of_every_document(
    train_main, pretrain_args, tmp_path, tiny_minicpm, mode
):
    """Against a slow loop: each document and its end token, a long one in pieces that share a token."""
    change = {"per_device_train_batch_size": 64, "max_steps": 1, "lora_dropout": 0.0, "train_mode": mode}
    assert train_main(["--train_args_file", pretrain_args(**change)]) == 0
    tokenizer, model = load_tokenizer(tiny_minicpm), load_causal_lm(tiny_minicpm, dtype=torch.float32)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, 63):
            piece = torch.tensor([ids[start : start + 64]])
            with torch.no_grad():
                loss = model(input_ids=piece, labels=piece).loss
            total, count = total + loss.item() * (piece.shape[1] - 1), count + piece.shape[1] - 1
    tolerance = 2e-2 if mode == "qlora" else 1e-5  # NF4 is another model
    assert logged(tmp_path / "out", "loss")[0] == pytest.approx(total / count, rel=tolerance)
    results = json.loads((tmp_path / "out" / "train_results.json").read_text())
    assert results["padding_share"] == 0.0
    assert load_tokenizer(tmp_path / "out").chat_template == tokenizer.chat_template


def test_pretrain_names_a_bad_line_in_any_file_of_the_folder(train_main, pretrain_args, documents, capsys):
    args = pretrain_args()
    with (documents / "more" / "b.jsonl").open("a") as file:
        file.write('{"txt": "x"}\n')
    assert train_main(["--train_args_file", args]) == 2
    assert "b.jsonl:3: " in capsys.readouterr().err
    (documents / "empty").mkdir()
    assert train_main(["--train_args_file", pretrain_args(train_file=str(documents / "empty"))]) == 2
    assert ".jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_dpo_or_pretrain_starts_as_it_is(train_main, path, tmp_path, tiny_minicpm, monkeypatch):
    """On the data it names, but for the model, the folder, the number of steps, and a batch of one."""
    monkeypatch.chdir(ROOT / "Firefly")
    change = {"model_name_or_path": tiny_minicpm, "output_dir": tmp_path / "out", "max_steps": 1, "logging_steps": 1,
              "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "report_to": "none"}  # fmt: skip
    overrides = [str(word) for key, value in change.items() for word in (f"--{key}", value)]
    assert train_main(["--train_args_file", str(path), *overrides]) == 0
    assert 0 < logged(tmp_path / "out", "loss")[0] < 10


def test_mask_history_trains_on_the_last_answer_only(train_main, write_args, tmp_path, tiny_minicpm):
    """Labels by hand, then the first logged loss against a slow loop."""
    records = [conversation(i, turns=1 + i % 3) for i in range(6)]
    change = {"mask_history": True, "max_steps": 1, "per_device_train_batch_size": 6, "lora_dropout": 0.0}
    assert train_main(["--train_args_file", write_args(records, **change)]) == 0
    tokenizer, model = load_tokenizer(tmp_path / "out"), load_causal_lm(tiny_minicpm, dtype=torch.float32)
    total, count = 0.0, 0
    for record in records:
        messages = record_to_messages(record)
        ((ids, labels),) = encode_conversations(tokenizer, [messages], last_only=True)
        ((_, every),) = encode_conversations(tokenizer, [messages])
        answer = f"{messages[-1]['content']}<|im_end|>"
        assert tokenizer.decode([label for label in labels if label != -100]) == answer
        assert (labels == every) == (len(messages) == 3)
        ids, labels = torch.tensor([ids]), torch.tensor([labels])
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * (labels != -100).sum().item()
        count += (labels != -100).sum().item()
    assert logged(tmp_path / "out", "loss")[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"use_rslora": True, "loraplus_lr_ratio": 16, "neftune_noise_alpha": 5},
        {"pissa_init": True, "use_dora": True},
        {"train_mode": "qlora", "pissa_init": True, "gradient_checkpointing": True, "add_tokens": ["规格严格，"]},
    ],
    ids=str,
)
def test_variants_resume_exactly(train_main, write_args, tmp_path, change):
    args = write_args(max_steps=4, save_strategy="steps", save_steps=2, **change)
    assert train_main(["--train_args_file", args]) == 0
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    resume = ["--resume_from_checkpoint_path", str(tmp_path / "out" / "checkpoint-2")]
    assert train_main(["--train_args_file", args, *resume]) == 0
    cut = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("change", [{"add_tokens": ["规格严格，"]}, {"use_dora": True}, {"pissa_init": True}], ids=str)
def test_an_adapter_answers_like_its_merged_model(train_main, write_args, tmp_path, change):
    args = write_args(max_steps=6, learning_rate=0.02, **change)
    assert train_main(["--train_args_file", args]) == 0
    adapter, merged = str(tmp_path / "out"), str(tmp_path / "merged")
    assert merge_lora.main(["--adapter", adapter, "--out", merged]) == 0
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"prompt": q}, ensure_ascii=False) + "\n" for q in QUESTIONS[:4]))
    answers = []
    for model in (["--adapter", adapter], ["--model", merged]):
        out = tmp_path / f"{len(answers)}.jsonl"
        flags = ["--input", str(questions), "--output", str(out), "--max-new-tokens", "16", "--temperature", "0"]
        assert inference_with_transformers.main([*model, *flags]) == 0
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]


def test_dora_on_nf4_answers_as_it_trained(train_main, write_args, tmp_path):
    """Where bitsandbytes repacks NF4 at the first evaluation, DoRA would read garbage from then on."""
    assert train_main(["--train_args_file", write_args(train_mode="qlora", use_dora=True, learning_rate=0.01)]) == 0
    flags = ["--adapter", str(tmp_path / "out")]
    session = open_session(inference_with_transformers.build_parser().parse_args(flags))
    model = load_model(session, "cpu", torch.float32, load_in_4bit=True)
    ids = torch.tensor([[1, 30, 41, 270, 19, 33, 84]])
    in_training = model(ids, use_cache=False).logits  # with gradients, as in training: nothing is repacked yet
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, in_training, atol=1e-5, rtol=0)


def test_bundled_samples_are_what_their_readme_says():
    samples = ROOT / "data" / "samples"
    pairs = [json.loads(line) for line in (samples / "dpo_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 60
    for pair in pairs:
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        assert len(chosen["content"]) > len(rejected["content"])
    for name in ("study.jsonl", "life.jsonl"):
        assert len((samples / "pretrain" / name).read_text(encoding="utf-8").splitlines()) == 20
