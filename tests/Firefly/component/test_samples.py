"""Questions from rows and files; answers against a slow greedy loop; the Markdown."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from Firefly.component import samples
from Firefly.component.attention import use_flat_rows
from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.loss import install_target_loss
from Firefly.component.prompt import encode_conversation, encode_prompt
from Firefly.component.samples import Question, Samples, answer_all, questions_of_file, questions_of_rows, render

MESSAGES = [
    {"role": "user", "content": "你是谁？"},
    {"role": "assistant", "content": "我是助手。"},
    {"role": "user", "content": "再说一遍"},
    {"role": "assistant", "content": "好。"},
]


@pytest.fixture
def tokenizer(tiny_minicpm):
    from Firefly.component.template import use_template

    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    return tokenizer


class Rows(list):
    category = ("HIT", "HIT", "问答", "问答")


def row(tokenizer, messages):
    ids, labels = encode_conversation(tokenizer, messages)
    return {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}


def test_a_row_is_asked_just_as_inference_asks(tokenizer):
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = Rows([row(tokenizer, MESSAGES)] * 4)
    found = questions_of_rows(rows, tokenizer, [stop])
    assert [q.source for q in found] == ["HIT", "问答", "HIT"]  # each source once, then the next rows
    assert found[0].prompt == tuple(encode_prompt(tokenizer, MESSAGES[:1]))
    assert found[0].reference == "我是助手。"


def test_rows_of_other_tasks(tokenizer):
    document = {"input_ids": np.arange(5, 105), "labels": np.arange(5, 105)}
    (question,) = questions_of_rows([document], tokenizer, [])
    assert question.prompt == tuple(range(5, 5 + samples.CONTINUE_FROM))
    pair = {"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8]}
    (question,) = questions_of_rows([pair], tokenizer, [2])
    assert (question.prompt, question.reference) == ((5, 6), tokenizer.decode([7]))


def test_questions_of_a_file(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "questions.jsonl"
    lines = [
        {"prompt": "你是谁？", "reference": "助手"},
        {"conversation": [{"human": "你是谁？", "assistant": "我是助手。"}], "category": "HIT"},
        {"messages": MESSAGES},
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    found = questions_of_file(str(path), tokenizer)
    assert [q.reference for q in found] == ["助手", "我是助手。", "好。"]
    assert found[0].prompt == found[1].prompt == tuple(encode_prompt(tokenizer, MESSAGES[:1]))
    assert found[2].prompt == tuple(encode_prompt(tokenizer, MESSAGES[:3]))
    monkeypatch.setattr(samples, "MAX_QUESTIONS", 2)
    assert len(questions_of_file(str(path), tokenizer)) == 2


@pytest.mark.parametrize(("text", "word"), [("", "没有问题"), ('{"text": 1}', "q.jsonl:1"), (None, "找不到")])
def test_a_file_without_questions_is_one_sentence(tokenizer, tmp_path, text, word):
    path = tmp_path / "q.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=word):
        questions_of_file(str(path), tokenizer)


def slow_greedy(model, prompt, stop_ids, count):
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_answers_of_a_model_in_training_equal_a_slow_loop(load_model, monkeypatch, mode):
    """Patched forward, varlen attention, gradient checkpointing, adapter, dropout, prompts of different length."""
    monkeypatch.setattr(samples, "MAX_NEW_TOKENS", 12)
    model, _, _ = load_model(train_mode=mode, gradient_checkpointing=True, lora_dropout=0.3)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts = [[5, 9, 17], [40] * 3 + [7, 300, 12, 55], [8]]
    model.eval()
    expected = [slow_greedy(model, prompt, [], 12) for prompt in prompts]
    stop = expected[0][5]  # end the first one early
    expected = [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in expected]
    install_target_loss(model)
    assert use_flat_rows(model, None, None)
    model.train()
    random.seed(1)
    states = torch.get_rng_state(), random.getstate()
    base = model.get_base_model() if mode == "lora" else model
    base.generation_config.temperature = 0.1  # the model's own settings must not come in
    base.generation_config.repetition_penalty = 5.0
    assert answer_all(model, prompts, [stop], pad_id=0) == expected
    assert model.training
    assert base.generation_config.repetition_penalty == 5.0
    assert base.config.use_cache is False
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def entry(step, answer, **losses):
    answers = [{"prompt": "问？", "answer": answer, "stopped": step > 10}]
    return {"step": step, "epoch": step / 10, "eval_loss": 2.0, "perplexity": 7.389, **losses, "answers": answers}


def test_markdown_shows_the_answers_of_a_question_one_below_the_other():
    question = Question("HIT", (1,), "问？", "参考```答")
    text = render([question], [entry(10, "甲", eval_loss_a_b=1.5), entry(20, "乙")], {"a_b": "a|b"})
    assert "| 步 | 轮 | 评测损失 | 困惑度 | a\\|b |" in text
    assert "| 10 | 1.00 | 2 | 7.389 | 1.5 |" in text
    assert "| 20 | 2.00 | 2 | 7.389 |  |" in text
    parts = ["## 问题 1（HIT）", "````text\n参考```答\n````", "**第 10 步**（到长度上限", "甲", "**第 20 步**\n", "乙"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    lines = [json.dumps(entry(step, "甲")) + "\n" for step in (10, 20, 30)]
    (tmp_path / "eval_samples.jsonl").write_text("".join(lines))
    args = SimpleNamespace(output_dir=str(tmp_path), fsdp=[])
    for step, kept in ((20, [10, 20]), (0, [])):  # 0: a run that starts afresh
        callback = Samples([Question("", (1,), "问？", "")], None, [], {})
        callback.on_train_begin(args, SimpleNamespace(global_step=step), None)
        assert [e["step"] for e in callback.entries] == kept
