"""The keys of a train_args file beside transformers' TrainingArguments."""

import sys
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UserError
from .machine import launch_arguments


@dataclass
class CustomizedArguments:
    """The keys beside transformers' TrainingArguments. Paths are relative to Firefly/."""

    train_file: str = field(metadata={"help": "conversation JSONL to train on"})
    model_name_or_path: str = field(metadata={"help": "local folder, or a hub id"})
    max_seq_length: int = field(default=1024, metadata={"help": "tokens; longer records are cut at the end"})
    template_name: str = field(
        default="auto", metadata={"help": "see component/template.py; auto: the tokenizer's own"}
    )
    eval_file: str | None = field(default=None, metadata={"help": "conversation JSONL for held-out loss"})
    eval_ratio: float = field(
        default=0.0, metadata={"help": "share of train_file split off when there is no eval_file"}
    )
    max_prompt_length: int = field(default=512, metadata={"help": "dpo: tokens"})
    beta: float = field(default=0.1, metadata={"help": "dpo: KL strength"})
    tokenize_num_workers: int = field(default=10, metadata={"help": "processes that render and tokenise"})
    task_type: str = field(default="sft", metadata={"choices": ["pretrain", "sft", "dpo"]})
    train_mode: str = field(default="qlora", metadata={"choices": ["full", "lora", "qlora"]})
    lora_rank: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_target_modules: list[str] | str = field(default="all-linear", metadata={"help": "names, or all-linear"})
    use_unsloth: bool = False
    resume_from_checkpoint_path: str | bool | None = field(
        default=None,
        metadata={"help": "checkpoint-N of a run that was cut, or its output_dir; true: the newest, or start afresh"},
    )
    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "stage 2: go on training this adapter of stage 1"}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa or flash_attention_2"})
    packing: bool = field(
        default=False, metadata={"help": "put whole records into rows of max_seq_length tokens, best fit"}
    )
    padding_free: bool | None = field(
        default=None, metadata={"help": "flatten a batch instead of padding it; null: wherever the model allows it"}
    )
    token_cache_dir: str | None = field(
        default=None, metadata={"help": "where tokenised data is kept; null: ~/.cache/firefly/tokens"}
    )
    mask_history: bool = field(default=False, metadata={"help": "train on the last answer of a conversation only"})
    add_tokens: list[str] = field(
        default_factory=list, metadata={"help": "tokens to add to the vocabulary; their embeddings are trained"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "scale by alpha / sqrt(rank)"})
    use_dora: bool = field(default=False, metadata={"help": "train magnitude and direction apart"})
    pissa_init: bool = field(default=False, metadata={"help": "start LoRA from the principal singular vectors"})
    pissa_iter: int = field(default=16, metadata={"help": "pissa_init: rounds of fast SVD; 0: the exact SVD"})
    loraplus_lr_ratio: float | None = field(
        default=None, metadata={"help": "LoRA+: learning rate of B over that of A, for example 16"}
    )
    gradient_checkpointing_offload: bool = field(
        default=False, metadata={"help": "keep the checkpointed activations in CPU memory"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after this many evaluations without a better held-out loss"}
    )
    eval_questions: str | None = field(
        default=None,
        metadata={"help": "JSONL of questions answered at every evaluation; null: the first held-out ones"},
    )
    trust_remote_code: bool = False
    overwrite_output_dir: bool = field(default=False, metadata={"help": "train into a folder that has files"})


def build_arguments(values: dict[str, Any], path: str) -> tuple[CustomizedArguments, Any]:
    """Return our arguments and transformers' TrainingArguments, with what transformers refuses as a UserError."""
    from transformers import TrainingArguments

    ours = {f.name for f in fields(CustomizedArguments)}
    custom = CustomizedArguments(**{k: v for k, v in values.items() if k in ours})
    rest = {k: v for k, v in values.items() if k not in ours}
    rest.setdefault("report_to", "tensorboard")
    rest.setdefault("ddp_find_unused_parameters", False)
    rest.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    rest.setdefault("disable_tqdm", not sys.stderr.isatty())
    rest["remove_unused_columns"] = False  # our batches hold just what the model takes
    rest["logging_nan_inf_filter"] = False  # a NaN must be seen, see trainer.py
    rest |= launch_arguments(rest)
    try:
        if custom.task_type == "dpo":
            from .dpo import dpo_arguments

            args = dpo_arguments(custom, rest)
        else:
            args = TrainingArguments(**rest)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: transformers 不接受这些参数：{error}") from None
    check_keys_fit_together(custom, args)
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs need a launcher: DataParallel would cut a flat row in pieces
    return custom, args


def check_keys_fit_together(custom: CustomizedArguments, args: Any) -> None:
    """Raise UserError for a key that the chosen mode would ignore, or that another key contradicts."""
    lora_only = {key: getattr(custom, key) for key in ("use_rslora", "use_dora", "pissa_init", "loraplus_lr_ratio")}
    if custom.train_mode == "full" and (named := [key for key, value in lora_only.items() if value]):
        raise UserError(f"{named[0]}：只对 LoRA 有意义，而 train_mode=full；请删去它，或改 train_mode 为 lora、qlora。")
    if custom.pissa_init:  # half of its adapter stays as it is, see lora.py
        why = "会改动适配器里不参与训练的那一半"
        if args.weight_decay:
            raise UserError(f"pissa_init：weight_decay={args.weight_decay:g} {why}，请设为 0。")
        if args.optim.value.endswith(("8bit", "4bit")):
            raise UserError(f"pissa_init：optim={args.optim.value} {why}，请用 adamw_torch 或 paged_adamw_32bit。")
    whole_weights = "pissa_init" if custom.pissa_init else "add_tokens" if custom.add_tokens else ""
    if whole_weights and custom.train_mode != "full" and args.deepspeed and args.hf_deepspeed_config.is_zero3():
        raise UserError(
            f"{whole_weights}：要用到整个权重，而 ZeRO-3 把它分在各进程里；请把 deepspeed 改为 train_args/ds_z2_config.json。"
        )
    if custom.gradient_checkpointing_offload and not args.gradient_checkpointing:
        raise UserError("gradient_checkpointing_offload：要与 gradient_checkpointing 一起用，请把它也设为 true。")
    for key, value in (("packing", custom.packing), ("neftune_noise_alpha", args.neftune_noise_alpha)):
        if value and custom.task_type == "dpo":  # noise would also fall on the reference
            raise UserError(f"{key}：只用于 sft 和 pretrain，task_type=dpo 时请删去。")
