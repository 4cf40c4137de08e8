"""MiniCPM through Granite's classes, against a slow implementation written from MiniCPM's formulas alone."""

import copy
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from Firefly.component.checkpoint import load_causal_lm
from Firefly.component.errors import UserError
from Firefly.component.minicpm import granite_view, is_minicpm, to_granite, to_minicpm, write_granite_view

# The numbers of the published MiniCPM4-0.5B, its 32 LongRoPE factors shortened to a rule.
MINICPM4 = {
    "_name_or_path": "openbmb/MiniCPM4-0.5B",
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
    "bos_token_id": 1,
    "eos_token_id": [2, 73440],
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.1,
    "intermediate_size": 4096,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "rope_type": "longrope",
        "long_factor": [1.0 + index for index in range(32)],
        "short_factor": [1.0 + index / 4 for index in range(32)],
        "original_max_position_embeddings": 32768,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "vocab_size": 73448,
    "scale_emb": 12,
    "dim_model_base": 256,
    "scale_depth": 1.4,
}
SMALL = MINICPM4 | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 120,
    "dim_model_base": 32,
    "eos_token_id": [2, 119],
    "torch_dtype": "float32",
}


def long_rope(max_positions: int, original: int) -> dict:
    return {
        "max_position_embeddings": max_positions,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0],
            "short_factor": [1.0, 1.1, 1.3, 1.7, 2.5, 4.1, 7.3, 13.7],
            "original_max_position_embeddings": original,
        },
    }


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


CASES = {
    "long_rope_equal": SMALL | long_rope(64, 64),  # short factors, amplitude 1
    "long_rope_extended": SMALL | long_rope(128, 32),  # long factors at every length, amplitude above 1
    "long_rope_cut": SMALL | long_rope(32, 64),  # short factors, amplitude below 1
    "past_the_window": SMALL | long_rope(16, 16),  # a prompt of 24 is longer than the window: long factors
    "minicpm_2b": without(SMALL, "rope_scaling") | {"model_type": "minicpm", "num_key_value_heads": 4},
    "untied": without(SMALL, "rope_scaling") | {"tie_word_embeddings": False},
}


# The slow implementation: one sequence, one head at a time, from the numbers in MiniCPM's own config.json.


def slow_logits(config: dict, weights: dict, ids: list[int]) -> torch.Tensor:
    """Logits (len(ids), vocab_size) of one unpadded sequence."""
    hidden = config["hidden_size"]
    branch = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    x = weights["model.embed_tokens.weight"][ids] * config["scale_emb"]
    for layer in range(config["num_hidden_layers"]):
        w = {k.split(".", 3)[3]: v for k, v in weights.items() if k.startswith(f"model.layers.{layer}.")}
        x = x + branch * slow_attention(config, w, slow_norm(config, x, w["input_layernorm.weight"]))
        y = slow_norm(config, x, w["post_attention_layernorm.weight"])
        gate, up = y @ w["mlp.gate_proj.weight"].T, y @ w["mlp.up_proj.weight"].T
        x = x + branch * ((gate * torch.sigmoid(gate) * up) @ w["mlp.down_proj.weight"].T)
    x = slow_norm(config, x, weights["model.norm.weight"]) / (hidden / config["dim_model_base"])
    tied = config.get("tie_word_embeddings", True)
    return x @ weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def slow_norm(config: dict, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight


def slow_attention(config: dict, w: dict, x: torch.Tensor) -> torch.Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    n = len(x)
    visible = torch.ones(n, n, dtype=torch.bool).tril()
    out = []
    for head in range(heads):
        group = head // (heads // groups)
        q = slow_rope(config, x @ w["self_attn.q_proj.weight"][head * size : (head + 1) * size].T)
        k = slow_rope(config, x @ w["self_attn.k_proj.weight"][group * size : (group + 1) * size].T)
        v = x @ w["self_attn.v_proj.weight"][group * size : (group + 1) * size].T
        scores = (q @ k.T / math.sqrt(size)).masked_fill(~visible, -math.inf)
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, -1) @ w["self_attn.o_proj.weight"].T


def slow_rope(config: dict, x: torch.Tensor) -> torch.Tensor:
    """Rotate coordinate i with coordinate i + size/2 by position / (10000 ** (2 i / size) * factor_i)."""
    n, size = x.shape
    factors, amplitude = [1.0] * (size // 2), 1.0
    if scaling := config.get("rope_scaling"):
        limit, original = config["max_position_embeddings"], scaling["original_max_position_embeddings"]
        long = max(limit, n) > original
        factors = scaling["long_factor" if long else "short_factor"]
        amplitude = math.sqrt(1 + math.log(limit / original) / math.log(original))
    columns = [None] * size
    for i in range(size // 2):
        angle = torch.arange(n) / (10000 ** (2 * i / size) * factors[i])
        cos, sin = torch.cos(angle) * amplitude, torch.sin(angle) * amplitude
        columns[i] = x[:, i] * cos - x[:, i + size // 2] * sin
        columns[i + size // 2] = x[:, i + size // 2] * cos + x[:, i] * sin
    return torch.stack(columns, -1)


def slow_greedy(config: dict, weights: dict, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(slow_logits(config, weights, ids)[-1].argmax().item())
        if ids[-1] in config["eos_token_id"]:
            break
    return ids


def random_weights(config: dict) -> dict[str, torch.Tensor]:
    """MiniCPM's tensors by name; layers at std 0.2, so that every multiplier and angle shows in the logits."""
    generator = torch.Generator().manual_seed(7)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def draw(*shape: int, std: float = 0.2) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * std

    weights = {
        "model.embed_tokens.weight": draw(config["vocab_size"], hidden, std=0.3),
        "model.norm.weight": 1 + draw(hidden),
    }
    if not config.get("tie_word_embeddings", True):
        weights["lm_head.weight"] = draw(config["vocab_size"], hidden, std=0.6)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": 1 + draw(hidden),
            prefix + "post_attention_layernorm.weight": 1 + draw(hidden),
            prefix + "self_attn.q_proj.weight": draw(hidden, hidden),
            prefix + "self_attn.k_proj.weight": draw(kv, hidden),
            prefix + "self_attn.v_proj.weight": draw(kv, hidden),
            prefix + "self_attn.o_proj.weight": draw(hidden, hidden),
            prefix + "mlp.gate_proj.weight": draw(inner, hidden),
            prefix + "mlp.up_proj.weight": draw(inner, hidden),
            prefix + "mlp.down_proj.weight": draw(hidden, inner),
        }
    return weights


def write_model(folder, config: dict, weights: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=list(CASES))
def case(request, tmp_path):
    """(config, weights, folder) of one configuration, written as a MiniCPM checkpoint is."""
    config = CASES[request.param]
    weights = random_weights(config)
    write_model(tmp_path / "model", config, weights)
    return config, weights, tmp_path / "model"


PROMPT = [(5 * i * i + 3 * i + 7) % 110 + 3 for i in range(24)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_gradients_equal_the_slow_implementation(case, attention):
    config, weights, folder = case
    model = load_causal_lm(folder, attn_implementation=attention)
    ids = torch.tensor([PROMPT])
    result = model(input_ids=ids, labels=ids, use_cache=False)
    result.loss.backward()

    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    expected = slow_logits(config, leaves, PROMPT)
    loss = torch.nn.functional.cross_entropy(expected[:-1], ids[0, 1:])
    loss.backward()

    assert expected.abs().max() > 5  # logits that differ enough for the comparison to mean something
    torch.testing.assert_close(result.logits[0], expected, atol=3e-5, rtol=0)
    assert result.loss.item() == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        wanted = leaves[name].grad
        assert (parameter.grad - wanted).norm() < 1e-5 * wanted.norm(), name


def test_cached_greedy_text_equals_the_slow_implementation(case):
    config, weights, folder = case
    model = load_causal_lm(folder)
    for prompt in (PROMPT[:5], PROMPT[3:14]):
        count = min(10, config["max_position_embeddings"] - len(prompt))  # past it, cached keys keep their old angles
        expected = slow_greedy(config, weights, prompt, count)
        out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=2)
        assert out[0].tolist() == expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(tmp_path, side, attention):
    config = CASES["long_rope_extended"]
    weights = random_weights(config)
    write_model(tmp_path / "model", config, weights)
    model = load_causal_lm(tmp_path / "model", attn_implementation=attention)
    rows = [PROMPT[:6], PROMPT[4:15]]
    width = max(map(len, rows))
    ids = torch.full((2, width), 2)
    mask = torch.zeros(2, width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = torch.tensor(row), 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(
            logits[index][mask[index].bool()], slow_logits(config, weights, row), atol=3e-5, rtol=0
        )
    if side == "left":
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=2
        )
        free = config | {"eos_token_id": []}
        for index, row in enumerate(rows):
            blocked = slow_greedy_without(free, weights, row, 8, forbidden=config["eos_token_id"])
            assert out[index, width:].tolist() == blocked[len(row) :]


def slow_greedy_without(config, weights, ids, count, forbidden):
    ids = list(ids)
    for _ in range(count):
        logits = slow_logits(config, weights, ids)[-1].clone()
        logits[forbidden] = -math.inf
        ids.append(logits.argmax().item())
    return ids


def test_gradient_checkpointing_keeps_the_gradients(tmp_path):
    config = CASES["long_rope_equal"]
    write_model(tmp_path / "model", config, random_weights(config))
    ids = torch.tensor([PROMPT])
    gradients = []
    for checkpointing in (False, True):
        model = load_causal_lm(tmp_path / "model").train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


# The translation itself.


def test_published_config_in_granite_words():
    granite = to_granite(MINICPM4)
    assert granite["model_type"] == "granite"
    assert granite["architectures"] == ["GraniteForCausalLM"]
    assert granite["embedding_multiplier"] == 12
    assert granite["residual_multiplier"] == pytest.approx(0.28577380332)  # 1.4 / sqrt(24)
    assert granite["logits_scaling"] == 4.0  # 1024 / 256
    assert granite["attention_multiplier"] == 0.125  # 64 ** -0.5
    assert granite["tie_word_embeddings"] is True
    assert granite["dtype"] == "bfloat16"
    assert granite["eos_token_id"] == [2, 73440]
    assert granite["rope_parameters"]["rope_theta"] == 10000.0
    assert granite["rope_parameters"]["short_factor"] == MINICPM4["rope_scaling"]["short_factor"]
    assert "auto_map" not in granite


def test_extended_context_has_long_factors_at_all_lengths():
    rope = to_granite(MINICPM4 | {"max_position_embeddings": 131072})["rope_parameters"]
    assert rope["short_factor"] == rope["long_factor"] == MINICPM4["rope_scaling"]["long_factor"]
    assert rope["factor"] == 4.0


def test_way_back_keeps_every_key_and_updates_what_changed():
    granite = to_granite(MINICPM4)
    assert to_minicpm(granite, MINICPM4) == MINICPM4
    assert list(to_minicpm(granite, MINICPM4)) == list(MINICPM4)
    changed = to_minicpm(granite | {"vocab_size": 73456, "dtype": "float32", "use_cache": False}, MINICPM4)
    assert changed == MINICPM4 | {"vocab_size": 73456, "torch_dtype": "float32"}
    untied = to_minicpm(granite | {"tie_word_embeddings": False}, MINICPM4)
    assert untied["tie_word_embeddings"] is False


def test_way_back_of_a_model_cut_to_fewer_layers_computes_the_same():
    granite = to_granite(MINICPM4)
    cut = to_minicpm(granite | {"num_hidden_layers": 6}, MINICPM4)
    assert cut["num_hidden_layers"] == 6
    assert to_granite(cut)["residual_multiplier"] == pytest.approx(granite["residual_multiplier"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MINICPM4, True),
        ({"model_type": "minicpm"}, True),
        ({"architectures": ["MiniCPM3ForCausalLM"], "model_type": "minicpm3"}, False),
        ({"architectures": ["MiniCPMV"], "model_type": "minicpmv"}, False),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, False),
    ],
)
def test_which_configs_are_minicpm(config, expected):
    assert is_minicpm(config) is expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_experts": 8}, "num_experts"),
        ({"sparse_config": {"kernel_size": 32}}, "sparse_config"),
        ({"hidden_act": "fatrelu"}, "fatrelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"hidden_size": 1000}, "1000"),
        ({"rope_scaling": MINICPM4["rope_scaling"] | {"long_factor": [1.0] * 7}}, "long_factor"),
    ],
)
def test_variants_that_compute_something_else_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        to_granite(MINICPM4 | change)


# The Granite view.


def test_view_loads_as_granite_with_the_same_logits(tiny_minicpm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    view = granite_view(tiny_minicpm)
    assert granite_view(tiny_minicpm) == view
    assert json.loads((view / "config.json").read_text())["model_type"] == "granite"
    assert (view / "model.safetensors").is_symlink()
    ids = torch.tensor([[9, 300, 21, 45]])
    with torch.no_grad():
        seen, own = (AutoModelForCausalLM.from_pretrained(view)(ids).logits, load_causal_lm(tiny_minicpm)(ids).logits)
    assert torch.equal(seen, own)
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (view / name).read_bytes() == (tiny_minicpm / name).read_bytes()


@pytest.fixture
def published_form(tmp_path):
    """A folder as it comes from the hub: auto_map, .py files, LlamaTokenizer over a tokenizer.json of its own."""
    folder = tmp_path / "hub"
    write_model(folder, SMALL | long_rope(64, 64), {"x": torch.zeros(1)})
    (folder / "modeling_minicpm.py").write_text("raise RuntimeError('remote code must not run')\n")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    return folder


def test_view_has_no_remote_code_and_keeps_the_tokenizer_file(published_form, tmp_path):
    view = write_granite_view(published_form, tmp_path / "view")
    assert not list(view.glob("*.py"))
    assert "auto_map" not in json.loads((view / "config.json").read_text())
    tokenizer = json.loads((view / "tokenizer_config.json").read_text())
    assert tokenizer == {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}


def test_many_at_once_get_one_whole_view(published_form, tmp_path):
    with ThreadPoolExecutor(12) as pool:
        views = list(pool.map(lambda _: write_granite_view(published_form, tmp_path / "views" / "v"), range(24)))
    assert set(views) == {tmp_path / "views" / "v"}
    assert os.listdir(tmp_path / "views") == ["v"]
    assert (tmp_path / "views" / "v" / "model.safetensors").exists()


def test_view_follows_a_changed_model_and_spares_foreign_folders(published_form, tmp_path):
    view = write_granite_view(published_form, tmp_path / "view")
    config = copy.deepcopy(SMALL | long_rope(64, 64))
    config["vocab_size"] = 128
    (published_form / "config.json").write_text(json.dumps(config))
    assert json.loads((write_granite_view(published_form, view) / "config.json").read_text())["vocab_size"] == 128
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="mine"):
        write_granite_view(published_form, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_view_without_symlinks_still_holds_every_file(published_form, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    view = write_granite_view(published_form, tmp_path / "view")
    assert (view / "model.safetensors").read_bytes() == (published_form / "model.safetensors").read_bytes()


def test_unwritable_cache_falls_back_to_the_temporary_folder(published_form, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    view = granite_view(published_form)
    assert view.parent.parent == tmp_path
    assert (view / "config.json").exists()


def test_other_models_need_no_view(published_form):
    (published_form / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert granite_view(published_form) == published_form
