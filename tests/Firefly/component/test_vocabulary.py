"""Tokens added to a vocabulary: where they start, which rows learn, what is saved, and what merging makes of it."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.loss import install_target_loss, target_cross_entropy
from Firefly.component.vocabulary import adapter_rows, add_tokens, fit_vocabulary, grow_embeddings, trainable_rows
from Firefly.script import merge_lora

NEW = ["<|校训|>", "严格，功夫"]


def ids_of(tokenizer) -> torch.Tensor:
    return torch.tensor([tokenizer("请介绍<|校训|>，它是规格严格，功夫到家。", add_special_tokens=False)["input_ids"]])


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits.float()


def train(model, ids, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()


def test_a_token_is_one_id_in_text_and_survives_saving(tiny_minicpm, tmp_path):
    tokenizer = load_tokenizer(tiny_minicpm)
    size = len(tokenizer)
    assert add_tokens(tokenizer, NEW) == [size, size + 1]
    ids = ids_of(tokenizer)[0].tolist()
    assert (ids.count(size), ids.count(size + 1)) == (1, 1)
    assert tokenizer.decode(ids) == "请介绍<|校训|>，它是规格严格，功夫到家。"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("它是规格严格，功夫", add_special_tokens=False)["input_ids"][-1] == size + 1
    for bad in (["<|im_end|>"], ["新", "新"], [""], [3], "新"):
        with pytest.raises(UserError, match="add_tokens"):
            add_tokens(load_tokenizer(tiny_minicpm), bad)


@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_only_the_new_rows_learn_and_the_small_adapter_reloads(load_model, tiny_minicpm, tmp_path, mode):
    model, tokenizer, _ = load_model(train_mode=mode, add_tokens=NEW)
    size = len(load_tokenizer(tiny_minicpm))
    base = load_causal_lm(tiny_minicpm)
    old = base.get_input_embeddings().weight
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[size:], old.mean(0).expand(2, -1))
    ids = ids_of(tokenizer)
    train(model, ids)
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[:size], old[:size])
    assert (weight[size:] - old.mean(0)).abs().amin(1).min() > 0
    assert torch.equal(model.get_output_embeddings().weight, weight)  # MiniCPM ties the two

    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert [tuple(t.shape) for n, t in saved.items() if "lora_" not in n] == [(2, 64)]
    assert adapter_rows(tmp_path / "adapter") == size + 2
    if mode == "lora":
        fit_vocabulary(base, tmp_path / "adapter")
        again = PeftModel.from_pretrained(base, tmp_path / "adapter")
        torch.testing.assert_close(logits(again, ids), logits(model, ids), atol=1e-5, rtol=0)


def test_rows_in_reserve_are_used_before_the_matrix_grows(tiny_minicpm):
    model = load_causal_lm(tiny_minicpm)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 8, mean_resizing=False)
    grow_embeddings(model, [rows, rows + 1])
    assert model.config.vocab_size == rows + 8
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[rows], weight[:rows].mean(0))


def test_two_embeddings_of_their_own_both_learn(tmp_path):
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    grow_embeddings(model, [50, 51])
    head = model.get_output_embeddings().weight
    torch.testing.assert_close(head[51], head[:50].mean(0))
    assert trainable_rows(model, [50, 51]) == {
        "trainable_token_indices": {"model.embed_tokens": [50, 51], "lm_head": [50, 51]}
    }


def test_the_fast_loss_trains_the_new_rows_as_the_plain_loss_does(load_model):
    """The head is PEFT's wrapper, no plain matrix: its gradient must reach the new rows, through embedding and head."""
    gradients, losses = [], []
    for fast in (False, True):
        model, tokenizer, _ = load_model(add_tokens=NEW)
        ids = ids_of(tokenizer)
        if fast:
            assert install_target_loss(model)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert sum("trainable_tokens" in name for name in gradients[0]) == 1
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_loss_through_the_wrapper_is_that_of_its_merged_weight(load_model):
    model, _, _ = load_model(add_tokens=NEW)
    head = model.get_base_model().get_output_embeddings()
    hidden, targets = torch.randn(5, 64), torch.tensor([3, 573, 574, 9, 573])
    expected = torch.nn.functional.cross_entropy(hidden @ head.weight.T * 0.5, targets, reduction="sum")
    torch.testing.assert_close(target_cross_entropy(hidden, targets, head, 0.5), expected)


def test_merged_model_knows_the_tokens(load_model, tmp_path):
    model, tokenizer, _ = load_model(add_tokens=NEW)
    ids = ids_of(tokenizer)
    train(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert merge_lora.main(["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    merged = load_causal_lm(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, ids), logits(model, ids), atol=1e-4, rtol=0)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["vocab_size"], config.get("tie_word_embeddings", True)) == (len(tokenizer), True)
    assert torch.equal(ids_of(load_tokenizer(tmp_path / "merged")), ids)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_adds_tokens_and_stage_two_goes_on_from_it(train_main, write_args, tmp_path, mode, capsys):
    args = write_args(train_mode=mode, add_tokens=NEW, output_dir=str(tmp_path / "s1"))
    assert train_main(["--train_args_file", args]) == 0
    tokenizer = load_tokenizer(tmp_path / "s1")
    assert tokenizer.convert_tokens_to_ids(NEW[0]) == len(tokenizer) - 2
    if mode == "full":
        assert load_causal_lm(tmp_path / "s1").config.vocab_size == len(tokenizer)
        return
    stage_two = {
        "adapter_name_or_path": str(tmp_path / "s1"),
        "output_dir": str(tmp_path / "s2"),
        "learning_rate": 1e-30,
    }
    assert train_main(["--train_args_file", write_args(**stage_two)]) == 0
    before, after = (load_file(tmp_path / s / "adapter_model.safetensors") for s in ("s1", "s2"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(load_tokenizer(tmp_path / "s2")) == len(tokenizer)
    again = write_args(**stage_two | {"output_dir": str(tmp_path / "s3")}, add_tokens=["再来一个"])
    assert train_main(["--train_args_file", again]) == 2
    assert "merge_lora.py" in capsys.readouterr().err
