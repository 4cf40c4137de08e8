"""Flat rows against padded ones: the same losses and gradients, and no record sees another."""

import copy

import numpy as np
import pytest
import torch
import transformers

from Firefly.component.attention import FLAT_FAMILIES, use_flat_rows
from Firefly.component.collator import flatten_batch, pad_batch
from Firefly.component.loss import install_target_loss

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
CONFIGS = {
    "granite": lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=4.0, embedding_multiplier=12.0),
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=5),  # shorter than the records
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=2),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**SHAPE, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**SHAPE),
}


def make_model(kind: str, attn_implementation: str = "eager") -> torch.nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    for parameter in model.parameters():  # larger than the usual start, so that attention matters
        torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation(attn_implementation)
    return model


def make_rows(lengths: tuple[int, ...] = (9, 21, 4, 13)) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    rows = []
    for n in lengths:
        ids = generator.integers(1, 97, n).astype(np.int32)
        labels = ids.copy()
        labels[: n // 2] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def loss_and_gradients(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    install_target_loss(model)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(kind: str, flat: torch.nn.Module, padded: torch.nn.Module, rows: list) -> None:
    loss, gradients = loss_and_gradients(flat, flatten_batch(rows))
    expected_loss, expected = loss_and_gradients(padded, pad_batch(rows, 0))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1.0), msg=f"{kind} {name}"
        )


@pytest.mark.parametrize("padded", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", FLAT_FAMILIES)
def test_flat_rows_equal_padded_ones(kind, padded):
    flat = make_model(kind)
    assert use_flat_rows(flat, None, None)
    assert_same(kind, flat, make_model(kind, padded), make_rows())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_flat_rows_of_other_implementations_equal_padded_ones(implementation):
    flat = make_model("granite", implementation)
    assert use_flat_rows(flat, implementation, padding_free=True)
    assert flat.config._attn_implementation == implementation
    assert_same("granite", flat, make_model("granite", "eager"), make_rows())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(checkpointing):
    flat = make_model("granite")
    use_flat_rows(flat, None, None)
    if checkpointing:
        flat.gradient_checkpointing_enable({"use_reentrant": False})
    flat.train()
    assert_same("granite", flat, make_model("granite"), make_rows())


@pytest.mark.parametrize("kind", FLAT_FAMILIES)
def test_a_record_is_blind_to_its_neighbours(kind):
    model = make_model(kind).eval()
    use_flat_rows(model, None, None)
    states = []
    for seed in (1, 2):
        rows = make_rows()
        rows[0]["input_ids"] = np.random.default_rng(seed).integers(1, 97, 9).astype(np.int32)
        rows[2]["input_ids"] = np.random.default_rng(seed + 9).integers(1, 97, 4).astype(np.int32)
        batch = flatten_batch(rows)
        mask = torch.zeros(1, 1, 1, 1)
        keys = ("input_ids", "position_ids", "cu_seq_lens_q", "max_length_q")
        with torch.no_grad():
            states.append(model.model(**{k: batch[k] for k in keys}, attention_mask=mask, use_cache=False)[0][0])
    own = slice(9, 30)  # the second record
    assert torch.equal(states[0][own], states[1][own])
    assert not torch.allclose(states[0][:9], states[1][:9])


def test_generation_with_padding_equals_sdpa():
    varlen, sdpa = make_model("granite").eval(), make_model("granite", "sdpa").eval()
    use_flat_rows(varlen, None, None)
    install_target_loss(varlen)
    ids = torch.tensor([[0, 0, 5, 7, 9], [3, 4, 5, 6, 7]])
    mask = (ids != 0).long()
    outputs = [
        m.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (varlen, sdpa)
    ]
    assert torch.equal(*outputs)


def test_bf16_autocast_stays_near_float32():
    exact = make_model("granite")
    half = copy.deepcopy(exact)
    for model in (exact, half):
        use_flat_rows(model, None, None)
        install_target_loss(model)
    batch = flatten_batch(make_rows())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = half(**batch).loss
    torch.testing.assert_close(loss, exact(**batch).loss, rtol=0.03, atol=0.03)
    loss.backward()
    assert half.lm_head.weight.grad.dtype == torch.float32


def test_who_gets_flat_rows():
    bloom = transformers.AutoModelForCausalLM.from_config(
        transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4)
    )
    assert not use_flat_rows(bloom, None, None)  # ALiBi
    assert not use_flat_rows(make_model("granite"), None, padding_free=False)
    assert not use_flat_rows(make_model("granite"), "sdpa", None)  # asked for by name: padded, as before
    assert use_flat_rows(make_model("granite"), "flash_attention_2", None)
    dropping = make_model("granite")
    dropping.config.attention_dropout = 0.1
    assert not use_flat_rows(dropping, None, None)
