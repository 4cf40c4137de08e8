"""The tiny model is a MiniCPM checkpoint in the published form, made the same way every time."""

import json

import pytest
import torch

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.minicpm import is_minicpm, to_granite
from scripts import tiny_pretrain
from tests.conftest import CORPUS, load_script

script = load_script("scripts/make_tiny_model.py")
SIZE = {"vocab_size": 500, "hidden_size": 64, "num_layers": 1}


def test_config_has_the_published_form(tiny_minicpm):
    config = json.loads((tiny_minicpm / "config.json").read_text())
    assert is_minicpm(config)
    assert "model_type" not in config
    assert "tie_word_embeddings" not in config
    assert config["rope_scaling"]["rope_type"] == "longrope"
    assert config["eos_token_id"] == [2, 3]
    assert to_granite(config)["logits_scaling"] == 4.0
    generation = json.loads((tiny_minicpm / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([2, 3], 2)


def test_tokenizer_reads_any_text_back(tiny_minicpm):
    tokenizer = load_tokenizer(tiny_minicpm)
    for text in ("规格严格，功夫到家。", " 两个  空格\n\n换行\t制表", "没见过的字：龘😀", "mixed English 2024 x"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    ids = tokenizer("<|im_start|>user\n你好<|im_end|>\n")["input_ids"]
    assert ids[:2] == [1, 4]  # BOS, then the chat token as one id
    assert ids.count(3) == 1
    assert len(tokenizer) == load_causal_lm(tiny_minicpm).config.vocab_size


def test_untrained_model_answers_by_its_whole_prompt(tiny_minicpm):
    """Weights so small that only the last token matters would let any test of prompts pass."""
    model = load_causal_lm(tiny_minicpm)
    with torch.no_grad():
        one, two = model(torch.tensor([[1, 300, 301, 302]])).logits, model(torch.tensor([[1, 310, 311, 302]])).logits
    assert (one[0, -1] - two[0, -1]).abs().max() > 0.1
    assert model(torch.tensor([[1, 300, 301, 302]])).logits[0, -1].argmax() != 302


def test_same_seed_same_bytes(tmp_path):
    for name in ("a", "b"):
        script.build_tiny_model(tmp_path / name, CORPUS, **SIZE, pretrain_steps=2, batch_size=2, seq_length=32)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_pretraining_lowers_the_loss(tmp_path):
    folder = script.build_tiny_model(tmp_path / "model", CORPUS, **SIZE, pretrain_steps=60, batch_size=4, seq_length=32)
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    ids = torch.tensor([tokenizer(CORPUS[1])["input_ids"]])
    assert model(ids, labels=ids).loss < 3.0  # chance is ln(500) = 6.2


def test_every_second_document_is_a_chat_turn(tiny_minicpm):
    tokenizer = load_tokenizer(tiny_minicpm)
    text = tokenizer.decode(tiny_pretrain.pack(tokenizer, ["一。二。", "问？答。"], 4).flatten())
    assert text.startswith("<s>一。二。</s><s><|im_start|>user\n问？<|im_end|>\n<|im_start|>assistant\n答。")


def test_corpus_forms(tmp_path):
    (tmp_path / "a.txt").write_text("一\n\n二\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(
        '[{"instruction": "问", "input": "", "output": "答", "id": "x"}]', encoding="utf-8"
    )
    hit = "<|beginofutterance|>用户\\n你好\\n<|endofutterance|>\\n<|beginofutterance|>智能助手\\n您好\\n<|endofutterance|>"
    turns = '{"conversation_id": 1, "category": "G", "conversation": [{"human": "甲", "assistant": "乙"}]}'
    roles = '{"messages": [{"role": "user", "content": "丙"}]}'
    (tmp_path / "c.jsonl").write_text(f'{{"text": "{hit}"}}\n{turns}\n\n{roles}\n', encoding="utf-8")
    assert list(tiny_pretrain.read_corpus(tmp_path / "a.txt")) == ["一", "二"]
    assert list(tiny_pretrain.read_corpus(tmp_path / "b.json")) == ["问\n答"]
    assert list(tiny_pretrain.read_corpus(tmp_path / "c.jsonl")) == ["你好\n您好", "甲\n乙", "丙"]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": \n', "x.jsonl:2"),
        ("x.json", '[{"text": "a"},', "x.json:1"),
        ("x.txt", "中文".encode("gbk"), "UTF-8"),
        ("x.txt", "短", "语料太少"),
    ],
)
def test_bad_corpus_is_named(tmp_path, capsys, name, content, named):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert script.main(["--out", str(tmp_path / "model"), "--corpus", str(path)]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_existing_folder_is_kept(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "keep").write_text("")
    command = ["--out", str(tmp_path / "model"), "--corpus", str(tmp_path / "a.txt"), "--vocab-size", "500"]
    assert script.main([*command, "--hidden-size", "64", "--num-layers", "1"]) == 2
    assert (tmp_path / "model" / "keep").exists()
    assert script.main([*command, "--hidden-size", "64", "--num-layers", "1", "--overwrite"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    assert not (tmp_path / "model" / "keep").exists()


@pytest.mark.parametrize("change", [{"vocab_size": 100}, {"hidden_size": 100}])
def test_sizes_that_cannot_work(tmp_path, change):
    with pytest.raises(UserError, match=str(100)):
        script.build_tiny_model(tmp_path / "model", CORPUS, **(SIZE | change))
