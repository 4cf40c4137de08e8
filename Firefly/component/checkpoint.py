"""Loading and saving of checkpoints: MiniCPM through Granite's classes, every other model through the Auto classes.

What is saved from a MiniCPM model carries MiniCPM's own config.json (and its .py files, where the base had them), so
the original code, and this module, read it like the base. The config object does that by itself in
``save_pretrained``: whoever saves the model (Trainer, PEFT's merge, DeepSpeed) need not know.
"""

import copy
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .errors import UserError
from .minicpm import is_minicpm, to_granite, to_minicpm, write_json
from .resolve import read_json, resolve_model

log = logging.getLogger(__name__)

_FILE_TOKENIZERS = ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


class MiniCPMConfig(GraniteConfig):
    """Granite's configuration of a MiniCPM model; on disk it is MiniCPM's config.json again.

    Two plain attributes ride along, also through deepcopy and pickle: ``_minicpm_config`` (the base's config.json)
    and ``_minicpm_folder`` (where its .py files lie). Everything in memory, to_dict() too, is Granite's.
    """

    def to_dict(self) -> dict[str, Any]:
        hidden = ("_minicpm_config", "_minicpm_folder")
        return {key: value for key, value in super().to_dict().items() if key not in hidden}

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        _write_minicpm_files(Path(save_directory), self)


class VerbatimTokenizer(PreTrainedTokenizerFast):
    """tokenizer.json as it is. Saved under names that transformers 4 (MiniCPM's own code) reads too."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        files = super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "tokenizer_config.json"
        config = read_json(path)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        write_json(path, config)
        return files


def load_causal_lm(name_or_path: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Load any causal language model; ``kwargs`` go to ``from_pretrained`` (dtype, device_map, quantization_config...).

    ``model.name_or_path`` is what the user wrote, so a LoRA adapter's config names it, not a cache folder.
    Raises UserError for a folder without weights, a damaged file, or a model that needs remote code.
    """
    folder = resolve_model(name_or_path)
    config = load_config(folder, trust_remote_code=kwargs.get("trust_remote_code", False))
    native = isinstance(config, MiniCPMConfig)
    if native:
        kwargs.pop("trust_remote_code", None)
    loader = GraniteForCausalLM if native else AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(folder, config=config, output_loading_info=True, **kwargs)
    except Exception as error:
        raise _as_user_error(folder, error) from error
    if missing := sorted(info["missing_keys"]):  # transformers only warns, and fills them with random numbers
        raise UserError(
            f"{folder}：权重里缺 {len(missing)} 个张量（例如 {missing[0]}），文件不完整或与 config.json 不符，请重新下载。"
        )
    model.name_or_path = model.config.name_or_path = os.fspath(name_or_path)
    return model


def nf4_config(compute_dtype: Any) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, Dettmers et al. 2023): what training, inference and merging all load."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_nf4_readable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking NF4 weights on a CPU with AVX512-BF16 at the first evaluation.

    Whoever reads a repacked weight later gets garbage without a word: PEFT's DoRA and merging, and training that goes
    on after an evaluation (no gradient flows through the packed product). Plain inference is faster packed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_config(folder: str | os.PathLike, trust_remote_code: bool = False) -> Any:
    """The configuration object of a model folder; a MiniCPMConfig for MiniCPM."""
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    if is_minicpm(raw):
        config = MiniCPMConfig(**{k: v for k, v in to_granite(raw).items() if k != "model_type"})
        config._minicpm_config = copy.deepcopy(raw)
        config._minicpm_folder = str(folder.resolve())
        return config
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _as_user_error(folder, error) from error


def load_tokenizer(name_or_path: str | os.PathLike, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a model or adapter folder, with a pad token set.

    tokenizer.json is taken with its own normaliser and pre-tokenizer where transformers 5 would rebuild them
    (LlamaTokenizer). A missing pad token becomes the one that generation_config.json names, else </s> or <unk>, and
    only then, with a note, the end token itself.
    """
    folder = Path(os.fspath(name_or_path)).expanduser()
    if not folder.is_dir():
        folder = resolve_model(name_or_path)
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise UserError(f"{folder}：没有分词器文件（tokenizer.json 或 tokenizer.model），请重新下载或换一个目录。")
    verbatim = (folder / "tokenizer.json").exists() and config.get("tokenizer_class") in _FILE_TOKENIZERS
    kwargs.setdefault("trust_remote_code", False)
    if verbatim:
        kwargs.pop("trust_remote_code")
    loader = VerbatimTokenizer if verbatim else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(folder, **kwargs)
    except Exception as error:
        raise _as_user_error(folder, error) from error
    _set_pad_token(tokenizer, folder)
    return tokenizer


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if tokenizer.pad_token is not None:
        return
    path = folder / "generation_config.json"
    named = read_json(path).get("pad_token_id") if path.exists() else None
    candidates = [
        tokenizer.convert_ids_to_tokens(named) if isinstance(named, int) else None,
        "</s>",
        tokenizer.unk_token,
    ]
    vocab = tokenizer.get_vocab()
    for token in candidates:
        if token in vocab and token != tokenizer.eos_token:
            tokenizer.pad_token = token
            return
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    log.warning("分词器没有 pad_token，用 %s 代替；填充位置由 attention_mask 排除，不影响结果。", tokenizer.pad_token)


def save_checkpoint(
    model: Any, folder: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
) -> None:
    """Save a model (or PEFT adapter) and its tokenizer; ``kwargs`` go to ``model.save_pretrained``.

    Raises OSError(ENOSPC) for a full disk, which safetensors reports as an error of its own.
    """
    try:
        model.save_pretrained(folder, **kwargs)
    except Exception as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder)) from error
        raise
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    restore_minicpm_files(folder, model)


def restore_minicpm_files(folder: str | os.PathLike, model: Any) -> bool:
    """Give a saved folder MiniCPM's own config.json and .py files again; True if the model is a MiniCPM.

    Only needed after something wrote config.json other than by ``config.save_pretrained``; harmless to repeat. A
    folder without config.json (an adapter) is left as it is.
    """
    config = getattr(model, "config", model)
    if not isinstance(config, MiniCPMConfig):
        return False
    if (Path(folder) / "config.json").exists():
        _write_minicpm_files(Path(folder), config)
    return True


def _write_minicpm_files(folder: Path, config: MiniCPMConfig) -> None:
    original = getattr(config, "_minicpm_config", None)
    if original is None:  # a blank instance that transformers makes to compare defaults
        return
    write_json(folder / "config.json", to_minicpm(config.to_dict(), original))
    base = Path(config._minicpm_folder)
    if "auto_map" not in original or base == folder.resolve():
        return
    for source in sorted(base.glob("*.py")):
        shutil.copyfile(source, folder / source.name)


def _as_user_error(folder: Path, error: Exception) -> Exception:
    """One sentence for what the user can mend; anything else comes back as it is, with its traceback."""
    if isinstance(error, UserError):
        return error
    text = " ".join(str(error).split())
    if "trust_remote_code" in text or "execute the custom code" in text:
        return UserError(
            f"{folder}：这个模型自带代码，默认不执行；确认来源可信后设 trust_remote_code，或换用 transformers 原生支持的模型。"
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return UserError(
            f"{folder}/config.json：当前 transformers 不认识这种模型（{text[:120]}），请换模型或升级 transformers。"
        )
    if "ignore_mismatched_sizes" in text:
        return UserError(f"{folder}：权重的形状与 config.json 不符，请核对这两个文件是否属于同一个模型。")
    if (
        type(error).__name__ == "SafetensorError"
        or "PytorchStreamReader" in text
        or "UnpicklingError" in type(error).__name__
    ):
        return UserError(f"{folder}：权重文件损坏或不完整（{text[:120]}），请重新下载。")
    return error
