"""What lies in an adapter's folder, read before torch is imported: a wrong path is said at once.

has_weights(adapter) -> bool
read_adapter_config(adapter) -> dict
find_base(adapter, flag) -> str           a folder, or a name on a hub
read_training(adapter) -> dict            the run's train_args.json
"""

import json
from pathlib import Path
from typing import Any

from .errors import UserError
from .resolve import FIREFLY, read_json


def has_weights(adapter: Path) -> bool:
    return any((adapter / name).exists() for name in ("adapter_model.safetensors", "adapter_model.bin"))


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of the folder; UserError says what the folder is instead, and what to do."""
    if not adapter.is_dir():
        raise UserError(f"{adapter}：适配器目录不存在，请检查 --adapter。")
    if not (adapter / "adapter_config.json").exists():
        if (adapter / "config.json").exists():
            raise UserError(f"{adapter}：这是完整模型（全参数训练的结果），不需要合并，直接用它推理或接着训练即可。")
        inside = sorted(path.parent.name for path in adapter.glob("*/adapter_config.json"))
        hint = f"，其中的适配器在 {'、'.join(inside)}，请给出其中一个" if inside else "，请检查 --adapter"
        raise UserError(f"{adapter}：没有 adapter_config.json{hint}。")
    if not has_weights(adapter):
        raise UserError(
            f"{adapter}：没有适配器权重 adapter_model.safetensors，训练可能没有保存完，请换一个 checkpoint。"
        )
    return read_json(adapter / "adapter_config.json")


def find_base(adapter: Path, flag: str) -> str:
    """The base that an adapter names. A relative path counts from here or, as the trainer writes it, from Firefly/.

    UserError when there is none; ``flag``: by which one gives it instead.
    """
    base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise UserError(f"{adapter}/adapter_config.json：没有记录底座，请用 {flag} 给出底座模型。")
    for folder in (Path(base), FIREFLY / base):
        if folder.is_dir():
            return str(folder)
    if base.startswith((".", "/", "~")):
        raise UserError(f"{adapter}/adapter_config.json：记录的底座 {base} 不在了，请用 {flag} 给出底座模型。")
    return base


def read_training(adapter: Path) -> dict[str, Any]:
    """The run's train_args.json, from the adapter's folder or (for checkpoint-N) the one above; {} when there is none."""
    for folder in (adapter, adapter.resolve().parent):
        try:
            values = json.loads((folder / "train_args.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return values if isinstance(values, dict) else {}
    return {}
