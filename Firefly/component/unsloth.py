"""Load and wrap a model through unsloth, where it is installed and rewrites the model's family by hand.

Written from unsloth 2026.10's source, and not run by this project's tests: unsloth needs a GPU, and a transformers
(at most 5.17) older than the one they run on. Everything it does not cover trains the ordinary way, with a notice.
"""

import importlib.util
import os
import types
from typing import Any

import torch

from .argument import CustomizedArguments
from .checkpoint import load_config
from .resolve import resolve_model

FAMILIES = ("llama", "mistral", "gemma", "qwen2", "qwen3")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # what all-linear is in those


def why_not_unsloth(custom: CustomizedArguments) -> str | None:
    """Return None when unsloth can train this, else the reason in Chinese."""
    if importlib.util.find_spec("unsloth") is None:
        return "没有安装 unsloth（请在另一个环境里 pip install unsloth，它要求 transformers 不高于 5.17）"
    if not torch.cuda.is_available():
        return "unsloth 要有 GPU"
    if custom.task_type == "dpo" or custom.train_mode == "full":
        return f"task_type={custom.task_type}、train_mode={custom.train_mode} 不经过 unsloth，它只用于 sft、pretrain 的 LoRA 与 QLoRA"
    for key in ("use_dora", "pissa_init", "add_tokens", "adapter_name_or_path", "gradient_checkpointing_offload"):
        if getattr(custom, key):
            return f"{key} 不能与 unsloth 一起用"
    model_type = load_config(resolve_model(custom.model_name_or_path), custom.trust_remote_code).model_type
    if model_type not in FAMILIES:
        return f"unsloth 没有改写 {model_type} 模型（MiniCPM 按 granite 载入），它改写的有 {'、'.join(FAMILIES)}"
    return None


def load_with_unsloth(custom: CustomizedArguments, args: Any) -> torch.nn.Module:
    """Return base and adapter by unsloth, which computes its own loss from labels and num_items_in_batch."""
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if args.gradient_checkpointing else False
    model, _ = FastLanguageModel.from_pretrained(
        str(resolve_model(custom.model_name_or_path)),
        max_seq_length=custom.max_seq_length,
        dtype=torch.bfloat16 if args.bf16 else torch.float16,
        load_in_4bit=custom.train_mode == "qlora",
        device_map={"": int(os.environ.get("LOCAL_RANK", 0))},
        use_gradient_checkpointing=checkpointing,
        use_exact_model_name=True,  # or it fetches another copy of a well-known model
        trust_remote_code=custom.trust_remote_code,
    )
    targets = LINEAR if custom.lora_target_modules == "all-linear" else custom.lora_target_modules
    model = FastLanguageModel.get_peft_model(
        model,
        r=custom.lora_rank,
        lora_alpha=custom.lora_alpha,
        lora_dropout=custom.lora_dropout,
        target_modules=targets,
        use_rslora=custom.use_rslora,
        use_gradient_checkpointing=checkpointing,
        random_state=args.seed,
    )
    base = model.get_base_model()
    original = base.forward

    def forward(self: Any, *positional: Any, target_index: Any = None, **kwargs: Any) -> Any:
        return original(*positional, **kwargs)  # target_index is for our own loss

    base.forward = types.MethodType(forward, base)
    base.accepts_loss_kwargs = model.uses_unsloth = True
    return model
