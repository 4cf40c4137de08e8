"""The fast loss against the slow, obvious one: full float32 logits, one cross-entropy over all target tokens."""

import copy

import pytest
import torch
import transformers

from Firefly.component.loss import LOGITS_SCALE, install_target_loss, target_cross_entropy

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
CONFIGS = {
    "granite": lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=4.0, embedding_multiplier=12.0),
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "mistral": lambda: transformers.MistralConfig(**SHAPE),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=2),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**SHAPE, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**SHAPE),
    "bloom": lambda: transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}),
}


def make_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (3, 20), generator=generator)
    labels = ids.clone()
    labels[:, :7] = -100
    labels[1, 12:] = -100
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def slow_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total, count = 0.0, 0
    for row in range(len(logits)):
        for i in range(logits.shape[1] - 1):
            target = batch["labels"][row, i + 1]
            if target != -100:
                total = total - torch.log_softmax(logits[row, i].float(), -1)[target]
                count += 1
    return total / count


@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_equal_the_slow_loss(kind):
    slow, fast = make_model(kind), make_model(kind)
    assert install_target_loss(fast, rows=8) is (kind in LOGITS_SCALE)
    batch = make_batch()
    expected, output = slow_loss(slow, batch), fast(**batch)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    output.loss.backward()
    for (name, p), q in zip(slow.named_parameters(), fast.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_num_items_in_batch_divides_the_sum():
    model = make_model("granite")
    install_target_loss(model)
    batch = make_batch()
    n_targets = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(model(**batch, num_items_in_batch=10 * n_targets).loss * 10, model(**batch).loss)


def test_forward_without_labels_is_untouched():
    model = make_model("granite")
    ids = make_batch()["input_ids"]
    before = model(input_ids=ids).logits
    install_target_loss(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert model.generate(ids[:1, :5], max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_lora_trains_through_it():
    from peft import LoraConfig, get_peft_model

    base = make_model("granite")
    plain = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(3)
    for parameter in plain.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    fast = copy.deepcopy(plain)
    install_target_loss(fast, rows=8)
    batch = make_batch()
    fast(**batch).loss.backward()
    slow_loss(plain, batch).backward()
    pairs = [(p, q) for p, q in zip(plain.parameters(), fast.parameters(), strict=True) if p.requires_grad]
    assert pairs
    for p, q in pairs:
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6)


def test_no_targets_is_zero_with_a_graph():
    hidden = torch.zeros(0, 4, requires_grad=True)
    loss = target_cross_entropy(hidden, torch.zeros(0, dtype=torch.int64), torch.nn.Linear(4, 9), 1.0)
    loss.backward()
    assert loss.item() == 0.0
