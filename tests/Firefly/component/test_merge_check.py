"""The check of a merge: its float32 yardstick."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from Firefly.component.checkpoint import load_causal_lm
from Firefly.component.merge_check import in_float32

IDS = torch.tensor([[1, 300, 41, 270, 19, 333, 84]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"trainable_token_indices": [41, 300], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_computes_as_the_widened_model_does_and_leaves_the_weights_as_they_were(tiny_minicpm, options):
    torch.manual_seed(0)
    model = load_causal_lm(tiny_minicpm, dtype=torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **options)
    model = get_peft_model(model, config).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        with in_float32(model):
            narrow = model(IDS).logits
        wide = copy.deepcopy(model).float()(IDS).logits
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, atol=1e-4, rtol=0)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
        assert weight.dtype == before[name].dtype
