"""How two merges of a QLoRA adapter are scored and which is kept: figures against slow sums, choices by hand."""

import pytest
import torch

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.heldout import batch_losses
from Firefly.component.prompt import encode_conversations, record_to_messages
from Firefly.component.qlora_merge import Scores, choose, dequantize, distance, load_nf4, score
from tests.Firefly.conftest import conversation


@pytest.fixture(scope="module")
def records(tiny_minicpm):
    messages = [record_to_messages(conversation(i, turns=1 + i % 2)) for i in range(5)]
    return encode_conversations(load_tokenizer(tiny_minicpm), messages)


def test_scores_equal_slow_sums(tiny_minicpm, records, monkeypatch):
    monkeypatch.setattr("Firefly.component.qlora_merge.DIVERGENCE_POSITIONS", 40)
    model = load_causal_lm(tiny_minicpm).eval()
    found = score(model, records)
    slow = batch_losses(model, records, 2)
    torch.testing.assert_close(found.losses, torch.tensor(slow, dtype=torch.float64), atol=1e-3, rtol=1e-5)
    rows = []
    for ids, labels in records:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        rows += [logits[i - 1] for i in range(1, len(ids)) if labels[i] != -100]
    assert found.choices.tolist() == [row.argmax().item() for row in rows]
    step = -(-len(rows) // 40)
    expected = torch.stack(rows[::step]).log_softmax(-1)
    torch.testing.assert_close(found.log_probs, expected, atol=1e-4, rtol=0)


def test_distance_by_hand():
    half, skew = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    ours = Scores(torch.tensor([2.0, 4.0]).double(), torch.tensor([0, 1, 1]), half)
    other = Scores(torch.tensor([3.0, 6.0]).double(), torch.tensor([0, 1, 0]), skew)
    found = distance(ours, other)
    assert found["loss"] == pytest.approx(3.0)
    assert found["kl"] == pytest.approx(0.5 * torch.log(torch.tensor(4 / 3)).item())  # ln 2 - (ln 3)/2
    assert found["equal_greedy_tokens"] == pytest.approx(2 / 3)
    assert distance(ours, ours)["kl"] == 0.0


def test_held_out_loss_decides_only_beyond_its_error():
    near, far = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    tokens = torch.zeros(20, dtype=torch.long)

    def scores(losses, log_probs):
        return Scores(torch.tensor(losses).double(), tokens, log_probs)

    reference = scores([5.0] * 10, near)
    dequantized = scores([5.0 + i / 100 for i in range(10)], near)
    clearly_better = scores([4.0 + i / 90 for i in range(10)], far)
    noisy = scores([4.0 if i % 2 else 5.5 for i in range(10)], far)
    assert choose({"base": clearly_better, "dequantized": dequantized}, reference, True)[0] == "base"
    assert choose({"base": clearly_better, "dequantized": dequantized}, reference, False)[0] == "dequantized"
    assert choose({"base": noisy, "dequantized": dequantized}, reference, True)[0] == "dequantized"
    few = {"base": scores([4.0] * 3, far), "dequantized": scores([5.0] * 3, near)}
    assert choose(few, scores([5.0] * 3, near), True)[0] == "dequantized"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantised_weights_are_what_nf4_stands_for(tiny_minicpm, dtype):
    import bitsandbytes.functional as bnb

    model = dequantize(load_nf4(str(tiny_minicpm), dtype, "cpu"), dtype)
    assert not getattr(model.config, "quantization_config", None)
    plain = load_causal_lm(tiny_minicpm, dtype=dtype)
    for name, weight in plain.named_parameters():
        found = model.get_parameter(name)
        assert found.dtype == dtype
        if "_proj" in name:
            quantised, state = bnb.quantize_4bit(weight.data, quant_type="nf4", compress_statistics=True, blocksize=64)
            weight = bnb.dequantize_4bit(quantised, state)
            assert not torch.equal(weight, plain.get_parameter(name))
        assert torch.equal(found, weight), name
