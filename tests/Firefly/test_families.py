"""Every train_args file starts: as it is but for paths and steps, on a tiny model of its family with random weights.

Families that transformers knows are built from their own config class. Those that bring their own code get a folder
with code of its own: it runs where the file allows it (trust_remote_code), and is refused in a sentence where not.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from Firefly.component.config import load_file
from Firefly.component.template import TEMPLATES

from ..conftest import CORPUS, load_script
from .conftest import ROOT, conversation

TRAIN_ARGS = ROOT / "Firefly" / "train_args"
FILES = sorted(path for kind in ("json", "yaml", "yml") for path in TRAIN_ARGS.glob(f"*/*/*.{kind}"))
# The first part of a file's name -> the config class of transformers; "own code": the hub's folder brings its own.
FAMILIES = {
    "bloom": "BloomConfig",
    "gemma": "GemmaConfig",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "phi3": "Phi3Config",
    "qwen1.5": "Qwen2Config",
    "qwen2.5": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "minicpm3": "MiniCPM3Config",
    **dict.fromkeys(("yi", "deepseek", "llama2", "llama3", "vicuna", "ziya2", "zephyr", "minicpm5"), "LlamaConfig"),
    **dict.fromkeys(("minicpm", "minicpm4", "tiny"), "minicpm"),
    **dict.fromkeys(("baichuan", "baichuan2", "chatglm2", "chatglm3", "internlm2", "orion", "xverse"), "own code"),
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
BLOOM = {"hidden_size": 64, "n_layer": 2, "n_head": 2}
MIXTRAL = SHAPE | {"num_local_experts": 2, "num_experts_per_tok": 1}
MINICPM3 = {k: v for k, v in SHAPE.items() if k != "head_dim"} | {
    "dim_model_base": 16, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "tiny-own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def family(path: Path) -> str:
    return path.stem.partition("-")[0]


@pytest.fixture(scope="module")
def tokenizer():
    return load_script("scripts/make_tiny_model.py").train_tokenizer(CORPUS * 4, 600)


@pytest.fixture(scope="module")
def build_model(tmp_path_factory, tokenizer):
    """Return a function from a file's name and template to a model folder; each is built once."""
    folders = {}

    def build(name: str, template: str) -> Path:
        if (name, template) not in folders:
            folder = tmp_path_factory.mktemp("families") / f"{name}-{template}"
            words = set(re.findall(r"<[^<>\s'\"]+>|\[gMASK\]|sop", TEMPLATES[template].chat_template))
            brings = type(tokenizer).from_pretrained(_saved(tokenizer, folder))
            brings.add_special_tokens({"extra_special_tokens": sorted(words | set(brings.extra_special_tokens))})
            brings.save_pretrained(folder)
            write_model(folder, FAMILIES[name], len(brings))
            folders[name, template] = folder
        return folders[name, template]

    return build


def _saved(tokenizer, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def write_model(folder: Path, kind: str, vocab_size: int) -> None:
    ids = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 2}
    torch.manual_seed(0)
    if kind == "minicpm":
        maker = load_script("scripts/make_tiny_model.py")
        from Firefly.component.checkpoint import load_config, save_checkpoint

        (folder / "config.json").write_text(json.dumps(maker.minicpm_config(vocab_size, 64, 2, "float32")))
        save_checkpoint(transformers.GraniteForCausalLM(load_config(folder)), folder)
        return
    shape = {"BloomConfig": BLOOM, "MixtralConfig": MIXTRAL, "MiniCPM3Config": MINICPM3}.get(kind, SHAPE)
    config = getattr(transformers, "LlamaConfig" if kind == "own code" else kind)(**shape, **ids)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if kind == "own code":
        values = json.loads((folder / "config.json").read_text())
        own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
        values |= {"model_type": "tiny-own", "architectures": ["OwnForCausalLM"], "auto_map": own}
        (folder / "config.json").write_text(json.dumps(values))
        (folder / "own.py").write_text(OWN_CODE)


def write_data(folder: Path, task: str) -> Path:
    """A few records of the task's own format. The answers are short, so that records fit 128 tokens."""
    question, answer = {"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是智能助手。"}
    pair = {"prompt": [question], "chosen": [answer], "rejected": [answer | {"content": "夏天炎热。"}]}
    records = {
        "sft": [conversation(i) for i in range(4)],
        "pretrain": [{"text": text} for text in CORPUS * 4],
        "dpo": [pair] * 4,
    }[task]
    path = folder / "data" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path.parent if task == "pretrain" else path


@pytest.fixture
def start(train_main, build_model, tmp_path, monkeypatch):
    """Return a function that starts a file for two steps and returns the exit code."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(path: Path, *more: str) -> int:
        values = load_file(str(path))
        changes = {
            "model_name_or_path": build_model(family(path), values["template_name"]),
            "train_file": write_data(tmp_path, values["task_type"]),
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "warmup_steps": 0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "max_seq_length": 128,
            "max_prompt_length": 64,
            "save_strategy": "no",
            "report_to": "none",
            "deepspeed": "null",
            "logging_steps": 1,
        }
        flags = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
        return train_main(["--train_args_file", str(path), *flags, *more])

    return run


def test_every_file_has_a_family_here():
    assert {family(path) for path in FILES} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_starts_on_its_family(start, tmp_path, path):
    assert start(path) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 12 for loss in losses)  # ln(vocabulary) is 6.5


OWN = [path for path in FILES if FAMILIES[family(path)] == "own code"]


@pytest.mark.parametrize("path", OWN[:1] + OWN[-1:], ids=lambda path: path.stem)
def test_own_code_runs_only_where_the_file_allows_it(start, path, capsys):
    assert load_file(str(path))["trust_remote_code"] is True
    assert start(path, "--trust_remote_code", "false") == 2
    err = capsys.readouterr().err
    assert "自带代码" in err
    assert "trust_remote_code" in err
    assert "Traceback" not in err


def test_files_of_families_with_own_code_say_so():
    for path in FILES:
        assert (FAMILIES[family(path)] != "own code") or load_file(str(path)).get("trust_remote_code"), path
