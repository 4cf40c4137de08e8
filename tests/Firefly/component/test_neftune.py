"""NEFTune's noise, record by record, on padded and flat batches, against a slow loop over the records."""

import numpy as np
import pytest
import torch

from Firefly.component.attention import use_flat_rows
from Firefly.component.collator import flatten_batch, pad_batch
from Firefly.component.loss import install_target_loss
from Firefly.component.neftune import record_lengths

LENGTHS = [3, 11, 40]
ALPHA = 5.0


@pytest.fixture
def rows():
    ids = [np.arange(10, 10 + n, dtype=np.int32) for n in LENGTHS]
    return [{"input_ids": row, "labels": row} for row in ids]


def embedded(model, batch) -> torch.Tensor:
    """What the embedding hands on in one forward pass."""
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output))
    model(**batch, num_items_in_batch=1)
    handle.remove()
    return seen[0].detach()


def noisy_model(load_model, flat: bool):
    model, _, args = load_model(train_mode="full", neftune_noise_alpha=ALPHA, gradient_checkpointing=True)
    assert args.neftune_noise_alpha is None  # transformers must not add its own on top
    install_target_loss(model)
    assert use_flat_rows(model, None, None if flat else False) is flat
    return model


@pytest.mark.parametrize("flat", [True, False])
def test_noise_is_uniform_within_each_records_own_bound(load_model, rows, flat):
    model = noisy_model(load_model, flat)
    batch = flatten_batch(rows) if flat else pad_batch(rows, pad_token_id=2)
    torch.manual_seed(3)
    noise = embedded(model, batch) - embedded(model.eval(), batch)
    torch.manual_seed(3)
    drawn = torch.empty_like(noise).uniform_(-1, 1)
    for i, length in enumerate(LENGTHS):
        where = (0, slice(sum(LENGTHS[:i]), sum(LENGTHS[: i + 1]))) if flat else (i, slice(0, length))
        expected = drawn[where] * ALPHA / (length * 64) ** 0.5
        torch.testing.assert_close(noise[where], expected, atol=1e-6, rtol=0)
        assert 0.9 < noise[where].abs().max() / (ALPHA / (length * 64) ** 0.5) <= 1.0


def test_evaluation_is_left_alone_and_training_draws_anew(load_model, rows):
    model = noisy_model(load_model, flat=True)
    batch = flatten_batch(rows)
    assert not torch.equal(embedded(model, batch), embedded(model, batch))
    model.eval()
    assert torch.equal(embedded(model, batch), embedded(model, batch))
    ids = batch["input_ids"]
    assert torch.equal(embedded(model, batch), model.get_input_embeddings().weight[ids])


def test_lengths_of_rows_without_any_sign_are_the_rows_length():
    assert record_lengths(torch.zeros(2, 7, 4)).tolist() == [[7]]
    positions = torch.tensor([[0, 1, 0, 1, 2, 0]])
    flat = record_lengths(torch.zeros(1, 6, 4), torch.zeros(1, 1, 1, 1), positions)
    assert flat.tolist() == [[2, 2, 3, 3, 3, 1]]
