"""MiniCPM without remote code: its config.json in Granite's words, and back. Standard library only.

MiniCPM multiplies embeddings, residual branches and logits by constants; Granite has the same four multipliers under
other names, and the tensors are named alike, so any engine that knows Granite runs MiniCPM once config.json says so:

    embeddings * scale_emb                          embedding_multiplier = scale_emb
    residual + branch * scale_depth / sqrt(layers)  residual_multiplier  = scale_depth / sqrt(num_hidden_layers)
    logits / (hidden_size / dim_model_base)         logits_scaling       = hidden_size / dim_model_base
    scores / sqrt(head_dim)                         attention_multiplier = head_dim ** -0.5

Source: the published config.json and the formulas of OpenBMB's MiniCPM; checked in tests against an independent
implementation of those formulas.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

from .errors import UserError
from .resolve import read_json, resolve_model

# Defaults of MiniCPM's own config class, for keys that a published config.json leaves out.
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
_SCALES = {"scale_emb": 1, "scale_depth": 1, "dim_model_base": 1}
# What may change between loading and saving (vocabulary resized, layers cut) and must then be written back.
_SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_MARKER = ".granite_view.json"


def is_minicpm(config: dict) -> bool:
    """True for MiniCPM 1, 2 and 4 causal models. MiniCPM3, -V and -o have other architectures and other classes."""
    architectures = config.get("architectures") or []
    return "MiniCPMForCausalLM" in architectures or (not architectures and config.get("model_type") == "minicpm")


def to_granite(config: dict) -> dict:
    """Translate MiniCPM's config.json into Granite's. Raises UserError for variants that are another computation."""
    _refuse_variants(config)
    granite = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    scale = {key: config.get(key, default) for key, default in _SCALES.items()}
    heads, hidden = granite["num_attention_heads"], granite["hidden_size"]
    if hidden % heads:
        raise UserError(f"config.json：hidden_size {hidden} 不能被 num_attention_heads {heads} 整除，请核对这份配置。")
    granite |= {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "embedding_multiplier": scale["scale_emb"],
        "residual_multiplier": scale["scale_depth"] / math.sqrt(granite["num_hidden_layers"]),
        "logits_scaling": hidden / scale["dim_model_base"],
        "attention_multiplier": (hidden // heads) ** -0.5,
        "rope_parameters": _rope_parameters(config, granite["max_position_embeddings"], hidden // heads),
    }
    dtype = config.get("torch_dtype") or config.get("dtype")
    if dtype:
        granite["dtype"] = dtype
    if config.get("quantization_config"):
        granite["quantization_config"] = config["quantization_config"]
    return granite


def to_minicpm(granite: dict, original: dict) -> dict:
    """MiniCPM's config.json for a model that was loaded from ``original``: every key kept, changed values updated."""
    config = dict(original)
    before = to_granite(original)
    for key in _SHAPE_KEYS:
        if granite.get(key, before[key]) != before[key]:
            config[key] = granite[key]
    depth = granite["residual_multiplier"] * math.sqrt(granite["num_hidden_layers"])
    if not math.isclose(depth, original.get("scale_depth", 1), rel_tol=1e-9):
        config["scale_depth"] = depth
    if granite.get("dtype"):
        for key in [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]:
            config[key] = granite["dtype"]
    config.pop("quantization_config", None)
    if granite.get("quantization_config"):
        config["quantization_config"] = granite["quantization_config"]
    return config


def _refuse_variants(config: dict) -> None:
    if config.get("num_experts") or config.get("num_local_experts"):
        raise UserError("config.json：num_experts 表明这是 MiniCPM-MoE，本项目只支持稠密 MiniCPM，请换一个模型。")
    if config.get("sparse_config"):
        raise UserError(
            "config.json：sparse_config 开启了 InfLLM 稀疏注意力，本项目只支持稠密注意力；删去 sparse_config 这一项即可按稠密模型使用。"
        )
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise UserError(f"config.json：hidden_act={activation!r} 不受支持（例如 MiniCPM-S），请换用 silu 的 MiniCPM。")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "bitsandbytes"):
        raise UserError(
            f"config.json：权重已用 {method} 量化，请改用未量化的原始模型；需要 4 比特时用 QLoRA 或 --load-in-4bit。"
        )


def _rope_parameters(config: dict, max_positions: int, head_dim: int) -> dict:
    """RoPE in the words of transformers 5. MiniCPM picks LongRoPE's factors by its cache, which starts out filled to
    max_position_embeddings: beyond the original length it has the long factors at every length, so they stand for the
    short ones too. Its amplitude is sqrt(1 + ln(max / original) / ln(original)), also where max < original.
    """
    rope = {"rope_theta": float(config.get("rope_theta", 10000.0)), "rope_type": "default"}
    scaling = config.get("rope_scaling")
    if not scaling:
        return rope
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": float(scaling["factor"])}
    if kind != "longrope":
        raise UserError(f"config.json：rope_scaling 的类型 {kind!r} 没有实现，支持 longrope 和 linear，请换一个模型。")
    original = scaling["original_max_position_embeddings"]
    long, short = scaling["long_factor"], scaling["short_factor"]
    for name, factors in (("long_factor", long), ("short_factor", short)):
        if len(factors) != head_dim // 2:
            raise UserError(
                f"config.json：rope_scaling.{name} 有 {len(factors)} 个数，应是 head_dim/2 = {head_dim // 2} 个，请核对这份配置。"
            )
    rope |= {
        "rope_type": "longrope",
        "long_factor": list(long),
        "short_factor": list(long if max_positions > original else short),
        "original_max_position_embeddings": original,
        "factor": max(1.0, max_positions / original),
    }
    if max_positions < original:
        rope["attention_factor"] = math.sqrt(1 + math.log(max_positions / original) / math.log(original))
    return rope


def granite_view(name_or_path: str | os.PathLike) -> Path:
    """A folder that transformers, vLLM and SGLang read as Granite, made on the fly; other models come back unchanged.

    The view holds links, not copies, so it is cheap. It lies in the user's cache folder (or the temporary folder when
    that is read-only) under a name made of the model's path and its files' sizes and times: a changed model gets a new one.
    """
    folder = resolve_model(name_or_path)
    if not is_minicpm(read_json(folder / "config.json")):
        return folder
    view_name = f"{folder.resolve().name}-{_content_key(folder)}"
    user = os.getuid() if hasattr(os, "getuid") else 0
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "granite_views"
    try:
        return write_granite_view(folder, cache / view_name)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
    return write_granite_view(folder, Path(tempfile.gettempdir()) / f"granite_views_{user}" / view_name)


def write_granite_view(model_dir: str | os.PathLike, view_dir: str | os.PathLike) -> Path:
    """Write the Granite view of a MiniCPM folder: config.json translated, the rest linked, no auto_map, no .py files.

    Built beside and renamed, so several processes may ask for the same view at once. A view already there and up to
    date is returned as it is; one of ours that is stale is replaced; any other folder is left alone (UserError).
    """
    model_dir, view_dir = Path(model_dir), Path(view_dir)
    key = _content_key(model_dir)
    if _is_current(view_dir, key):
        return view_dir
    if view_dir.exists() and not (view_dir / _MARKER).exists() and any(view_dir.iterdir()):
        raise UserError(f"{view_dir}：已存在且不是 Granite 视图，为免覆盖请换一个目录。")
    config = to_granite(read_json(model_dir / "config.json"))
    view_dir.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{view_dir.name}.part-", dir=view_dir.parent))
    try:
        part.chmod(0o755)
        for source in sorted(model_dir.iterdir()):
            if source.is_file() and source.name not in ("config.json", _MARKER) and source.suffix != ".py":
                _link(source.resolve(), part / source.name)
        write_json(part / "config.json", config)
        _write_view_tokenizer_config(model_dir, part)
        write_json(part / _MARKER, {"source": str(model_dir.resolve()), "key": key})
        _swap_in(part, view_dir, key)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return view_dir


def fast_tokenizer_config(config: dict) -> dict:
    """tokenizer_config.json without what makes transformers 5 rebuild the tokenizer or ask for remote code.

    LlamaTokenizer of transformers 5 puts its own normaliser in the place of tokenizer.json's (leading spaces change);
    PreTrainedTokenizerFast takes the file as it is.
    """
    config = {key: value for key, value in config.items() if key != "auto_map"}
    if str(config.get("tokenizer_class", "")).startswith("LlamaTokenizer"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config


def _write_view_tokenizer_config(model_dir: Path, part: Path) -> None:
    path = model_dir / "tokenizer_config.json"
    if path.exists() and (model_dir / "tokenizer.json").exists():
        original = read_json(path)
        if (changed := fast_tokenizer_config(original)) != original:
            (part / path.name).unlink()
            write_json(part / path.name, changed)


def _content_key(folder: Path) -> str:
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.iterdir()):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    digest.update((folder / "config.json").read_bytes())
    return digest.hexdigest()[:16]


def _is_current(view_dir: Path, key: str) -> bool:
    try:
        return json.loads((view_dir / _MARKER).read_text(encoding="utf-8")).get("key") == key
    except (OSError, ValueError):
        return False


def _swap_in(part: Path, view_dir: Path, key: str) -> None:
    """Rename ``part`` to ``view_dir``. Losing the race to a process that wrote the same view is as good as winning."""
    for _ in range(10):
        try:
            part.rename(view_dir)
            return
        except OSError:
            if _is_current(view_dir, key):
                return
            old = Path(tempfile.mkdtemp(prefix=f"{view_dir.name}.old-", dir=view_dir.parent))
            try:
                view_dir.rename(old / "view")
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(old, ignore_errors=True)
    raise UserError(f"{view_dir}：其他进程正在反复改写这个目录，请稍后重试或换一个目录。")


def _link(source: Path, target: Path) -> None:
    for make in (os.symlink, os.link, shutil.copy2):
        try:
            make(source, target)
            return
        except OSError:
            if make is shutil.copy2:
                raise


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
