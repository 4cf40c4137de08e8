"""DPO: its loss and rewards against a slow computation, its reference, and runs from data to a saved folder."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.prompt import encode_prompt

trl = pytest.importorskip("trl")

from Firefly.component.argument import build_arguments  # noqa: E402
from Firefly.component.dpo import build_preference_trainer  # noqa: E402
from Firefly.component.template import use_template  # noqa: E402
from Firefly.component.vocabulary import add_tokens  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
BETA = 0.3


def pair(i: int) -> dict:
    question = ["校训是什么？", "学校有几个校区？", "你是谁？"][i % 3]
    chosen = [{"role": "assistant", "content": "规格严格，功夫到家。" * (1 + i % 3)}]
    return {"prompt": question, "chosen": chosen, "rejected": [{"role": "assistant", "content": f"不知道{i}。"}]}


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair(i), ensure_ascii=False) + "\n" for i in range(12)), encoding="utf-8")
    return path


@pytest.fixture
def dpo_args(write_args, pairs_file):
    def write(**changes):
        values = {"task_type": "dpo", "train_file": str(pairs_file), "beta": BETA, "learning_rate": 5e-3}
        return write_args([], **{**values, **changes})

    return write


@pytest.fixture
def build(dpo_args):
    def build(**changes):
        values = json.loads(Path(dpo_args(**changes)).read_text())
        custom, args = build_arguments(values | {"use_cpu": True}, "args.json")
        tokenizer = load_tokenizer(values["model_name_or_path"])
        add_tokens(tokenizer, custom.add_tokens)
        return build_preference_trainer(custom, args, tokenizer, use_template(tokenizer, "minicpm4"))

    return build


def shift_weights(model: torch.nn.Module) -> None:
    """Move the policy away from its reference, or rewards would all be 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def answer_log_prob(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The slow way: one unpadded text, the whole softmax, one token after the other."""
    with torch.no_grad():
        log_p = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(log_p[len(prompt) + i - 1, token] for i, token in enumerate(answer))


def logged(out: Path, key: str) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


@pytest.mark.parametrize(
    "change",
    [
        {"train_mode": "full"},
        {"train_mode": "lora", "gradient_checkpointing": True},
        {"train_mode": "qlora"},
        {"train_mode": "qlora", "use_dora": True},
        {"train_mode": "lora", "pissa_init": True},
        {"train_mode": "lora", "add_tokens": ["规格严格，"]},
        {"train_mode": "full", "add_tokens": ["规格严格，"]},
    ],
    ids=lambda change: "-".join(str(value) for value in change.values()),
)
def test_loss_and_rewards_are_those_of_the_paper(build, change):
    trainer = build(per_device_train_batch_size=3, **change)
    model = trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator(rows)
    assert trainer.compute_loss(model, batch).item() == pytest.approx(math.log(2), abs=1e-6)

    before = {
        row: [answer_log_prob(model, r["prompt_ids"], r[row]) for r in rows] for row in ("chosen_ids", "rejected_ids")
    }
    shift_weights(model)
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(model, batch)
    rewards = {
        row: BETA
        * torch.stack([answer_log_prob(model, r["prompt_ids"], r[row]) - old for r, old in zip(rows, was, strict=True)])
        for row, was in before.items()
    }
    margins = rewards["chosen_ids"] - rewards["rejected_ids"]
    assert margins.abs().max() > 0.01
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), abs=1e-5)
    figures = trainer._metrics["train"]
    for name, expected in (
        ("chosen", rewards["chosen_ids"]),
        ("rejected", rewards["rejected_ids"]),
        ("margins", margins),
    ):
        assert figures[f"rewards/{name}"] == [pytest.approx(expected.mean().item(), abs=1e-5)], name


def test_adapters_stay_float32_and_the_reference_needs_no_second_one(build):
    trainer = build(train_mode="qlora", bf16=True)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert list(trainer.model.peft_config) == ["default"]
    assert trainer.ref_model is None


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_a_run_raises_the_margin_and_saves_a_whole_folder(train_main, dpo_args, tmp_path, mode):
    out = tmp_path / "out"
    change = {"eval_ratio": 0.25, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    lr = 1e-3 if mode == "full" else 1e-2
    assert train_main(["--train_args_file", dpo_args(train_mode=mode, max_steps=8, learning_rate=lr, **change)]) == 0
    assert logged(out, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(out, "rewards/margins")[-1] > 0.2
    assert logged(out, "eval_loss")[-1] < 0.6
    results = json.loads((out / "train_results.json").read_text())
    assert (results["train_records"], results["eval_rewards/accuracies"]) == (9, 1.0)
    assert results["train_tokens_per_second"] > 0
    tokenizer = load_tokenizer(out)
    assert "bos_token" in tokenizer.chat_template
    stop = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in stop
    assert (out / "checkpoint-4" / "chat_template.jinja").exists()
    if mode == "full":
        assert json.loads((out / "config.json").read_text())["architectures"] == ["MiniCPMForCausalLM"]
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": "校训是什么？"}])
        load_causal_lm(out).generate(torch.tensor([prompt]), max_new_tokens=2)


def test_stage_two_is_measured_from_the_adapter_it_starts_from_and_resumes_exactly(
    train_main, dpo_args, write_args, tmp_path
):
    assert train_main(["--train_args_file", write_args(output_dir=str(tmp_path / "sft"), learning_rate=0.01)]) == 0
    change = {"adapter_name_or_path": str(tmp_path / "sft"), "train_mode": "qlora", "bf16": True, "max_steps": 4}
    args = dpo_args(**change, save_strategy="steps", save_steps=2)
    assert train_main(["--train_args_file", args]) == 0
    out = tmp_path / "out"
    assert logged(out, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(out, "rewards/margins")[0] == 0.0
    assert not (out / "ref").exists()
    whole = load_file(out / "adapter_model.safetensors")
    resume = ["--resume_from_checkpoint_path", str(out / "checkpoint-2")]
    assert train_main(["--train_args_file", args, *resume]) == 0
    cut = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packing": True}, ["packing", "dpo"]),
        ({"neftune_noise_alpha": 5}, ["neftune_noise_alpha", "dpo"]),
        ({"train_mode": "lora", "lora_target_modules": ["q_proj", "lm_head"]}, ["lm_head"]),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(train_main, dpo_args, capsys, change, words):
    assert train_main(["--train_args_file", dpo_args(**change)]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_conversations_instead_of_pairs_are_named(train_main, write_args, capsys):
    assert train_main(["--train_args_file", write_args(task_type="dpo")]) == 2
    assert "train.jsonl:1: 缺少 prompt、chosen、rejected" in capsys.readouterr().err


def test_without_trl_one_sentence_says_how_to_install_it(dpo_args):
    code = "import sys; sys.modules['trl'] = None; import train; sys.exit(train.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--train_args_file", dpo_args()]
    done = subprocess.run(command, cwd=ROOT / "Firefly", capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert 'pip install "trl' in done.stderr
    assert "Traceback" not in done.stderr
