"""Every train_args file against the code that reads it, and the promised values of the MiniCPM4 files."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from Firefly.component.argument import CustomizedArguments, build_arguments
from Firefly.component.config import load_file, read_train_args
from Firefly.component.template import TEMPLATES

FIREFLY = Path(__file__).resolve().parents[2] / "Firefly"
TRAIN_ARGS = FIREFLY / "train_args"
FILES = sorted(path for kind in ("json", "yaml", "yml") for path in TRAIN_ARGS.glob(f"*/*/*.{kind}"))
OURS = {field.name for field in fields(CustomizedArguments)}


def load(name: str) -> dict:
    return json.loads((TRAIN_ARGS / name).read_text(encoding="utf-8"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_every_key_is_one_that_the_trainer_knows_today(path):
    values, notices = read_train_args(str(path))
    assert notices == []  # no old name
    assert values == load_file(str(path))


def test_values_build_the_arguments(path, tmp_path):
    values, _ = read_train_args(str(path))
    values |= {"output_dir": str(tmp_path), "use_cpu": True}
    values.pop("deepspeed", None)  # needs a GPU and the deepspeed package
    custom, training = build_arguments(values, str(path))
    assert isinstance(training, TrainingArguments)
    for key, value in values.items():
        assert getattr(custom if key in OURS else training, key) in (value, [value]), key


def test_folders_and_name_agree_with_the_mode(path):
    values = load_file(str(path))
    task, mode = path.parts[-3:-1]
    assert (values["task_type"], values["train_mode"]) == (task, mode)
    assert path.stem.endswith(f"-{task}-{mode}")
    assert values["output_dir"] == f"output/{path.stem}"
    assert ("lora_rank" in values) == (mode != "full")


def test_paths_in_a_file_lead_somewhere_from_the_firefly_folder(path):
    values = load_file(str(path))
    assert values["template_name"] in TEMPLATES
    if values["task_type"] == "sft":
        assert values["train_file"] == "../data/processed/hit_firefly_conversation.jsonl"
    assert values["train_file"].startswith("../data/")
    if values["model_name_or_path"].startswith("../models/"):  # made here: models/README.md says how
        assert Path(values["model_name_or_path"]).name in (FIREFLY.parent / "models" / "README.md").read_text()
    else:
        assert values["model_name_or_path"].count("/") == 1  # a hub id: owner/name
        assert not values["model_name_or_path"].startswith((".", "/"))
    if values["train_mode"] == "full" and "tiny" not in path.stem:
        assert (FIREFLY / values["deepspeed"]).is_file()


def test_every_template_has_a_file():
    assert {load_file(str(path))["template_name"] for path in FILES} == set(TEMPLATES)


LORA = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 200,
    "lora_rank": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "optim": "paged_adamw_32bit",
    "max_grad_norm": 0.3,
}
PROMISED = {
    "qlora": LORA | {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
    "lora": LORA | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "full": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "deepspeed": "train_args/ds_z3_config.json",
    },
}


@pytest.mark.parametrize("mode", PROMISED)
def test_minicpm4_files_hold_what_was_promised(mode):
    values = load(f"sft/{mode}/minicpm4-0.5b-sft-{mode}.json")
    promised = PROMISED[mode] | {
        "model_name_or_path": "openbmb/MiniCPM4-0.5B",
        "template_name": "minicpm4",
        "bf16": True,
        "gradient_checkpointing": True,
        "max_seq_length": 1024,
    }
    assert {key: values.get(key) for key in promised} == promised


def test_bloom_full_file_is_there():
    values = load("sft/full/bloom-1b1-sft-full.json")
    assert (values["model_name_or_path"], values["template_name"]) == ("bigscience/bloom-1b1", "default")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_files_take_batch_precision_and_optimizer_from_the_run(stage):
    config = load(f"ds_z{stage}_config.json")
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert ("offload_param" in zero) == (stage == 3)
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == "auto"
    assert config["gradient_clipping"] == config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    # a block of its own would overrule optim and lr_scheduler_type of the train_args file without a word
    assert "optimizer" not in config
    assert "scheduler" not in config
