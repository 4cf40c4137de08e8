"""merge_lora.py on a real tiny MiniCPM with real PEFT adapters."""

import importlib
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from Firefly.component.checkpoint import keep_nf4_readable, load_causal_lm, load_tokenizer, nf4_config
from Firefly.script import merge_lora
from tests.Firefly.conftest import conversation

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
            if "lora_" in name or "modules_to_save.default" in name or "trainable_tokens_delta" in name:
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
        {"trainable_token_indices": {"lm_head": [5, 300]}},
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


@pytest.mark.parametrize("rows", [[5, 300], {"embed_tokens": [5, 300]}, {"embed_tokens": [5], "lm_head": [5]}], ids=str)
def test_rows_trained_in_tied_embeddings_stay_tied(tiny_minicpm, tmp_path, rows):
    together = make_adapter(tiny_minicpm, tmp_path / "adapter", trainable_token_indices=rows)
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "merged")), logits(together), atol=1e-4, rtol=0)
    assert read(tmp_path / "merged").get("tie_word_embeddings", True) is True


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}], ids=str)
def test_variants_in_16_bit_are_summed_in_float32(tiny_minicpm, tmp_path, options):
    base = tmp_path / "base"
    load_causal_lm(tiny_minicpm, dtype=torch.bfloat16).save_pretrained(base)
    load_tokenizer(tiny_minicpm).save_pretrained(base)
    make_adapter(base, tmp_path / "adapter", **options)
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    wide = PeftModel.from_pretrained(load_causal_lm(base, dtype=torch.float32), tmp_path / "adapter")
    expected = wide.merge_and_unload().bfloat16().state_dict()
    for name, weight in load_causal_lm(tmp_path / "merged", dtype="auto").state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=0, rtol=0.01)  # one step of bfloat16 at most
        assert (weight == expected[name]).float().mean() > 0.99, name


def test_pissa_adapter_of_another_trainer(tiny_minicpm, tmp_path):
    """Saved as PEFT does, it belongs on the base without its principal part, which PEFT works out again."""
    together = make_adapter(tiny_minicpm, tmp_path / "adapter", init_lora_weights="pissa")
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "merged")), logits(together), atol=1e-4, rtol=0)


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
    script_merge = importlib.import_module("component.merge")  # what the script imports, another module to Python
    monkeypatch.setattr(script_merge, "merge", lambda model, *_: model.unload())
    assert "核对失败" in refused(capsys, "--adapter", adapter, "--out", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_base_is_named(adapter, tmp_path, capsys):
    from tests.conftest import CORPUS, load_script

    build = load_script("scripts/make_tiny_model.py").build_tiny_model
    other = build(tmp_path / "other", CORPUS, vocab_size=400, hidden_size=128, num_layers=1)
    assert "other" in refused(capsys, "--adapter", adapter, "--base", other, "--out", tmp_path / "merged")


@pytest.fixture
def qlora_adapter(tiny_minicpm, adapter, tmp_path):
    """The adapter as a QLoRA run in float32 leaves it, with a held-out file of twelve conversations."""
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text(
        "".join(json.dumps(conversation(i), ensure_ascii=False) + "\n" for i in range(12)), encoding="utf-8"
    )
    values = {"train_mode": "qlora", "eval_file": str(held_out), "max_seq_length": 128}
    (adapter / "train_args.json").write_text(json.dumps(values))
    return adapter


def on_nf4(base, adapter):
    model = load_causal_lm(base, quantization_config=nf4_config(torch.float32), device_map={"": "cpu"})
    keep_nf4_readable(model)
    return PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize("held_out", [True, False])
def test_qlora_adapter_is_merged_both_ways_and_the_better_is_kept(
    qlora_adapter, tiny_minicpm, tmp_path, capsys, held_out
):
    """This adapter is noise, so on data held out the base that lost nothing does better; else the nearer one is kept."""
    if not held_out:
        text = (qlora_adapter / "train_args.json").read_text()
        (qlora_adapter / "train_args.json").write_text(text.replace("eval_file", "train_file"))
    out = tmp_path / "merged"
    assert merge_lora.main(["--adapter", str(qlora_adapter), "--out", str(out)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("QLoRA 的两种合并")]
    assert len(said) == 1
    assert "12 条" in said[0]
    assert ("采用16/32 位底座" if held_out else "采用反量化底座") in said[0]
    info = read(out, "merge_info.json")
    assert info["base"] == str(tiny_minicpm)
    assert info["qlora_merge"] == ("base" if held_out else "dequantized")
    assert info["measured"]["held_out"] is held_out
    loss, merges = info["measured"]["loss_adapter_on_nf4"], info["measured"]["merges"]
    assert merges["base"]["loss"] < loss
    assert merges["dequantized"]["kl"] < 1e-6 < merges["base"]["kl"]  # the very weights it was trained on
    assert merges["dequantized"]["equal_greedy_tokens"] == 1.0
    assert abs(merges["dequantized"]["loss"] - loss) < 1e-5
    base = PeftModel.from_pretrained(load_causal_lm(tiny_minicpm), qlora_adapter).eval()
    expected = base if held_out else on_nf4(tiny_minicpm, qlora_adapter)
    torch.testing.assert_close(logits(load_causal_lm(out)), logits(expected), atol=1e-4, rtol=0)
    assert not list(tmp_path.glob("merged.part*"))
    assert "quantization_config" not in read(out)


def test_qlora_merge_can_be_ordered(qlora_adapter, tiny_minicpm, tmp_path, capsys):
    command = ["--adapter", str(qlora_adapter), "--out", str(tmp_path / "merged"), "--overwrite", "--qlora-merge"]
    trained = on_nf4(tiny_minicpm, qlora_adapter)
    together = PeftModel.from_pretrained(load_causal_lm(tiny_minicpm), qlora_adapter).eval()
    for kind, expected in (("base", together), ("dequantized", trained)):
        assert merge_lora.main([*command, kind]) == 0
        torch.testing.assert_close(logits(load_causal_lm(tmp_path / "merged")), logits(expected), atol=1e-4, rtol=0)
        assert read(tmp_path / "merged", "merge_info.json")["qlora_merge"] == kind


@pytest.mark.parametrize("files", [{"eval_file": "gone.jsonl"}, {"train_file": True}], ids=str)
def test_qlora_without_held_out_data_takes_what_is_there(qlora_adapter, tmp_path, files):
    values = read(qlora_adapter, "train_args.json")
    held_out = values.pop("eval_file")
    values |= {key: held_out if path is True else path for key, path in files.items()}
    (qlora_adapter / "train_args.json").write_text(json.dumps(values))
    assert merge_lora.main(["--adapter", str(qlora_adapter), "--out", str(tmp_path / "merged"), "--no-check"]) == 0
    measured = read(tmp_path / "merged", "merge_info.json")["measured"]
    assert measured["held_out"] is False
    assert ("训练集" if files.get("train_file") else "内置提示") in measured["sample"]


def test_qlora_without_bitsandbytes_is_merged_into_the_base(qlora_adapter, tiny_minicpm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert merge_lora.main(["--adapter", str(qlora_adapter), "--out", str(tmp_path / "merged")]) == 0
    assert "没有安装 bitsandbytes" in capsys.readouterr().err
    assert read(tmp_path / "merged", "merge_info.json")["qlora_merge"] == "base"


def test_bad_eval_file_is_named(qlora_adapter, tmp_path, capsys):
    command = ["--adapter", qlora_adapter, "--out", tmp_path / "merged", "--eval-file"]
    assert "gone.jsonl" in refused(capsys, *command, tmp_path / "gone.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    assert "bad.jsonl:1" in refused(capsys, *command, tmp_path / "bad.jsonl")
