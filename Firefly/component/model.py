"""Load a model for full, LoRA or QLoRA training."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from .argument import CustomizedArguments
from .checkpoint import keep_nf4_readable, load_causal_lm, nf4_config
from .errors import UserError
from .lora import add_adapter
from .neftune import install_neftune
from .speed import weights_in
from .unsloth import load_with_unsloth, why_not_unsloth
from .utils import logger
from .vocabulary import grow_embeddings


def load_for_training(
    custom: CustomizedArguments, args: Any, tokenizer: Any = None, load: Callable[..., Any] = load_causal_lm
) -> torch.nn.Module:
    """Return the model ready for the trainer: weights in the right precision, adapter in place, the rest frozen.

    Full training keeps float32 weights under autocast (an AdamW step of 1e-5 would vanish in bf16), unless DeepSpeed
    keeps the float32 copy itself. LoRA and QLoRA freeze the base in half precision and train float32 adapters.

    Args:
        tokenizer: with the tokens of ``custom.add_tokens`` on it; not needed when there are none.
        load: what loads the base; simulate.py has one that makes it without weights.
    """
    if custom.use_unsloth and load is load_causal_lm:
        if (reason := why_not_unsloth(custom)) is None:
            return load_with_unsloth(custom, args)
        logger.warning(f"use_unsloth=true：{reason}；按普通方式训练。")
    model = load_base(custom, args, load)
    new_tokens = tokenizer.convert_tokens_to_ids(custom.add_tokens) if custom.add_tokens else []
    if new_tokens:
        grow_embeddings(model, new_tokens)
    if custom.train_mode != "full":
        model = add_adapter(model, custom, new_tokens)
    if args.gradient_checkpointing:
        model.config.use_cache = False
        model.enable_input_require_grads()
        args.gradient_checkpointing_kwargs = _checkpointing_kwargs(custom, args)
    if args.neftune_noise_alpha:
        install_neftune(model, args.neftune_noise_alpha)
        args.neftune_noise_alpha = None  # keeps transformers from adding its own noise on top
    trainable = sum(weights_in(p) for p in model.parameters() if p.requires_grad)
    total = sum(weights_in(p) for p in model.parameters())
    logger.info(f"参数 {total / 1e6:.2f}M，其中训练 {trainable / 1e6:.2f}M（{trainable / total:.2%}）")
    return model


def load_reference(custom: CustomizedArguments, args: Any, tokenizer: Any) -> torch.nn.Module:
    """Return a frozen copy of what full training starts from, for DPO."""
    model = load_base(custom, args)
    if custom.add_tokens:
        grow_embeddings(model, tokenizer.convert_tokens_to_ids(custom.add_tokens))
    return model.requires_grad_(False).eval()


def load_base(custom: CustomizedArguments, args: Any, load: Callable[..., Any] = load_causal_lm) -> torch.nn.Module:
    """Load the base alone, in the precision that ``train_mode`` asks for."""
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    kwargs: dict[str, Any] = {
        "dtype": torch.float32 if custom.train_mode == "full" and not args.deepspeed else half,
        "trust_remote_code": custom.trust_remote_code,
    }
    if custom.attn_implementation:
        kwargs["attn_implementation"] = custom.attn_implementation
    if custom.train_mode == "qlora":
        kwargs |= _nf4_kwargs(half)
    model = load(custom.model_name_or_path, **kwargs)
    keep_nf4_readable(model)
    return model


def _checkpointing_kwargs(custom: CustomizedArguments, args: Any) -> dict[str, Any]:
    """``gradient_checkpointing_kwargs`` with the offload asked for; transformers knows every_n_layers and offload from 5.20."""
    from transformers import PreTrainedModel

    kwargs = dict(args.gradient_checkpointing_kwargs or {})
    if custom.gradient_checkpointing_offload:
        kwargs["offload"] = True
    if kwargs.get("offload") and not torch.cuda.is_available():
        logger.warning("gradient_checkpointing_offload：没有 GPU，激活值本来就在内存里，忽略它。")
        kwargs.pop("offload")
    known = inspect.signature(PreTrainedModel.gradient_checkpointing_enable).parameters
    if missing := {"every_n_layers", "offload"} & set(kwargs) - set(known):
        raise UserError(f"gradient_checkpointing 的 {min(missing)} 需要 transformers 5.20 或更新，请升级或删去它。")
    return kwargs


def _nf4_kwargs(compute_dtype: torch.dtype) -> dict[str, Any]:
    """NF4, the whole model on this process's own device; under ZeRO-3 a part of it, which DeepSpeed places."""
    config = nf4_config(compute_dtype)
    if is_deepspeed_zero3_enabled():
        config.bnb_4bit_quant_storage = compute_dtype  # it cuts floating-point tensors only
        return {"quantization_config": config}
    device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}
