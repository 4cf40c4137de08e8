"""Which checkpoint a run goes on from, whether anything that matters has changed since, and when there is nothing to do."""

import json
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from . import watch
from .argument import CustomizedArguments
from .errors import UserError
from .manifest import STATE_NAME, file_names, read_manifest, why_damaged
from .saving import checkpoint_steps
from .utils import logger

# The weights, adapter or optimizer state of a checkpoint do not fit a run in which one of these differs.
_MUST_STAY = (
    "task_type", "train_mode", "lora_rank", "lora_target_modules", "use_rslora", "use_dora", "pissa_init", "add_tokens", "optim",
)  # fmt: skip
# With one of these changed the run goes on, but not as the uncut one would have.
_MAY_CHANGE = (
    "model_name_or_path", "max_seq_length", "template_name", "eval_ratio", "packing", "mask_history", "lora_alpha",
    "lora_dropout", "loraplus_lr_ratio", "beta", "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last",
    "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "bf16", "fp16",
)  # fmt: skip


def wants_newest(custom: CustomizedArguments) -> bool:
    """Whether resume_from_checkpoint_path says "whatever is there": true or auto."""
    return str(custom.resume_from_checkpoint_path).lower() in ("true", "auto")


def choose_checkpoint(custom: CustomizedArguments, output: Path) -> Path | None:
    """Return the whole checkpoint to go on from; None to start afresh, which only true and auto allow.

    Raises:
        UserError: there is none, or the one that was named is damaged (names those that are whole).
    """
    asked = custom.resume_from_checkpoint_path
    folder = output if wants_newest(custom) else Path(asked)
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint_path={asked}：目录不存在，请检查路径。")
    if folder.resolve().name.startswith("checkpoint-"):
        if reason := why_damaged(folder):
            whole = "、".join(str(p) for p in newest_first(folder.resolve().parent) if not why_damaged(p))
            rest = f"完好的有 {whole}，请改用其中之一" if whole else "同一目录里没有完好的，请从头训练"
            raise UserError(f"resume_from_checkpoint_path={asked}：这个 checkpoint 已损坏（{reason}）；{rest}。")
        return folder
    found = newest_first(folder)
    for checkpoint in found:
        if not (reason := why_damaged(checkpoint)):
            return checkpoint
        logger.warning(f"{checkpoint} 已损坏（{reason}），改用它前面的一个。")
    if wants_newest(custom) and not found:
        logger.info(f"resume_from_checkpoint_path={asked}：{folder} 里还没有 checkpoint，从头训练。")
        return None
    what = "里面的 checkpoint 都已损坏" if found else f"里面没有 checkpoint-N（要有 {STATE_NAME}）"
    raise UserError(
        f"resume_from_checkpoint_path={asked}：{what}，无法续训；"
        "要从头训练请删去这个键，要在训好的模型上做第二阶段请改 model_name_or_path 或 adapter_name_or_path。"
    )


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder by the time they were saved (a run may have gone back and left later steps behind);
    by their steps where one does not tell its time.
    """
    found = [folder / f"checkpoint-{step}" for step in reversed(checkpoint_steps(folder))]
    times = {}
    for checkpoint in found:
        try:
            times[checkpoint] = float(read_manifest(checkpoint)["saved_at"])
        except (ValueError, KeyError, TypeError):
            return found
    return sorted(found, key=times.__getitem__, reverse=True)


def agree(custom: CustomizedArguments, args: Any) -> Path | None:
    """Let rank 0 choose for all processes. Raises UserError in each where there is nothing to choose, or where a machine
    does not have what rank 0 sees.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    output = Path(args.output_dir)
    if args.world_size == 1:
        return choose_checkpoint(custom, output)
    choice: list[Any] = [None, None, []]
    if args.process_index == 0:
        try:
            choice[0] = choose_checkpoint(custom, output)
            choice[2] = file_names(choice[0]) if choice[0] else []
        except UserError as error:
            choice[1] = str(error)
    broadcast_object_list(choice)
    checkpoint, problem, names = choice
    if problem:
        raise UserError(problem)
    lacking = [(socket.gethostname(), name) for name in names if not (checkpoint / name).is_file()]
    if lacking := gather_object(lacking[:1]):
        machine, name = lacking[0]
        raise UserError(
            f"{checkpoint}：{machine} 这台机器上没有 {name}。续训时每台机器都要有整个 checkpoint：请把 output_dir 放在共享目录里，"
            f"或先用 rsync -a --ignore-existing 把各台机器上的 {checkpoint.name} 互相补齐。"
        )
    return checkpoint


def run_facts(custom: CustomizedArguments, args: Any, data: Any) -> dict[str, Any]:
    """Return what decides a run's figures, as plain values, for the manifest of its checkpoints."""
    facts = {key: getattr(custom, key, getattr(args, key, None)) for key in _MUST_STAY + _MAY_CHANGE}
    if custom.train_mode == "full":
        facts = {key: value for key, value in facts.items() if "lora" not in key}
    facts["optim"] = str(getattr(args.optim, "value", args.optim)).removesuffix("_fused")  # its states are the same
    facts["一步的条数"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    facts |= {"进程数": args.world_size, "训练数据条数": len(data), "训练数据内容": fingerprint(data)}
    return json.loads(json.dumps(facts, default=lambda value: getattr(value, "value", str(value))))


def fingerprint(data: Any) -> str:
    """Return a crc32 of the token ids of a dataset, of all its rows and their lengths."""
    crc = zlib.crc32(str(len(data)).encode())
    inner = getattr(data, "dataset", data)
    if store := getattr(inner, "store", None):
        crc = zlib.crc32(np.ascontiguousarray(inner.lengths), crc)
        return f"{zlib.crc32(store.ids, crc):08x}"
    for i in range(len(data)):
        crc = zlib.crc32(repr(sorted(data[i].items())).encode(), crc)
    return f"{crc:08x}"


def compare(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Warn of everything that has changed since ``checkpoint``, old -> new.

    Raises:
        UserError: what changed makes the checkpoint unusable.
    """
    before = read_manifest(checkpoint).get("run", {})
    changed = {key: (before[key], facts[key]) for key in facts if key in before and before[key] != facts[key]}
    named = "；".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items() if key in _MUST_STAY)
    if named:
        raise UserError(
            f"{checkpoint}：与存盘时的设置不同（{named}），权重或优化器状态对不上，不能续训；请改回，或换一个 output_dir 重新训练。"
        )
    same_step = "一步的条数" not in changed
    if "进程数" in changed and same_step:
        old, new = changed.pop("进程数")
        logger.warning(f"进程数 {old} -> {new}：数据顺序不变，dropout 的随机数和末位舍入会与不中断时不同。")
    if changed:
        named = "；".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        order = "" if same_step else "一步的条数变了，已训练的位置按步数折算，有的数据会多学或漏学。"
        logger.warning(f"与 {checkpoint} 存盘时不同：{named}。继续训练，但结果不会与不中断时相同。{order}")


def nothing_left(
    checkpoint: Path, max_steps: int, output: Path, newest: bool, patience: int | None = None
) -> dict[str, Any] | None:
    """Return the results of a run that is finished, or None when there are steps to train or a final model to save.

    Resuming a finished run would train zero steps and report a loss of 0.0: say what to do instead, unless ``newest``
    (a script that restarts its one command until it succeeds) asks for no more than this.

    Args:
        patience: early_stopping_patience; a run that stopped early is finished too.

    Raises:
        UserError: the run is finished.
    """
    state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    done, history = state["global_step"], state["log_history"]
    early = patience is not None and watch.evaluations_since_best(history) >= patience
    if done < max_steps and not early:
        return None
    try:
        results = json.loads((output / "train_results.json").read_text(encoding="utf-8"))
        saved = results.get("global_step", done) >= done
    except (OSError, ValueError):
        results, saved = {}, False
    if not saved and checkpoint.resolve().parent == output.resolve():
        logger.info(f"{checkpoint} 已是最后一步，只差保存最终模型：现在补上。")
        return None
    if newest:
        logger.info(f"这次训练已经全部完成（{done} 步），模型在 {output}。")
        return results
    if done < max_steps:
        step, loss = watch.best_evaluation(history) or (0, float("nan"))
        raise UserError(
            f"这次训练已经早停：第 {step} 步的评测损失 {loss:.4f} 之后连续 {patience} 次评测没有更低。"
            "要继续训练，请调大 early_stopping_patience，或设为 null。"
        )
    raise UserError(
        f"{checkpoint}：这次训练共 {max_steps} 步，checkpoint 已到第 {done} 步，没有剩下的步数可续。"
        "要继续训练更久，请调大 num_train_epochs 或 max_steps；要做第二阶段，请先用 script/merge_lora.py 合并，"
        "再把 model_name_or_path 指向合并后的目录（或用 adapter_name_or_path 接着训练这个适配器）。"
    )
