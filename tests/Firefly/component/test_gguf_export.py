"""GGUF files: read back with a forward pass written from llama.cpp's rules alone, and with llama.cpp where it is there."""

import json
import shutil

import numpy as np
import pytest
import torch

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.gguf_export import write_gguf
from Firefly.component.gguf_vocab import PROBES, encode_as_llama_cpp, read_vocabulary

IDS = [1, 300, 41, 270, 19, 333, 84, 5, 5, 99]
LONGROPE = {"rope_type": "longrope", "long_factor": [1.0 + i for i in range(16)], "short_factor": [1.0] * 16}
CONFIGS = {
    "as published": {},
    "longer than the original": {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 4096}},
    "shorter than the original": {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 65536}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 50000.0},
    "other scales": {"scale_emb": 7, "scale_depth": 0.9, "dim_model_base": 32, "rope_scaling": None},
}


@pytest.fixture
def variant(tiny_minicpm, tmp_path):
    """Return a function that copies the tiny model with changes to config.json and tokenizer.json."""

    def make(config=None, tokenizer=None):
        folder = shutil.copytree(tiny_minicpm, tmp_path / "variant")
        for name, changes in (("config.json", config), ("tokenizer.json", tokenizer)):
            values = json.loads((folder / name).read_text(encoding="utf-8")) | (changes or {})
            (folder / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        return folder

    return make


def export(folder, outtype="f32"):
    path = folder.parent / "model.gguf"
    write_gguf(folder, load_tokenizer(folder), path, outtype, "variant")
    return path


def transformers_logits(folder):
    with torch.no_grad():
        return load_causal_lm(folder, dtype=torch.float32).eval()(torch.tensor([IDS])).logits[0].numpy()


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x, factors, keys):
    """Llama's own rotation: neighbours 2i and 2i + 1 turn together. x: (seq_len, heads, dim)."""
    half = x.shape[-1] // 2
    angles = keys["granite.rope.freq_base"] ** (-np.arange(half) / half) / factors
    angles = np.arange(len(x))[:, None, None] * angles / keys.get("granite.rope.scaling.factor", 1.0)
    amplitude = keys.get("granite.rope.scaling.attn_factor", 1.0)
    cos, sin = np.cos(angles) * amplitude, np.sin(angles) * amplitude
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def forward(path, ids):
    """llama.cpp's granite graph in numpy: logits (seq_len, vocab_size)."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if name.startswith("granite.")}
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}

    def key(name):
        return keys[f"granite.{name}"]

    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    eps = key("attention.layer_norm_rms_epsilon")
    factors = weights.get("rope_freqs.weight", 1.0)
    x = weights["token_embd.weight"][ids] * key("embedding_scale")
    n = len(ids)
    for layer in range(key("block_count")):
        w = {name.split(".")[2]: weight for name, weight in weights.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x, w["attn_norm"], eps)
        q, k = ((h @ w[f"attn_{c}"].T).reshape(n, m, -1) for c, m in (("q", heads), ("k", kv_heads)))
        q, k = rotate(q, factors, keys), rotate(k, factors, keys)
        v = (h @ w["attn_v"].T).reshape(n, kv_heads, -1)
        k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * key("attention.scale") + np.triu(np.full((n, n), -np.inf), 1)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", share, v).reshape(n, -1)
        x = x + mixed @ w["attn_output"].T * key("residual_scale")
        h = norm(x, w["ffn_norm"], eps)
        gate = h @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T * key("residual_scale")
    head = weights.get("output.weight", weights["token_embd.weight"])
    return norm(x, weights["output_norm.weight"], eps) @ head.T / key("logit_scale")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_file_alone_gives_the_logits_of_transformers(variant, config):
    folder = variant(config)
    found, expected = forward(export(folder), IDS), transformers_logits(folder)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_untied_output_and_16_and_8_bits(variant):
    folder = variant({"tie_word_embeddings": False})
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    expected = transformers_logits(folder)
    for outtype, bound in (("f32", 1e-4), ("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.1)):
        found = forward(export(folder, outtype), IDS)
        assert np.abs(found - expected).max() < bound * np.abs(expected).max(), outtype


def test_keys_of_the_tokenizer(variant):
    import gguf

    folder = variant()
    reader = gguf.GGUFReader(export(folder))
    value = {name.removeprefix("tokenizer."): field.contents() for name, field in reader.fields.items()}
    assert value["ggml.model"] == "llama"
    assert value["ggml.bos_token_id"] == 1
    assert value["ggml.eos_token_id"] == 3
    assert value["ggml.eot_token_id"] == 2
    assert value["ggml.add_bos_token"] is False  # this template writes none
    assert value["ggml.add_space_prefix"] is False
    assert value["chat_template"] == load_tokenizer(folder).chat_template
    types = dict(zip(value["ggml.tokens"], value["ggml.token_type"], strict=True))
    assert (types["<unk>"], types["<|im_end|>"], types["<0x41>"], types["校"]) == (2, 3, 6, 1)
    assert len(types) == json.loads((folder / "config.json").read_text())["vocab_size"]


PREPEND = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
}


@pytest.mark.parametrize("changes", [{}, PREPEND], ids=["plain", "space prefix"])
def test_llama_cpps_method_cuts_text_as_the_tokenizer_does(variant, changes):
    folder = variant(tokenizer=changes)
    tokenizer = load_tokenizer(folder)
    vocabulary = read_vocabulary(folder, len(tokenizer))
    assert vocabulary.space_prefix is bool(changes)
    for text in [*PROBES, "<s><|im_start|>user\n校训<|im_end|>\n 是 什么", "<|im_end|><0x41>"]:
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert encode_as_llama_cpp(vocabulary, text) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "NFKC"}}, "NFKC"),
        ({"normalizer": None}, "空格"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}, "normalizer": PREPEND["normalizer"]}, None),
    ],
)
def test_tokenizers_that_llama_cpp_cannot_follow(variant, changes, words):
    folder = variant(tokenizer=changes)
    if words is None:  # splitting off what is never joined changes nothing
        assert export(folder).exists()
        return
    with pytest.raises(UserError, match=words):
        export(folder)


def test_tokens_that_would_differ_are_named(variant):
    folder = variant()
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["merges"] = []  # no long token can be reached, but llama.cpp would
    (folder / "tokenizer.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(UserError, match="分词核对失败"):
        export(folder)


def test_llama_cpp_answers_as_transformers_does(variant):
    """The real runtime, where it is installed (pip install llama-cpp-python compiles for ten minutes)."""
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = variant(CONFIGS["longer than the original"])
    path, tokenizer = export(folder), load_tokenizer(folder)
    runtime = llama_cpp.Llama(
        str(path), n_ctx=512, logits_all=True, verbose=False, type_k=0, type_v=0, flash_attn=False, n_threads=1
    )
    for text in [*PROBES, "<s><|im_start|>user\n 校训是什么？<|im_end|>\n"]:
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert runtime.tokenize(text.encode(), add_bos=False, special=True) == expected
    runtime.eval(IDS)
    np.testing.assert_allclose(runtime.scores[: len(IDS)], transformers_logits(folder), atol=1e-3)
    runtime.close()
