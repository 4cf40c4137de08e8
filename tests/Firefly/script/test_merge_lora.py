"""merge_lora.py on a real tiny MiniCPM with real PEFT adapters."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.script import merge_lora

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[1, 300, 41, 270, 19, 333, 84]])
TEMPLATE = "{% for m in messages %}<s><|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def make_adapter(base, folder, *, target=LINEAR, noise=0.05, vocab=None, **options):
    """An adapter whose every weight is drawn at random, saved with a tokenizer as train.py saves it."""
    torch.manual_seed(3)
    model = load_causal_lm(base)
    if vocab:
        model.resize_token_embeddings(vocab, mean_resizing=False)
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=target, task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save.default" in name:
                weight += torch.randn_like(weight) * noise
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def read(folder, name="config.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_merged_model_answers_as_base_plus_adapter(tiny_minicpm, tmp_path, capsys):
    together = make_adapter(tiny_minicpm, tmp_path / "adapter")
    out = tmp_path / "merged"
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "最大 logit 差" in said.err
    assert "100.0%" in said.err
    merged = load_causal_lm(out)
    torch.testing.assert_close(logits(merged), logits(together), atol=1e-4, rtol=0)
    assert (logits(load_causal_lm(tiny_minicpm)) - logits(merged)).abs().max() > 0.05
    assert read(out) == read(tiny_minicpm)  # MiniCPM's own config.json, key for key
    assert load_tokenizer(out).chat_template == TEMPLATE
    assert merged.generation_config.eos_token_id == [2, 3]
    assert read(out, "merge_info.json")["equal_greedy_tokens"] == 1.0
    assert not (tmp_path / "merged.part").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target": ["q_proj", "lm_head"]},
        {"target": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
def test_adapter_that_changes_tied_embeddings(tiny_minicpm, tmp_path, options):
    make_adapter(tiny_minicpm, tmp_path / "adapter", **options)
    together = PeftModel.from_pretrained(load_causal_lm(tiny_minicpm), tmp_path / "adapter").eval()
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    merged = load_causal_lm(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(together), atol=1e-4, rtol=0)
    assert read(tmp_path / "merged")["tie_word_embeddings"] is False


def test_adapter_with_a_larger_vocabulary(tiny_minicpm, tmp_path):
    rows = read(tiny_minicpm)["vocab_size"] + 8
    whole = ["embed_tokens", "lm_head"]
    together = make_adapter(tiny_minicpm, tmp_path / "adapter", vocab=rows, modules_to_save=whole)
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    assert read(tmp_path / "merged")["vocab_size"] == rows
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "merged")), logits(together), atol=1e-4, rtol=0)


def test_dtype_of_the_base_is_kept_unless_asked(tiny_minicpm, tmp_path):
    base = tmp_path / "base"
    load_causal_lm(tiny_minicpm, dtype=torch.bfloat16).save_pretrained(base)
    load_tokenizer(tiny_minicpm).save_pretrained(base)
    make_adapter(base, tmp_path / "adapter")
    command = ["--adapter", str(tmp_path / "adapter"), "--overwrite", "--out", str(tmp_path / "merged")]
    assert merge_lora.main(command) == 0
    assert load_causal_lm(tmp_path / "merged").dtype == torch.bfloat16
    assert read(tmp_path / "merged")["torch_dtype"] == "bfloat16"
    assert merge_lora.main([*command, "--dtype", "float32"]) == 0
    assert load_causal_lm(tmp_path / "merged").dtype == torch.float32


@pytest.fixture
def adapter(tiny_minicpm, tmp_path):
    make_adapter(tiny_minicpm, tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(capsys, *command) -> str:
    """Run the script, expect exit 2 and one sentence, and return the sentence."""
    assert merge_lora.main([str(part) for part in command]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("错误")]
    assert len(errors) == 1
    return errors[0]


def test_existing_output_is_kept(adapter, tiny_minicpm, tmp_path, capsys):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "keep.txt").write_text("mine")
    assert "--overwrite" in refused(capsys, "--adapter", adapter, "--out", out)
    assert (out / "keep.txt").read_text() == "mine"
    assert "换一个 --out" in refused(capsys, "--adapter", adapter, "--out", adapter, "--overwrite")
    base = refused(capsys, "--adapter", adapter, "--out", tiny_minicpm, "--overwrite")
    assert "不能写回底座" in base


def test_full_model_needs_no_merge(tiny_minicpm, tmp_path, capsys):
    assert "不需要合并" in refused(capsys, "--adapter", tiny_minicpm, "--out", tmp_path / "merged")


def test_folder_above_the_checkpoints_names_them(adapter, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.move(adapter, tmp_path / "run" / "checkpoint-30")
    assert "checkpoint-30" in refused(capsys, "--adapter", tmp_path / "run", "--out", tmp_path / "merged")


def test_adapter_without_weights_or_base(adapter, tmp_path, capsys):
    config = read(adapter, "adapter_config.json")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "--base" in refused(capsys, "--adapter", adapter, "--out", tmp_path / "merged")
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")})
    )
    assert "gone" in refused(capsys, "--adapter", adapter, "--out", tmp_path / "merged")
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refused(capsys, "--adapter", adapter, "--out", tmp_path / "merged")


def test_nan_adapter_is_never_merged(tiny_minicpm, tmp_path, capsys):
    make_adapter(tiny_minicpm, tmp_path / "adapter", noise=float("nan"))
    for extra in ([], ["--no-check"]):
        assert "NaN" in refused(capsys, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged", *extra)
        assert not (tmp_path / "merged").exists()


def test_a_merge_gone_wrong_is_not_renamed(adapter, tmp_path, capsys, monkeypatch):
    def forget_the_adapter(model, _):
        return model.unload()

    monkeypatch.setattr(merge_lora, "merge", forget_the_adapter)
    assert "核对失败" in refused(capsys, "--adapter", adapter, "--out", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_base_is_named(adapter, tmp_path, capsys):
    from tests.conftest import CORPUS, load_script

    build = load_script("scripts/make_tiny_model.py").build_tiny_model
    other = build(tmp_path / "other", CORPUS, vocab_size=400, hidden_size=128, num_layers=1)
    assert "other" in refused(capsys, "--adapter", adapter, "--base", other, "--out", tmp_path / "merged")


def test_relative_base_is_looked_for_from_firefly_too(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "Firefly").mkdir()
    monkeypatch.setattr(merge_lora, "FIREFLY", tmp_path / "Firefly")
    found = merge_lora.find_base(tmp_path, {"base_model_name_or_path": "../models/base"})
    assert (tmp_path / "models" / "base").samefile(found)
    assert merge_lora.find_base(tmp_path, {"base_model_name_or_path": "owner/name"}) == "owner/name"


def test_qlora_adapter_is_said_to_be_one(adapter, tmp_path, capsys):
    command = ["--adapter", str(adapter), "--out", str(tmp_path / "merged"), "--no-check", "--overwrite"]
    assert merge_lora.main(command) == 0
    assert "QLoRA" not in capsys.readouterr().err
    (adapter / "train_args.json").write_text('{"train_mode": "qlora"}')
    assert merge_lora.main(command) == 0
    assert "QLoRA" in capsys.readouterr().err
