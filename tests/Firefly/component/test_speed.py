import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from Firefly.component.collator import flatten_batch, pad_batch
from Firefly.component.speed import Meter, flops_of, peak_flops


@pytest.fixture
def model():
    config = transformers.GraniteConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.GraniteForCausalLM(config)


LAYER = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32  # q and o, k and v, the three of the MLP


def test_operations_of_a_training_step_by_hand(model):
    per_token, per_target, per_pair = flops_of(model)
    assert per_token == 6 * 2 * LAYER
    assert per_target == 6 * 50 * 16
    assert per_pair == 12 * 2 * 16


def test_frozen_weights_cost_less(model):
    rank = 4
    lora = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj"]))
    per_token, per_target, _ = flops_of(lora)
    assert per_token == 4 * 2 * LAYER + 6 * 2 * rank * (16 + 16)
    assert per_target == 4 * 50 * 16


def rows(*lengths):
    return [{"input_ids": np.ones(n, np.int32), "labels": np.array([-100] + [1] * (n - 1), np.int32)} for n in lengths]


def test_meter_counts_tokens_not_padding(model):
    flat, padded = Meter(model, 1e9), Meter(model, 1e9)
    flat.count(flatten_batch(rows(3, 8)))
    padded.count(pad_batch(rows(3, 8), 0))
    for meter in (flat, padded):
        meter.busy_s = 2.0
    assert float(flat.flops) == float(padded.flops) == 6 * 2 * LAYER * 11 + 6 * 800 * 9 + 384 * (9 + 64) / 2
    figures = padded.figures(world_size=2)
    assert figures["train_tokens_per_second"] == 11.0
    assert figures["train_target_tokens_per_second"] == 9.0
    assert figures["padding_share"] == round(1 - 11 / 16, 4)
    assert figures["mfu"] == round(float(padded.flops) / 2e9, 4)
    assert flat.figures()["padding_share"] == 0.0


def test_rate_since_the_last_log(model):
    meter = Meter(model, 1e9)
    meter.tokens, meter.busy_s = 100, 2.0
    assert meter.tokens_per_second() == 50.0
    meter.tokens, meter.busy_s = 130, 3.0
    assert meter.tokens_per_second() == 30.0


def test_peak_of_this_machine_is_above_a_modest_product():
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
