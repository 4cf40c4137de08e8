"""LoRA's variants: where each starts, what it learns, and that what is saved fits the base as it was."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer

from Firefly.component.checkpoint import keep_nf4_readable, load_causal_lm
from Firefly.component.errors import UserError
from Firefly.component.lora import LoraPlus
from Firefly.component.model import _nf4_kwargs
from Firefly.script import merge_lora

IDS = torch.tensor([[1, 300, 41, 270, 19, 333, 84], [1, 5, 99, 280, 310, 47, 12]])
VARIANTS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"pissa_init": True},
    "pissa-rslora": {"pissa_init": True, "pissa_iter": 0, "use_rslora": True},
    "pissa-dora": {"pissa_init": True, "use_dora": True},
}


def logits(model: torch.nn.Module) -> torch.Tensor:
    was_training = model.training
    with torch.no_grad():
        result = model.eval()(IDS).logits.float()
    model.train(was_training)
    return result


def train(model: torch.nn.Module, steps: int = 3, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()


def fresh_base(tiny_minicpm, mode: str) -> torch.nn.Module:
    model = load_causal_lm(tiny_minicpm, **(_nf4_kwargs(torch.float32) if mode == "qlora" else {}))
    keep_nf4_readable(model)
    return model


@pytest.mark.parametrize("mode", ["lora", "qlora"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_starts_at_the_base_and_its_saved_adapter_fits_the_base(
    load_model, tiny_minicpm, tmp_path, variant, mode
):
    model, _, _ = load_model(train_mode=mode, **VARIANTS[variant])
    start = logits(fresh_base(tiny_minicpm, mode))
    torch.testing.assert_close(logits(model), start, atol=2e-5, rtol=0)
    train(model)
    trained = logits(model)
    assert (trained - start).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), start, atol=1e-6, rtol=0)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(fresh_base(tiny_minicpm, mode), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["dora", "pissa-rslora"])
def test_a_variant_merges_right(load_model, tmp_path, variant):
    model, tokenizer, _ = load_model(**VARIANTS[variant])
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "merged")), logits(model), atol=1e-4, rtol=0)


def test_pissa_learns_as_peft_does_on_the_base_without_its_principal_part(load_model, tiny_minicpm):
    ours, _, _ = load_model(pissa_init=True, pissa_iter=0)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(load_causal_lm(tiny_minicpm), config).train()
    frozen = {n: p.detach().clone() for n, p in ours.named_parameters() if "lora_" in n}
    for model in (ours, theirs):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            moving, fixed = parameter.grad.chunk(2, dim=0 if "lora_A" in name else 1)
            torch.testing.assert_close(moving, expected[name].grad, atol=1e-6, rtol=1e-4)
            assert not fixed.any()
    for model in (ours, theirs):
        train(model, steps=5)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-3, rtol=0)  # Adam divides rounding by rounding
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            dim = 0 if "lora_A" in name else 1
            assert torch.equal(parameter.chunk(2, dim)[1], frozen[name].chunk(2, dim)[1])
            assert not torch.equal(parameter.chunk(2, dim)[0], frozen[name].chunk(2, dim)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pissa_init": True, "lora_rank": 65}, ["lora_rank=65", "64"]),
        ({"pissa_init": True, "lora_target_modules": ["q_proj", "embed_tokens"]}, ["embed_tokens", "pissa_init"]),
        ({"pissa_init": True, "weight_decay": 0.1}, ["weight_decay=0.1"]),
        ({"pissa_init": True, "optim": "paged_adamw_8bit"}, ["paged_adamw_8bit", "paged_adamw_32bit"]),
        ({"train_mode": "full", "use_dora": True}, ["use_dora", "train_mode=full"]),
        ({"train_mode": "full", "loraplus_lr_ratio": 16}, ["loraplus_lr_ratio"]),
        ({"lora_target_modules": ["nothing"]}, ["lora_target_modules", "nothing"]),
        ({"gradient_checkpointing_offload": True}, ["gradient_checkpointing"]),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(load_model, change, words):
    with pytest.raises(UserError) as caught:
        load_model(**change)
    assert all(word in str(caught.value) for word in words), caught.value


class PlusTrainer(LoraPlus, Trainer):
    loraplus_lr_ratio = 16


def test_lora_plus_gives_b_its_own_rate(load_model):
    model, _, args = load_model(learning_rate=1e-3, use_dora=True)
    trainer = PlusTrainer(model=model, args=args)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = trainer.create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 16e-3]
    assert trainer.create_optimizer() is optimizer  # asked again, the groups are not split again
    assert len(optimizer.param_groups) == 2
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()  # Adam's first step is the learning rate itself
    for name, old in before.items():
        moved = (old - model.get_parameter(name)).mean().item()
        assert moved == pytest.approx(16e-3 if "lora_B" in name else 1e-3, rel=1e-3), name


def test_lora_plus_resumes_exactly(train_main, write_args, tmp_path):
    change = {"loraplus_lr_ratio": 8, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    args = write_args(**change, output_dir=str(tmp_path / "run"))
    assert train_main(["--train_args_file", args]) == 0
    whole = load_file(tmp_path / "run" / "adapter_model.safetensors")
    resume = ["--resume_from_checkpoint_path", str(tmp_path / "run" / "checkpoint-2")]
    assert train_main(["--train_args_file", args, *resume]) == 0
    cut = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
