"""Read a train_args file: our keys, every key of transformers' TrainingArguments, and the old names people still have."""

import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from .argument import CustomizedArguments
from .errors import UserError

CHOICES = {f.name: f.metadata["choices"] for f in fields(CustomizedArguments) if "choices" in f.metadata}


def read_train_args(path: str, overrides: list[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Read the JSON file and lay ``--key value`` pairs from the command line over it.

    Returns:
        The values with old names translated, and one Chinese sentence per translation.

    Raises:
        UserError: no file, no JSON object, an unknown key (with the nearest known one), a value that can't be.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: 不是合法的 JSON（{error.msg}，第 {error.colno} 列），请检查逗号与引号。"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: 不是 UTF-8 文本，请另存为 UTF-8 编码。") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: 应是一个 JSON 对象 {{...}}，实际是 {type(values).__name__}。")
    values.update(parse_overrides(overrides))
    values, notices = translate_old_keys(values)
    check_keys(values, path)
    return values, notices


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Turn ``["--learning_rate", "1e-3", "--bf16", "false"]`` into values, each read as JSON where it is JSON."""
    values = {}
    for key, value in zip(words[::2], words[1::2], strict=False):
        try:
            values[key.removeprefix("--")] = json.loads(value)
        except json.JSONDecodeError:
            values[key.removeprefix("--")] = value
    if len(words) % 2 or not all(key.startswith("--") for key in words[::2]):
        raise UserError(
            f"命令行 {' '.join(words)!r} 不成对：要改 JSON 里的值，请写成 --键 值，例如 --learning_rate 1e-4。"
        )
    return values


def translate_old_keys(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename what transformers 5 renamed or dropped, so that files written for Firefly keep working."""
    values, notices = dict(values), []

    def move(old: str, new: str, value: Any) -> None:
        values.pop(old)
        if new not in values:
            values[new] = value
        notices.append(f"键 {old} 是旧写法，已按 {new}={values[new]!r} 处理。")

    def drop(old: str, why: str) -> None:
        values.pop(old)
        notices.append(f"键 {old} 已不需要：{why}。")

    if "evaluation_strategy" in values:
        move("evaluation_strategy", "eval_strategy", values["evaluation_strategy"])
    if "group_by_length" in values:
        move("group_by_length", "train_sampling_strategy", "group_by_length" if values["group_by_length"] else "random")
    if "warmup_ratio" in values:
        if values["warmup_ratio"] and not values.get("warmup_steps"):
            values.pop("warmup_steps", None)
            move("warmup_ratio", "warmup_steps", values["warmup_ratio"])  # transformers 5: below 1 is a share
        else:
            drop("warmup_ratio", "warmup_steps 已给出，或比例为 0")
    if "logging_dir" in values:
        drop("logging_dir", "TensorBoard 记录写在 output_dir/runs")
    if "save_safetensors" in values:
        drop("save_safetensors", "权重总是存为 safetensors")
    if "no_cuda" in values:
        move("no_cuda", "use_cpu", values["no_cuda"])
    if values.get("optim") == "adamw_hf":
        values["optim"] = "adamw_torch"
        notices.append("optim adamw_hf 已被 transformers 移除，改用 adamw_torch。")
    return values, notices


def check_keys(values: dict[str, Any], path: str) -> None:
    """Raise UserError for the first key nobody knows, a choice nobody offers, or a required key that is missing."""
    from transformers import TrainingArguments

    ours = {f.name for f in fields(CustomizedArguments)}
    known = ours | {f.name for f in fields(TrainingArguments) if f.init}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"是不是想写 {near[0]}？" if near else "请删去它，或查 README 的参数表。"
            raise UserError(f"{path}: 不认识的键 {key!r}，{hint}")
    for key, choices in CHOICES.items():
        if values.get(key, choices[0]) not in choices:
            raise UserError(f"{path}: {key}={values[key]!r} 不可用，请用 {'、'.join(choices)} 之一。")
    for key in ("train_file", "model_name_or_path", "output_dir"):
        if not values.get(key):
            raise UserError(f"{path}: 缺少 {key}，请在 JSON 里写上，或在命令行加 --{key} ...。")
    if not 0 <= values.get("eval_ratio", 0) < 1:
        raise UserError(f"{path}: eval_ratio={values['eval_ratio']!r} 应在 0 与 1 之间，例如 0.05。")
    if values.get("eval_strategy", "no") != "no" and not values.get("eval_file") and not values.get("eval_ratio"):
        raise UserError(
            f"{path}: eval_strategy={values['eval_strategy']!r}，但没有评测数据：请给 eval_file 或 eval_ratio。"
        )
