"""Loading and saving: what lands on disk, and what a user is told when the folder is not what it should be."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from Firefly.component.checkpoint import (
    MiniCPMConfig,
    load_causal_lm,
    load_tokenizer,
    restore_minicpm_files,
    save_checkpoint,
)
from Firefly.component.errors import UserError
from Firefly.component.resolve import resolve_model

IDS = torch.tensor([[1, 300, 41, 270, 19, 333, 84]])


def read(folder, name="config.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def base(tiny_minicpm, tmp_path):
    """A copy of the tiny model with auto_map and .py files, as the hub has them."""
    folder = shutil.copytree(tiny_minicpm, tmp_path / "base")
    config = read(folder) | {"auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"}}
    write(folder, "config.json", config)
    (folder / "modeling_minicpm.py").write_text("# the original code\n")
    return folder


def test_saved_checkpoint_is_a_minicpm_checkpoint(base, tmp_path):
    model = load_causal_lm(base)
    save_checkpoint(model, tmp_path / "saved", load_tokenizer(base))
    assert read(tmp_path / "saved") == read(base)
    assert (tmp_path / "saved" / "modeling_minicpm.py").read_text() == "# the original code\n"
    assert torch.equal(logits(load_causal_lm(tmp_path / "saved")), logits(model))
    assert read(tmp_path / "saved", "generation_config.json")["eos_token_id"] == [2, 3]


def test_dtype_and_vocabulary_are_updated(base, tmp_path):
    model = load_causal_lm(base, dtype=torch.bfloat16)
    rows = model.get_input_embeddings().num_embeddings + 3
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.config.use_cache = False  # as training with gradient checkpointing leaves it
    model.save_pretrained(tmp_path / "saved")
    assert read(tmp_path / "saved") == read(base) | {"torch_dtype": "bfloat16", "vocab_size": rows}
    assert load_causal_lm(tmp_path / "saved").dtype == torch.bfloat16


def test_trainer_saves_minicpm_without_being_told(base, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", max_steps=1)
    trainer = Trainer(load_causal_lm(base), arguments, train_dataset=[{"input_ids": IDS[0], "labels": IDS[0]}])
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        assert read(folder) == read(base)
        assert (folder / "modeling_minicpm.py").exists()


def test_adapter_names_the_base_as_the_user_did(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = get_peft_model(load_causal_lm("base"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_checkpoint(model, tmp_path / "adapter", load_tokenizer("base"))
    assert read(tmp_path / "adapter", "adapter_config.json")["base_model_name_or_path"] == "base"
    assert not (tmp_path / "adapter" / "config.json").exists()
    assert load_tokenizer(tmp_path / "adapter").chat_template


def test_config_survives_copies_and_is_granite_in_memory(base):
    config = load_causal_lm(base).config
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert isinstance(twin, MiniCPMConfig)
        assert twin._minicpm_config == read(base)
    assert config.to_dict()["model_type"] == "granite"
    assert not [key for key in config.to_dict() if "minicpm" in key]


def test_restore_mends_a_config_that_something_else_wrote(base, tmp_path):
    model = load_causal_lm(base)
    model.save_pretrained(tmp_path / "saved")
    write(tmp_path / "saved", "config.json", model.config.to_dict())
    assert restore_minicpm_files(tmp_path / "saved", model) is True
    assert read(tmp_path / "saved") == read(base)


def test_other_models_go_through_the_auto_classes(tmp_path):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    model = load_causal_lm(tmp_path / "llama")
    assert type(model) is LlamaForCausalLM
    assert restore_minicpm_files(tmp_path / "llama", model) is False
    assert read(tmp_path / "llama")["model_type"] == "llama"


def test_nf4_on_cpu(tiny_minicpm):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = load_causal_lm(tiny_minicpm, quantization_config=quantization)
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    exact, rounded = logits(load_causal_lm(tiny_minicpm)), logits(model)
    assert torch.isfinite(rounded).all()
    both = torch.stack([exact.flatten(), rounded.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.7  # the same model, coarser


# Tokenizers.


def test_tokenizer_file_keeps_its_own_normaliser(tmp_path):
    """LlamaTokenizer of transformers 5 would prepend a space mark that this file does not ask for."""
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", "你", "好", "<|im_end|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "<|im_end|>",
            "unk_token": "<unk>",
            "pad_token": None,
            "legacy": True,
            "sp_model_kwargs": {},
            "add_prefix_space": None,
            "additional_special_tokens": ["<|im_end|>"],
        },
    )
    write(tmp_path, "generation_config.json", {"pad_token_id": 2})
    loaded = load_tokenizer(tmp_path)
    assert loaded("你好", add_special_tokens=False)["input_ids"] == [4, 5]
    assert loaded(" 你  好", add_special_tokens=False)["input_ids"] == [3, 4, 3, 3, 5]
    assert (loaded.pad_token, loaded.eos_token) == ("</s>", "<|im_end|>")

    loaded.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again(" 你  好<|im_end|>", add_special_tokens=False)["input_ids"] == [3, 4, 3, 3, 5, 6]
    saved = read(tmp_path / "saved", "tokenizer_config.json")
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"  # a name that transformers 4 knows
    assert saved["additional_special_tokens"] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("special", "generation", "pad"),
    [
        ({"pad_token": "<s>"}, {"pad_token_id": 2}, "<s>"),
        ({}, {"pad_token_id": 2}, "</s>"),
        ({}, {}, "</s>"),
        ({"eos_token": "</s>"}, {"pad_token_id": 2}, "<unk>"),
        ({"eos_token": "</s>", "unk_token": None}, {}, "</s>"),
    ],
)
def test_pad_token(tmp_path, special, generation, pad):
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<|im_end|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    write(tmp_path, "tokenizer_config.json", names | special)
    write(tmp_path, "generation_config.json", generation)
    assert load_tokenizer(tmp_path).pad_token == pad


# Folders that are no model.


def break_config(folder):
    (folder / "config.json").write_text('{"architectures": [')


def break_shards(folder):
    (folder / "model.safetensors").unlink()
    write(folder, "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})


def break_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change_config(key, value):
    return lambda folder: write(folder, "config.json", read(folder) | {key: value})


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "没有权重文件.*tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "没有 config.json"),
        (break_config, r"config.json:1.*JSON"),
        (lambda folder: (folder / "config.json").write_bytes("模型".encode("gbk")), "UTF-8"),
        (break_shards, "model-00001-of-00002"),
        (break_weights, "损坏或不完整"),
        (change_config("num_hidden_layers", 3), r"缺 9 个张量.*layers\.2"),
        (change_config("intermediate_size", 192), "形状与 config.json 不符"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
            "git-lfs",
        ),
        (lambda folder: write(folder, "config.json", {"model_type": "nonesuch"}), "不认识"),
    ],
)
def test_broken_folder_is_answered_in_one_sentence(tiny_minicpm, tmp_path, spoil, named):
    folder = shutil.copytree(tiny_minicpm, tmp_path / "broken")
    spoil(folder)
    with pytest.raises(UserError, match=named) as caught:
        load_causal_lm(folder)
    assert "\n" not in str(caught.value)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="不存在"):
        resolve_model(tmp_path / "nothing" / "here")
    with pytest.raises(UserError, match="不存在.*download.py.*merge_lora.py"):  # and not "no answer from the hub"
        resolve_model("models/not-merged-yet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="这是一个文件"):
        resolve_model(tmp_path / "file")
    (tmp_path / "adapter").mkdir()
    write(tmp_path / "adapter", "adapter_config.json", {})
    with pytest.raises(UserError, match="merge_lora"):
        resolve_model(tmp_path / "adapter")
    with pytest.raises(UserError, match="分词器"):
        load_tokenizer(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="USE_MODELSCOPE"):  # HF_HUB_OFFLINE is set for tests
        resolve_model("nobody/no-such-model")


def test_remote_code_is_refused(tiny_minicpm, tmp_path):
    folder = shutil.copytree(tiny_minicpm, tmp_path / "custom")
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}
    write(folder, "config.json", {"model_type": "x_model", "architectures": ["X"], "auto_map": auto_map})
    (folder / "configuration_x.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UserError, match="trust_remote_code"):
        load_causal_lm(folder)
