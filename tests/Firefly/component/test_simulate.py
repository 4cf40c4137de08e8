"""Memory worked out with fake tensors, against real tensors and real steps."""

import copy

import numpy as np
import pytest
import torch
from transformers import Trainer

from Firefly.component.argument import build_arguments
from Firefly.component.attention import use_flat_rows
from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.collator import flatten_batch, pad_batch
from Firefly.component.errors import UserError
from Firefly.component.loss import install_target_loss
from Firefly.component.simulate import LiveBytes, optimizer_bytes, peak_of_step, simulate, state_bytes


def rows(count: int, length: int) -> list[dict[str, np.ndarray]]:
    """Records whose second half has loss."""
    labels = np.where(np.arange(length) < length // 2, -100, 5).astype(np.int32)
    return [{"input_ids": np.full(length, 5, np.int32), "labels": labels}] * count


@pytest.fixture
def settings(tiny_minicpm, tmp_path):
    """Return a function from keys of the file to (custom, args, tokenizer)."""

    def build(**changes):
        values = {"train_file": "x", "model_name_or_path": str(tiny_minicpm), "output_dir": str(tmp_path / "out")}
        values |= {
            "lora_rank": 4,
            "lora_dropout": 0.0,
            "use_cpu": True,
            "report_to": "none",
            "optim": "adamw_torch_fused",
        }
        return *build_arguments(values | changes, "args.json"), load_tokenizer(tiny_minicpm)

    return build


@pytest.fixture
def real_peak(load_model):
    """Return a function: the same count over the same step of the real model, with real tensors."""

    def run(custom, args, items, **changes):
        model, tokenizer, _ = load_model(optim="adamw_torch_fused", **changes)
        install_target_loss(model)
        flat = use_flat_rows(model, custom.attn_implementation, custom.padding_free)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return peak_of_step(model, flatten_batch(items) if flat else pad_batch(items, tokenizer.pad_token_id), args)

    return run


def test_live_bytes_counts_what_is_alive_once():
    live = LiveBytes()
    with live:
        a = torch.zeros(256)  # 1 KiB
        b = a.view(16, 16).t()  # the same bytes
        c = a + 1
        del a
        assert (live.now, live.peak) == (2048, 2048)  # the view keeps it alive
        del b
        assert live.now == 1024
        torch.zeros(512)
        assert (live.now, live.peak) == (1024, 3072)
        c.add_(1)
        assert live.now == 1024


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_fake_step_takes_what_a_real_one_takes(settings, real_peak, mode, checkpointing, bf16):
    """With eager attention the two run the same operations, so the bytes are the same; flat rows differ in attention."""
    keys = {"train_mode": mode, "bf16": bf16, "gradient_checkpointing": checkpointing, "gradient_accumulation_steps": 2}
    for extra, tolerance in (({"attn_implementation": "eager"}, 1e-3), ({}, 0.08)):
        custom, args, tokenizer = settings(**keys, **extra)
        fake, _ = simulate(custom, args, tokenizer, rows(6, 96))
        real = real_peak(custom, args, rows(6, 96), **keys, **extra)
        assert (fake.weights, fake.gradients, fake.trained) == (real.weights, real.gradients, real.trained)
        assert fake.activations == pytest.approx(real.activations, rel=tolerance)


def test_dropout_keeps_a_byte_a_number_as_on_a_gpu(settings):
    """q_proj of two layers gets 64 numbers a token. On a CPU each number's mask has four bytes."""
    keys = {"train_mode": "lora", "lora_target_modules": ["q_proj"]}
    peaks = []
    for dropout in (0.0, 0.1):
        custom, args, tokenizer = settings(lora_dropout=dropout, **keys)
        peaks.append(simulate(custom, args, tokenizer, rows(8, 128))[0].activations)
    numbers = 8 * 128 * 64
    assert numbers <= peaks[1] - peaks[0] <= 2 * numbers


def test_weights_and_gradients_by_hand(settings, load_model):
    custom, args, tokenizer = settings(train_mode="full")
    memory, model = simulate(custom, args, tokenizer, rows(2, 32))
    real = load_model(train_mode="full")[0]
    numbers = sum(p.numel() for p in real.parameters())
    assert sum(p.numel() for p in model.parameters()) == memory.trained == numbers
    assert memory.gradients == 4 * numbers
    assert memory.weights == 4 * numbers + sum(b.nbytes for b in real.buffers())
    assert memory.optimizer == pytest.approx(8 * numbers, rel=1e-4)


def test_nf4_weights_by_hand(settings):
    """Half a byte a weight, a byte for each 64 weights, 4 for each 256 of those, and two tables; the rest in bf16."""
    custom, args, tokenizer = settings(train_mode="qlora", bf16=True)
    memory, model = simulate(custom, args, tokenizer, rows(2, 32))
    quantised = [p for p in model.parameters() if hasattr(p, "quant_state")]
    others = [p for p in model.parameters() if not hasattr(p, "quant_state")]
    packed = 0
    for p in quantised:
        n = p.quant_state.shape.numel()
        packed += n // 2 + n // 64 + 4 * -(-n // 64 // 256) + 16 * 4 + 256 * 4
    assert len(quantised) == 2 * 7  # every Linear of two layers
    rotary = 2 * 16 * 4  # frequencies, and what they were at first
    assert memory.weights == packed + sum(p.nbytes for p in others) + rotary


def test_checkpointing_and_offloading_take_less_and_twice_the_records_twice_as_much(settings):
    def activations(count: int, **keys) -> int:
        custom, args, tokenizer = settings(train_mode="lora", gradient_accumulation_steps=2, **keys)
        return simulate(custom, args, tokenizer, rows(count, 200))[0].activations

    plain, checkpointed = activations(8), activations(8, gradient_checkpointing=True)
    offloaded = activations(8, gradient_checkpointing=True, gradient_checkpointing_offload=True)
    assert plain > 1.3 * checkpointed
    assert checkpointed - offloaded == pytest.approx(8 * 200 * 64 * 4, rel=0.1)  # what the first layer was given
    assert activations(16) == pytest.approx(2 * plain, rel=0.15)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "paged_adamw_32bit", "adamw_8bit", "adafactor"])
def test_predicted_optimizer_state_is_that_of_a_real_step(settings, load_model, optim):
    _, args, _ = settings(optim=optim)
    model = load_model(train_mode="full")[0]
    weights = [p for p in model.parameters() if p.numel() >= 4096]  # 8-bit optimizers keep small tensors in 32 bits
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = cls(weights, **kwargs)
    for p in weights:
        p.grad = torch.randn_like(p)
    optimizer.step()
    numbers = sum(p.numel() for p in weights)
    assert optimizer_bytes(args) == pytest.approx(state_bytes(optimizer) / numbers, rel=0.05, abs=0.2)


def test_gradients_are_there_from_the_start_when_batches_accumulate(settings):
    custom, args, tokenizer = settings(train_mode="full", gradient_accumulation_steps=1)
    once = simulate(custom, args, tokenizer, rows(4, 128))[0]
    args = copy.copy(args)
    args.gradient_accumulation_steps = 4
    again = simulate(custom, args, tokenizer, rows(4, 128))[0]
    assert once.activations < again.activations <= once.activations + once.gradients


def test_an_adapter_of_stage_one_counts_by_its_shape(settings, load_model, tmp_path):
    load_model(train_mode="lora", lora_rank=8, lora_target_modules=["q_proj"])[0].save_pretrained(tmp_path / "s1")
    custom, args, tokenizer = settings(train_mode="lora", adapter_name_or_path=str(tmp_path / "s1"))
    assert simulate(custom, args, tokenizer, rows(2, 32))[0].trained == 2 * 8 * (64 + 64)  # two layers, A and B


def test_what_cannot_be_worked_out_is_said(settings):
    custom, args, tokenizer = settings(train_mode="qlora", use_dora=True)
    with pytest.raises(UserError, match="显存不能只凭结构推算"):
        simulate(custom, args, tokenizer, rows(2, 32))
    args.optim = "galore_adamw"
    with pytest.raises(UserError, match="optim=galore_adamw"):
        optimizer_bytes(args)
