"""LoRA and its variants through PEFT: rsLoRA, DoRA, PiSSA, LoRA+."""

import math
from pathlib import Path
from typing import Any

import torch

from .argument import CustomizedArguments
from .errors import UserError
from .utils import logger
from .vocabulary import fit_vocabulary, save_new_rows_only, trainable_rows


def add_adapter(model: torch.nn.Module, custom: CustomizedArguments, new_tokens: list[int]) -> torch.nn.Module:
    """Put a new LoRA adapter on the model, or go on with the one of stage 1.

    Args:
        new_tokens: ids of tokens added to the vocabulary, whose rows are trained beside the adapter.
    """
    from peft import LoraConfig, get_peft_model

    if custom.adapter_name_or_path:
        return _go_on_with_adapter(model, custom, new_tokens)
    rows = trainable_rows(model, new_tokens) if new_tokens else {}
    config = LoraConfig(
        r=custom.lora_rank,
        lora_alpha=custom.lora_alpha,
        lora_dropout=custom.lora_dropout,
        target_modules=custom.lora_target_modules,
        use_rslora=custom.use_rslora,
        use_dora=custom.use_dora,
        task_type="CAUSAL_LM",
        **rows,
    )
    if custom.pissa_init:  # twice the rank at the same scaling, see start_from_principal_part
        config.r = 2 * custom.lora_rank
        config.lora_alpha = custom.lora_alpha * (math.sqrt(2) if custom.use_rslora else 2)
    try:
        model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora_target_modules={custom.lora_target_modules!r} 与模型不符：{error}") from None
    if custom.pissa_init:
        start_from_principal_part(model, custom.pissa_iter)
        logger.info(f"PiSSA：适配器按 rank {config.r}（lora_rank 的两倍）存盘，是原底座的普通 LoRA，推理与合并照常。")
    if new_tokens:
        save_new_rows_only(model)
    return model


def _go_on_with_adapter(model: torch.nn.Module, custom: CustomizedArguments, new_tokens: list[int]) -> torch.nn.Module:
    from peft import PeftModel

    folder = custom.adapter_name_or_path
    if not (Path(folder) / "adapter_config.json").exists():
        raise UserError(
            f"adapter_name_or_path={folder}：没有 adapter_config.json，不是适配器目录；"
            "如果是合并后的模型，请写到 model_name_or_path。"
        )
    if new_tokens:
        raise UserError(
            f"add_tokens：接着训练适配器 {folder} 时不能再添加 token；请先用 script/merge_lora.py 合并，"
            "再把 model_name_or_path 指向合并后的目录。"
        )
    fit_vocabulary(model, folder)
    model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    config = model.peft_config["default"]
    if getattr(config, "trainable_token_indices", None):
        save_new_rows_only(model)
    logger.info(f"接着训练适配器 {folder}（rank {config.r}，JSON 里 LoRA 的键不再起作用）")
    return model


def start_from_principal_part(model: torch.nn.Module, rounds: int) -> None:
    """PiSSA (Meng et al. 2024, arXiv 2404.02948): start A and B from the principal singular vectors of each weight.

    PiSSA trains A B on the rest W - A0 B0. Here the base stays W: an adapter of twice the rank holds [A; A0] and
    [B, -B0], of which the second half never changes. Its output is the same, and so are the gradients of A and B; but
    what is saved is an ordinary LoRA adapter of the base as it was, the base may be quantised, with the adapter off
    the model is the base, and nothing is lost by rounding W - A0 B0. The price is a wider adapter.

    Args:
        model: a PEFT model whose LoRA layers have rank 2r.
        rounds: of subspace iteration for the truncated SVD; 0 takes the exact SVD.

    Raises:
        UserError: r is larger than a weight's smaller side, a weight is not here whole (ZeRO-3), or no matrix.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
        rank = layer.r["default"] // 2
        if weight.dim() != 2 or not layer.lora_A:
            raise UserError(
                f"pissa_init：{name} 不是线性层（权重不完整或是嵌入层），请从 lora_target_modules 里去掉它，或关掉 pissa_init。"
            )
        if rank > min(weight.shape):
            raise UserError(
                f"pissa_init：lora_rank={rank} 大于 {name} 的较短边 {min(weight.shape)}，请调小 lora_rank。"
            )
        a0, b0 = _principal_part(weight, rank, rounds)
        scaling = math.sqrt(layer.scaling["default"])
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a.data = torch.cat([a0, a0]).div_(scaling).to(a)
        b.data = torch.cat([b0, -b0], dim=1).div_(scaling).to(b)
        a.register_hook(lambda grad, rank=rank: _zero_tail(grad, rank, 0))
        b.register_hook(lambda grad, rank=rank: _zero_tail(grad, rank, 1))


def _principal_part(weight: torch.Tensor, rank: int, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A0 (rank, in) and B0 (out, rank), where B0 A0 is ``weight`` cut to its ``rank`` largest singular values."""
    if rounds:
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=rounds)
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], vh[:rank].T
    return (v * s.sqrt()).T, u * s.sqrt()


def _zero_tail(grad: torch.Tensor, start: int, dim: int) -> torch.Tensor:
    grad = grad.clone()
    grad.narrow(dim, start, grad.shape[dim] - start).zero_()
    return grad


class LoraPlus:
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354) for a Trainer: B learns ``loraplus_lr_ratio`` times as fast as A.

    The groups are split when the optimizer is made, so schedules, resuming, DDP and DeepSpeed treat them as any group.
    """

    loraplus_lr_ratio: float | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.loraplus_lr_ratio:
            named = (self.model if model is None else model).named_parameters()
            fast = {id(p) for name, p in named if ".lora_B." in name or ".lora_embedding_B." in name}
            for group in list(optimizer.param_groups):
                members, others = (
                    [p for p in group["params"] if (id(p) in fast) == wanted] for wanted in (True, False)
                )
                group["params"] = others
                if members:
                    rate = group["lr"] * self.loraplus_lr_ratio
                    optimizer.add_param_group({**group, "params": members, "lr": rate})
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer
