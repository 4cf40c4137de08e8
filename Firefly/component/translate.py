"""Other names for what a train_args file says: Firefly's old ones, and those of LLaMA-Factory, where people come from.

What means the same is taken, with a notice; what would mean something else is refused with what to write instead.
"""

from typing import Any

from .errors import UserError

# LLaMA-Factory (0.9): their key -> ours.
RENAMED = {
    "stage": "task_type",
    "finetuning_type": "train_mode",
    "template": "template_name",
    "cutoff_len": "max_seq_length",
    "lora_target": "lora_target_modules",
    "neat_packing": "packing",
    "flash_attn": "attn_implementation",
    "preprocessing_num_workers": "tokenize_num_workers",
    "val_size": "eval_ratio",
    "early_stopping_steps": "early_stopping_patience",
    "pref_beta": "beta",
    "disable_gradient_checkpointing": "gradient_checkpointing",
    "enable_liger_kernel": "use_liger_kernel",
    "resume_from_checkpoint": "resume_from_checkpoint_path",
}
# Their value -> ours, where the words differ. A value of these keys that is not listed has no counterpart.
VALUES: dict[str, dict[Any, Any]] = {
    "stage": {"pt": "pretrain", "sft": "sft", "dpo": "dpo"},
    "finetuning_type": {"lora": "lora", "full": "full"},
    "flash_attn": {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"},
    "disable_gradient_checkpointing": {True: False, False: True},
}
TEMPLATES = {"cpm": "minicpm", "cpm3": "minicpm3", "cpm4": "minicpm4", "intern2": "internlm2", "phi": "phi3"}
# Their key -> the value that is what we do anyway (None: any value), and why it is not needed.
NOT_NEEDED: dict[str, tuple[Any, str]] = {
    "overwrite_cache": (None, "分词缓存按数据与模板的内容自动更新"),
    "plot_loss": (None, "损失曲线总会写出"),
    "dataset_dir": (None, "train_file 直接写数据文件的路径"),
    "preprocessing_batch_size": (None, "分词自动分块"),
    "use_fast_tokenizer": (True, "总是用快速分词器"),
    "train_on_prompt": (False, "只在回答上算损失"),
    "quantization_method": ("bnb", "QLoRA 总是用 bitsandbytes"),
    "quantization_type": ("nf4", "QLoRA 总是用 nf4"),
    "double_quantization": (True, "QLoRA 总是用双重量化"),
    "upcast_layernorm": (False, "归一化按模型自己的精度"),
}
REFUSED = {
    "dataset": "它是 LLaMA-Factory 在 dataset_info.json 里登记的名字，请改写 train_file: 对话 JSONL 的路径。",
    "eval_dataset": "请改写 eval_file: 对话 JSONL 的路径。",
    "max_samples": "请先取出要用的前若干行（head -n），再写到 train_file。",
    "tokenized_path": "分词结果自动缓存，目录可用 token_cache_dir 指定。",
    "additional_target": "要训练新增 token 的词向量请用 add_tokens。",
    "freeze_trainable_layers": "没有按层冻结的训练，请用 train_mode: lora 或 full。",
    "pure_bf16": "请写 bf16: true；全参训练的主权重保持 float32。",
    "adapter_folder": "请写 adapter_name_or_path: 适配器目录。",
    "use_galore": "没有 GaLore，显存不够请用 train_mode: qlora。",
    "use_unsloth_gc": "请写 gradient_checkpointing_offload: true。",
}


def translate_llamafactory(values: dict[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """Rename LLaMA-Factory's keys to ours, with its defaults where the file is one of its own.

    Raises:
        UserError: a key or a value that has no exact counterpart; says what to write.
    """
    values, notices = dict(values), []
    theirs = "stage" in values or "finetuning_type" in values
    if values.get("quantization_bit") is not None:
        notices.append(_translate_bits(values, path))
    values.pop("quantization_bit", None)
    for key in [key for key in values if key in REFUSED and not values[key]]:
        del values[key]  # null, false: not asked for
    for key, ours in (("dataset", "train_file"), ("eval_dataset", "eval_file")):
        if key in values and values.get(ours):
            del values[key]
            notices.append(f"键 {key} 没有用到：数据以 {ours} 为准。")
    for key in [key for key in values if key in NOT_NEEDED]:
        ours, why = NOT_NEEDED[key]
        value = values.pop(key)
        if ours is not None and value not in (ours, None):
            raise UserError(f"{path}: {key}={value!r} 在这里做不到（{why}），请删去这个键。")
        notices.append(f"键 {key} 已不需要：{why}。")
    for key in [key for key in values if key in RENAMED]:
        value = values.pop(key)
        if value is None or (key == "neat_packing" and not value):
            continue
        value = _translate_value(key, value, path, values)
        if value is None:
            continue
        values.setdefault(RENAMED[key], value)
        notices.append(f"键 {key} 在这里叫 {RENAMED[key]}，已按 {RENAMED[key]}={values[RENAMED[key]]!r} 处理。")
    if values.get("packing", False) is None:
        del values["packing"]
    if theirs:
        notices += _add_their_defaults(values)
    return values, notices


def _translate_value(key: str, value: Any, path: str, values: dict[str, Any]) -> Any:
    """Return our word for their value of ``key``; None: nothing needs to be written."""
    if key in VALUES:
        known = VALUES[key]
        if not isinstance(value, str | bool) or value not in known:
            raise UserError(
                f"{path}: {key}={value!r} 没有对应的写法，请把它改成 {RENAMED[key]}，"
                f"可用的原值：{'、'.join(map(str, known))}。"
            )
        return known[value]
    if key == "template":
        if value == "default":
            raise UserError(
                f"{path}: template='default' 的对话格式与这里的 default 不同，请按模型家族写 template_name，或写 auto。"
            )
        return TEMPLATES.get(value, value)
    if key == "lora_target":
        return "all-linear" if value == "all" else [part.strip() for part in str(value).split(",")]
    if key == "val_size" and isinstance(value, int | float) and value >= 1:
        raise UserError(f"{path}: val_size={value!r} 是条数，这里要写比例，例如 eval_ratio: 0.05；或用 eval_file。")
    if key == "resume_from_checkpoint" and isinstance(value, bool):
        return values.get("output_dir") if value else None
    return value


def _translate_bits(values: dict[str, Any], path: str) -> str:
    bits, kind = values["quantization_bit"], values.pop("finetuning_type", "lora")
    if bits != 4 or kind != "lora":
        raise UserError(
            f"{path}: quantization_bit={bits!r} 配 {kind} 在这里做不到：量化训练只有 4 比特的 QLoRA，"
            "请写 train_mode: qlora，或删去 quantization_bit。"
        )
    values["train_mode"] = "qlora"
    return "键 quantization_bit 在这里是 train_mode，已按 train_mode='qlora' 处理。"


def _add_their_defaults(values: dict[str, Any]) -> list[str]:
    """What such a file leaves out means LLaMA-Factory's default, not ours."""
    values.setdefault("train_mode", "lora")
    defaults = {"max_seq_length": 2048, "gradient_checkpointing": True}
    if values["train_mode"] != "full":
        defaults |= {"lora_rank": 8, "lora_dropout": 0.0}
        if not values.get("lora_alpha"):
            values.pop("lora_alpha", None)
            defaults["lora_alpha"] = 2 * (values.get("lora_rank") or 8)
    added = {key: value for key, value in defaults.items() if key not in values}
    values.update(added)
    told = "、".join(f"{key}={value}" for key, value in added.items())
    return [f"文件没写、取 LLaMA-Factory 默认值的键：{told}。"] if told else []


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
