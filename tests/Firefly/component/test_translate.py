import pytest

from Firefly.component.config import read_train_args
from Firefly.component.errors import UserError
from Firefly.component.keys import key_kinds
from Firefly.component.translate import RENAMED, translate_llamafactory, translate_old_keys

OLD = [
    ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
    ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
    ({"warmup_ratio": 0.03}, {"warmup_steps": 0.03}),
    ({"warmup_ratio": 0.03, "warmup_steps": 200}, {"warmup_steps": 200}),
    ({"logging_dir": "x"}, {}),
    ({"save_safetensors": False}, {}),
    ({"no_cuda": True}, {"use_cpu": True}),
    ({"optim": "adamw_hf"}, {"optim": "adamw_torch"}),
]


@pytest.mark.parametrize(("old", "new"), OLD)
def test_old_keys_are_translated_with_a_notice(old, new):
    values, notices = translate_old_keys(old)
    assert values == new
    assert len(notices) == 1
    assert next(iter(old)) in notices[0]


def test_new_key_beats_its_old_name():
    assert translate_old_keys({"evaluation_strategy": "no", "eval_strategy": "steps"})[0] == {"eval_strategy": "steps"}


# The shape of LLaMA-Factory's own examples.
THEIR_YAML = """
### model
model_name_or_path: m
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all
### dataset
{data}
template: cpm4
cutoff_len: 512
max_samples: null
preprocessing_num_workers: 4
overwrite_cache: true
### output
output_dir: o
plot_loss: true
overwrite_output_dir: true
report_to: none
### train
learning_rate: 1.0e-4
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
flash_attn: fa2
neat_packing: true
"""


def test_their_file_trains_here_once_it_names_its_data(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(THEIR_YAML.format(data="dataset: identity"), encoding="utf-8")
    with pytest.raises(UserError, match=r"dataset.*train_file"):
        read_train_args(str(path))
    values, notices = read_train_args(str(path), ["--train_file", "d.jsonl"])
    assert values == {
        "model_name_or_path": "m",
        "trust_remote_code": True,
        "task_type": "sft",
        "do_train": True,
        "train_mode": "lora",
        "lora_rank": 16,
        "lora_alpha": 32,  # their default, twice the rank
        "lora_dropout": 0.0,  # theirs
        "lora_target_modules": "all-linear",
        "gradient_checkpointing": True,  # theirs
        "template_name": "minicpm4",
        "max_seq_length": 512,
        "tokenize_num_workers": 4,
        "train_file": "d.jsonl",
        "output_dir": "o",
        "overwrite_output_dir": True,
        "report_to": "none",
        "learning_rate": 1e-4,
        "warmup_steps": 0.1,
        "bf16": True,
        "ddp_timeout": 180000000,
        "attn_implementation": "flash_attention_2",
        "packing": True,
    }
    for word in ("cutoff_len", "dataset", "plot_loss", "lora_alpha=32"):
        assert any(word in notice for notice in notices), word


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"finetuning_type": "lora", "quantization_bit": 4}, {"train_mode": "qlora"}),
        ({"quantization_bit": 4, "quantization_method": "bnb", "double_quantization": True}, {"train_mode": "qlora"}),
        ({"quantization_bit": None}, {}),
        ({"lora_target": "q_proj, v_proj"}, {"lora_target_modules": ["q_proj", "v_proj"]}),
        ({"flash_attn": "auto"}, {}),
        ({"val_size": 0.1}, {"eval_ratio": 0.1}),
        ({"packing": None, "neat_packing": False}, {}),
        ({"packing": True, "neat_packing": True}, {"packing": True}),
        ({"resume_from_checkpoint": True, "output_dir": "o"}, {"resume_from_checkpoint_path": "o", "output_dir": "o"}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"stage": "dpo", "finetuning_type": "full"}, {"task_type": "dpo", "train_mode": "full"}),
        ({"cutoff_len": 512, "max_seq_length": 256}, {"max_seq_length": 256}),
    ],
)
def test_what_means_the_same_is_taken(theirs, ours):
    values, _ = translate_llamafactory(theirs, "a.yaml")
    assert ours.items() <= values.items()
    assert not (theirs.keys() - ours.keys()) & values.keys()  # their names are gone


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"stage": "ppo"}, ["stage", "ppo", "sft", "dpo"]),
        ({"finetuning_type": "freeze"}, ["freeze", "train_mode"]),
        ({"finetuning_type": "lora", "quantization_bit": 8}, ["quantization_bit=8", "qlora"]),
        ({"finetuning_type": "full", "quantization_bit": 4}, ["full", "qlora"]),
        ({"quantization_type": "fp4"}, ["fp4", "nf4"]),
        ({"train_on_prompt": True}, ["train_on_prompt", "删去"]),
        ({"template": "default"}, ["template_name"]),
        ({"val_size": 100}, ["100", "eval_ratio"]),
        ({"flash_attn": "fa9"}, ["fa9", "attn_implementation"]),
        ({"stage": ["sft"]}, ["stage", "sft"]),
    ],
)
def test_what_means_something_else_is_refused_with_what_to_write(theirs, words):
    with pytest.raises(UserError) as error:
        translate_llamafactory(theirs, "a.yaml")
    assert all(word in str(error.value) for word in ["a.yaml", *words]), error.value


def test_our_own_files_are_untouched():
    ours = {"task_type": "sft", "train_mode": "qlora", "packing": False, "lora_rank": 64, "deepspeed": None}
    assert translate_llamafactory(ours, "a.json") == (ours, [])


def test_every_name_leads_to_a_key_that_exists():
    assert set(RENAMED.values()) <= set(key_kinds())
