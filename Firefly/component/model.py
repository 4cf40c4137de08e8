"""Load a model for full, LoRA or QLoRA training."""

import os
from pathlib import Path
from typing import Any

import torch

from .argument import CustomizedArguments
from .checkpoint import load_causal_lm
from .errors import UserError
from .utils import logger


def load_for_training(custom: CustomizedArguments, args: Any) -> torch.nn.Module:
    """Return the model ready for the trainer: weights in the right precision, adapter in place, the rest frozen.

    Full training keeps float32 weights under autocast (an AdamW step of 1e-5 would vanish in bf16), unless DeepSpeed
    keeps the float32 copy itself. LoRA and QLoRA freeze the base in half precision and train float32 adapters.
    """
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    kwargs: dict[str, Any] = {
        "dtype": torch.float32 if custom.train_mode == "full" and not args.deepspeed else half,
        "trust_remote_code": custom.trust_remote_code,
    }
    if custom.attn_implementation:
        kwargs["attn_implementation"] = custom.attn_implementation
    if custom.train_mode == "qlora":
        kwargs |= _nf4_kwargs(half)
    model = load_causal_lm(custom.model_name_or_path, **kwargs)
    if custom.train_mode != "full":
        model = _add_adapter(model, custom)
    if args.gradient_checkpointing:
        model.config.use_cache = False
        model.enable_input_require_grads()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = model.num_parameters()
    logger.info(f"参数 {total / 1e6:.2f}M，其中训练 {trainable / 1e6:.2f}M（{trainable / total:.2%}）")
    return model


def _nf4_kwargs(compute_dtype: torch.dtype) -> dict[str, Any]:
    """NF4 with double quantisation (QLoRA, Dettmers et al. 2023), the whole model on this process's own device."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
    device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _add_adapter(model: torch.nn.Module, custom: CustomizedArguments) -> torch.nn.Module:
    """Put a new LoRA adapter on the model, or go on with the one of stage 1."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if custom.adapter_name_or_path:
        if not (Path(custom.adapter_name_or_path) / "adapter_config.json").exists():
            raise UserError(
                f"adapter_name_or_path={custom.adapter_name_or_path}：没有 adapter_config.json，不是适配器目录；"
                "如果是合并后的模型，请写到 model_name_or_path。"
            )
        model = PeftModel.from_pretrained(model, custom.adapter_name_or_path, is_trainable=True)
        rank = model.peft_config["default"].r
        logger.info(f"接着训练适配器 {custom.adapter_name_or_path}（rank {rank}，JSON 里的 lora_* 不再起作用）")
        return model
    config = LoraConfig(
        r=custom.lora_rank,
        lora_alpha=custom.lora_alpha,
        lora_dropout=custom.lora_dropout,
        target_modules=custom.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora_target_modules={custom.lora_target_modules!r} 与模型不符：{error}") from None
