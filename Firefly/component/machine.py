"""What this machine can do: precision, DeepSpeed, devices."""

from typing import Any

from .errors import UserError


def fit_to_machine(values: dict[str, Any]) -> list[str]:
    """Change in place what this machine can't do (precision, DeepSpeed), and return a sentence for each change."""
    import importlib.util

    import torch

    notices = []
    if not torch.cuda.is_available():
        values["use_cpu"] = True
        if values.get("fp16"):
            values["fp16"] = False
            notices.append("没有 GPU，fp16 在 CPU 上不可用，改用 float32。")
        if values.pop("deepspeed", None):
            notices.append("没有 GPU，忽略 deepspeed 配置，用普通方式训练。")
    elif values.get("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        values.update(bf16=False, fp16=True)
        notices.append(f"{torch.cuda.get_device_name()} 不支持 bf16，改用 fp16。")
    if values.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise UserError("deepspeed 没有安装：请先 pip install deepspeed；单卡不需要它，可在命令行加 --deepspeed null。")
    return notices
