"""What the figures of a run say: each function takes numbers and returns one sentence for the user, or None.

Each sentence names the cause and what to do. callbacks.py gathers the figures and says a sentence once.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

History = list[dict[str, Any]]  # TrainerState.log_history

FLAT_LOGS = 10  # logged losses at the level of guessing before that is said
SPIKE, SPIKE_AFTER, SPIKE_WINDOW = 10.0, 10, 50
OVERFIT_EVALUATIONS = 3
# Learning rates of Adam by task and mode: (lowest, highest, usual). Outside, a run hardly moves or soon diverges.
LEARNING_RATES = {
    ("sft", "full"): (1e-7, 1e-4, 1e-5),
    ("sft", "lora"): (1e-6, 2e-3, 2e-4),
    ("pretrain", "full"): (1e-6, 5e-3, 1e-4),
    ("pretrain", "lora"): (1e-6, 2e-3, 2e-4),
    ("dpo", "full"): (1e-8, 1e-5, 5e-7),
    ("dpo", "lora"): (1e-7, 5e-4, 5e-6),
}


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of one logged figure; of two values at a step, the first."""
    found: dict[int, float] = {}
    for entry in history:
        if key in entry:
            found.setdefault(entry["step"], float(entry[key]))
    return list(found), list(found.values())


def best_evaluation(history: History) -> tuple[int, float] | None:
    """Return (step, loss) of the lowest held-out loss, the earlier of equal ones; None before the first."""
    pairs = [(loss, step) for step, loss in zip(*series(history, "eval_loss"), strict=True) if math.isfinite(loss)]
    if not pairs:
        return None
    loss, step = min(pairs)
    return step, loss


def evaluations_since_best(history: History) -> int:
    """How many evaluations in a row, up to the last, were no better than the best before them. NaN is never better."""
    steps, _ = series(history, "eval_loss")
    best = best_evaluation(history)
    return len(steps) - 1 - steps.index(best[0]) if best else len(steps)


def flat_loss(losses: Sequence[float], vocab_size: int, learning_rate: float) -> str | None:
    """``losses``: as logged after the warm-up. Says when the last ones are as high as guessing and do not fall."""
    recent, chance = list(losses[-FLAT_LOGS:]), math.log(vocab_size)
    half = len(recent) // 2
    if len(recent) < FLAT_LOGS or min(recent) < 0.97 * chance:
        return None
    if fmean(recent[:half]) - fmean(recent[half:]) > 0.01 * chance:
        return None
    return (
        f"最近 {FLAT_LOGS} 次的 loss 约 {fmean(recent):.2f}，不低于 ln(词表 {vocab_size})={chance:.2f}，等于瞎猜，也没有下降：模型没有在学。"
        "请依次检查：启动时有没有“权重未载入、随机初始化”的提示；分词器与模型是不是一家的（词表大小是否相同）；"
        f"learning_rate={learning_rate:g} 是否太小；lora_target_modules 或冻结的层是否让该学的参数不动。"
    )


def no_gradient(norms: Sequence[float]) -> str | None:
    """``norms``: gradient norms as logged. Says when the last three are exactly zero."""
    if len(norms) < 3 or any(norms[-3:]):
        return None
    return "最近 3 次的梯度范数都是 0：没有参数在更新。请检查 lora_target_modules、冻结的层和损失的掩码（是否没有目标 token）。"


def gradient_spike(step: int, norm: float, earlier: Sequence[float], max_grad_norm: float) -> str | None:
    """``earlier``: gradient norms logged after the warm-up and before this one."""
    if len(earlier) < SPIKE_AFTER or not math.isfinite(norm):
        return None
    usual = median(earlier[-SPIKE_WINDOW:])
    if norm <= SPIKE * usual or norm <= max_grad_norm:
        return None
    cut = f"已按 max_grad_norm={max_grad_norm:g} 裁剪" if max_grad_norm > 0 else "没有裁剪，请设 max_grad_norm 为 1"
    return (
        f"第 {step} 步的梯度范数 {norm:.3g} 是此前中位数 {usual:.3g} 的 {norm / max(usual, 1e-30):.0f} 倍（{cut}）：多半是这一步的数据异常"
        "（乱码、极长的重复、与其他数据很不一样），或学习率偏大。偶尔一次不要紧；loss 随之升高不降时，"
        "请检查数据、把 learning_rate 减半、max_grad_norm 设为 0.3，从这之前的 checkpoint 继续。"
    )


def overfitting(history: History, patience: int | None) -> str | None:
    """Say when the held-out loss rose ``OVERFIT_EVALUATIONS`` times in a row while the training loss fell."""
    steps, losses = (column[-OVERFIT_EVALUATIONS - 1 :] for column in series(history, "eval_loss"))
    if len(losses) <= OVERFIT_EVALUATIONS or any(b <= a for a, b in zip(losses, losses[1:], strict=False)):
        return None
    logged = list(zip(*series(history, "loss"), strict=True))
    before = [loss for step, loss in logged if step <= steps[0]][-5:]
    after = [loss for step, loss in logged if steps[-2] < step <= steps[-1]]
    if not before or not after or fmean(after) >= fmean(before):
        return None
    stop = "" if patience else "设 early_stopping_patience（例如 3）和 load_best_model_at_end；"
    return (
        f"从第 {steps[0]} 步到第 {steps[-1]} 步，评测损失连升 {OVERFIT_EVALUATIONS} 次（{losses[0]:.3f} → {losses[-1]:.3f}），"
        f"训练损失却在降（{fmean(before):.3f} → {fmean(after):.3f}）：开始过拟合，再训练只会更差。"
        f"请{stop}减少 num_train_epochs，或增加数据。"
    )


def learning_rate_advice(task: str, mode: str, learning_rate: float, optimizer: str) -> str | None:
    """The ranges hold for optimizers of Adam's kind only; others are not judged."""
    if "adam" not in optimizer.lower():
        return None
    low, high, usual = LEARNING_RATES[task, "full" if mode == "full" else "lora"]
    if low <= learning_rate <= high:
        return None
    far = "偏大，容易发散" if learning_rate > high else "偏小，几乎学不动"
    return f"learning_rate={learning_rate:g} 对 {task} 的 {mode} 训练{far}：常用 {usual:g}，一般在 {low:g} 到 {high:g} 之间。"


def schedule_advice(total: int, warmup: int, save_steps: int | None, eval_steps: int | None) -> list[str]:
    """Sentences on a schedule that does not fit a run of ``total`` steps; None for what does not go by steps."""
    found = []
    fitting = max(1, round(total * 0.05))
    if 2 * warmup >= total and warmup > fitting:
        so = "到结束也升不到设定的学习率" if warmup >= total else "一半以上的时间学习率都不足"
        found.append(f"warmup_steps={warmup}，而一共只有 {total} 步：{so}。请把 warmup_steps 改为 {fitting} 左右。")
    for key, steps, effect in (
        ("save_steps", save_steps, "中途不存 checkpoint，断了要从头训练"),
        ("eval_steps", eval_steps, "训练中不会评测"),
    ):
        if steps and steps > total:
            found.append(f"{key}={steps} 大于总步数 {total}：{effect}。需要的话请改为 {max(1, total // 5)} 左右。")
    return found


def truncation_advice(lengths: np.ndarray, longest: int, n_lost: int, targets_lost: float) -> str | None:
    """Say when much of the data does not fit.

    Args:
        lengths: (records,) tokens before cutting.
        longest: max_seq_length.
        n_lost: records left without targets by cutting.
        targets_lost: share of all target tokens that was cut off.
    """
    total, n_cut = max(1, len(lengths)), int((lengths > longest).sum())
    if n_lost <= 0.01 * total and n_cut <= 0.05 * total:
        return None
    p50, p95, p99 = (int(value) for value in np.percentile(lengths, (50, 95, 99)))
    wanted = -(-p99 // 64) * 64
    return (
        f"max_seq_length={longest} 对这份数据偏短：{n_cut} 条（{n_cut / total:.1%}）被截断，其中 {n_lost} 条没有剩下可训练的回答，"
        f"一共丢了 {targets_lost:.1%} 的目标 token，被截断的回答也学不到结束。数据的长度：一半不超过 {p50}，95% 不超过 {p95}，"
        f"99% 不超过 {p99}。请把 max_seq_length 调到 {wanted}（更占显存，可同时减小 per_device_train_batch_size）。"
    )


def stop_token_advice(last: Sequence[int], stop_ids: Sequence[int], show: Callable[[int], str]) -> str | None:
    """``last``: the last target token of each record that is whole. Says when most do not end in a stop token."""
    ended = sum(token in stop_ids for token in last)
    if not last or ended >= 0.5 * len(last):
        return None
    common = max(set(last), key=list(last).count)
    stops = "、".join(show(token) for token in stop_ids) or "（没有）"
    return (
        f"{len(last) - ended} / {len(last)} 条记录的最后一个目标 token 不是停止 token（{stops}），最常见的是 {show(common)}："
        "模型学不会在答完时停下，推理会一直生成到长度上限。请换成以停止 token 结束回答的 template_name（见 README 的模板表）。"
    )


def best_sentence(history: History, last_step: int, loaded: bool) -> str | None:
    """Say which step was best. ``loaded``: its weights were put back at the end (load_best_model_at_end)."""
    best = best_evaluation(history)
    if best is None or len(series(history, "eval_loss")[0]) < 2:
        return None
    step, loss = best
    text = f"评测损失最低的是第 {step} 步：{loss:.4f}"
    if loaded:
        return f"{text}；output_dir 里保存的就是这一步的权重。"
    if step == last_step:
        return f"{text}，也就是最后一步。"
    return f"{text}；output_dir 里保存的是最后的第 {last_step} 步，要保存最好的一步请设 load_best_model_at_end。"
