"""Where to merge a QLoRA adapter: into the 16-bit base, or into the base as NF4 had it? Measured, not guessed.

The adapter was trained on the NF4 base, so it partly mends what 4 bits lost. Merged into the dequantised base it meets
the weights it knows, rounded once; merged into the 16-bit base it meets better weights that it does not know. Which
of the two answers better depends on model and data: both are scored against adapter + NF4 base.
"""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .checkpoint import keep_nf4_readable, load_causal_lm, nf4_config
from .errors import UserError
from .merge_check import greedy_answers
from .prompt import IGNORE_INDEX, Messages, encode_conversations
from .resolve import FIREFLY

DIVERGENCE_POSITIONS = 512  # with 73,448 tokens of vocabulary, 150 MB of log-probabilities
FEWEST_RECORDS = 8  # fewer held-out records than this say nothing about a difference of losses
NAMES = {"base": "16/32 位底座", "dequantized": "反量化底座"}

Encoded = list[tuple[list[int], list[int]]]


class Sample(NamedTuple):
    """Conversations to score on, as (input_ids, labels), and what they are. ``held_out``: not trained on."""

    records: Encoded
    name: str
    held_out: bool


class Scores(NamedTuple):
    """What a model says about a sample, on the CPU."""

    losses: torch.Tensor  # (records,) cross-entropy summed over a record's targets, float64
    choices: torch.Tensor  # (targets,) greedy token at every target position
    log_probs: torch.Tensor  # (positions, vocab_size) at every n-th target position, float32


def training_dtype(training: dict[str, Any]) -> torch.dtype:
    """The precision that the run loaded and quantised its base from."""
    return torch.bfloat16 if training.get("bf16") else torch.float16 if training.get("fp16") else torch.float32


def load_nf4(base_name: str, half: torch.dtype, device: str) -> Any:
    """The base in NF4 with double quantisation, as QLoRA training loads it; UserError where that cannot be done."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("没有安装 bitsandbytes（pip install bitsandbytes）")
    if not device.startswith(("cpu", "cuda")):
        raise UserError(f"bitsandbytes 不支持设备 {device}")
    kwargs = {"dtype": half, "quantization_config": nf4_config(half), "device_map": {"": device}}
    try:
        model = load_causal_lm(base_name, **kwargs)
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"底座不能量化成 NF4（{' '.join(str(error).split())[:120]}）") from error
    keep_nf4_readable(model)
    return model


def dequantize(model: Any, dtype: torch.dtype) -> Any:
    """The NF4 model with ordinary layers holding the very weights that NF4 stands for, rounded to ``dtype``."""
    import logging

    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)  # it only says the dtypes
    return model.dequantize(dtype).to(dtype)


def find_sample(tokenizer: Any, eval_file: str | None, training: dict[str, Any], count: int) -> Sample | None:
    """Conversations of ``eval_file``, else of the run's eval_file, else of its train_file; None when there are none.

    Raises:
        UserError: an ``eval_file`` given by hand is missing or holds something else.
    """
    from .records import conversation_of, first_conversations, read_chunks, records_of

    length = training.get("max_seq_length") or 1024
    if eval_file:
        if not Path(eval_file).is_file():
            raise UserError(f"{eval_file}：找不到评估文件，请检查 --eval-file 的路径。")
        every = [conversation_of(r, where) for chunk in read_chunks([eval_file]) for _, where, r in records_of(chunk)]
        sample = _encode(tokenizer, every, length, count, f"{eval_file}（留出）", True)
        if sample is None:
            raise UserError(f"{eval_file}：没有一条对话可以算损失，请换一个 --eval-file。")
        return sample
    for key, kind in (("eval_file", "留出"), ("train_file", "训练集，见过")):
        name = training.get(key)
        path = next((p for p in (Path(name), FIREFLY / name) if p.is_file()), None) if name else None
        if path is None:
            continue
        held_out = key == "eval_file"
        try:
            found = first_conversations(str(path), 16 * count if held_out else count)
            sample = _encode(tokenizer, found, length, count, f"{path}（{kind}）", held_out)
        except UserError:  # data of another task, or changed since: the next best sample will do
            continue
        if sample:
            return sample
    return None


def _encode(
    tokenizer: Any, conversations: list[Messages], length: int, count: int, name: str, held_out: bool
) -> Sample | None:
    """``count`` conversations spread evenly, cut at ``length`` tokens; None when none of them has a target."""
    if len(conversations) > count:
        conversations = [conversations[i * len(conversations) // count] for i in range(count)]
    try:
        encoded = encode_conversations(tokenizer, conversations)
    except ValueError as error:
        raise UserError(f"{name}：{error}。") from None
    cut = [(ids[:length], labels[:length]) for ids, labels in encoded]
    records = [pair for pair in cut if any(label != IGNORE_INDEX for label in pair[1][1:])]
    return Sample(records, name, held_out) if records else None


def builtin_sample(model: Any, tokenizer: Any) -> Sample:
    """The sample prompts with ``model``'s own greedy answers, for want of data."""
    answers = greedy_answers(model, tokenizer)
    records = [(ids, [IGNORE_INDEX] * start + ids[start:]) for ids, start in answers]
    return Sample(records, "内置提示", False)


def score(model: Any, records: Encoded) -> Scores:
    """One forward pass per record; log-probabilities are kept at DIVERGENCE_POSITIONS target positions at most."""
    step = math.ceil(sum(label != IGNORE_INDEX for _, labels in records for label in labels[1:]) / DIVERGENCE_POSITIONS)
    losses, choices, log_probs, seen = [], [], [], 0
    for ids, labels in records:
        target = torch.tensor(labels[1:])
        at = (target != IGNORE_INDEX).nonzero()[:, 0]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
            rows = logits[at.to(logits.device)].float()  # (targets, vocab_size)
            logs = F.log_softmax(rows, -1)
            chosen = logs.gather(1, target[at].to(logs.device)[:, None])
        losses.append(-chosen.double().sum().cpu())
        choices.append(rows.argmax(-1).cpu())
        log_probs.append(logs[(-seen) % step :: step].cpu())
        seen += len(at)
    return Scores(torch.stack(losses), torch.cat(choices), torch.cat(log_probs))


def distance(reference: Scores, other: Scores) -> dict[str, float]:
    """Loss per target of ``other``, mean KL(reference || other) in nats, and the share of equal greedy tokens."""
    kl = (reference.log_probs.exp() * (reference.log_probs - other.log_probs)).sum(-1).mean()
    return {
        "loss": (other.losses.sum() / len(other.choices)).item(),
        "kl": max(kl.item(), 0.0),
        "equal_greedy_tokens": (reference.choices == other.choices).double().mean().item(),
    }


def choose(scores: dict[str, Scores], reference: Scores, held_out: bool) -> tuple[str, str]:
    """Return the better of the two merges and why, in Chinese.

    Held-out loss decides when the difference is more than two standard errors of its paired differences per record;
    otherwise, and on data that was trained on, the smaller divergence from the model that was trained.
    """
    difference = scores["base"].losses - scores["dequantized"].losses  # (records,)
    spread = difference.std().item() * math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    if held_out and len(difference) >= FEWEST_RECORDS and abs(difference.sum().item()) > 2 * spread:
        return ("base" if difference.sum() < 0 else "dequantized"), "留出损失更低，差别超过两倍标准误"
    near = min(scores, key=lambda kind: distance(reference, scores[kind])["kl"])
    return near, "KL 更小，即更接近训练出的模型" + ("；留出损失的差别在误差内" if held_out else "")


def report_choice(sample: Sample, reference: Scores, scores: dict[str, Scores]) -> dict[str, Any]:
    """Choose, say so in one line, and return what belongs in merge_info.json."""
    chosen, reason = choose(scores, reference, sample.held_out)
    figures = {kind: distance(reference, each) for kind, each in scores.items()}
    loss = distance(reference, reference)["loss"]
    parts = "；".join(
        f"并入{NAMES[kind]}：损失 {f['loss']:.4f}，KL {f['kl']:.2e}，贪心词元相同 {f['equal_greedy_tokens']:.1%}"
        for kind, f in figures.items()
    )
    print(
        f"QLoRA 的两种合并与训练出的模型（适配器 + NF4 底座，损失 {loss:.4f}）相比，{sample.name} "
        f"{len(sample.records)} 条、{len(reference.choices)} 个词元：{parts}。采用{NAMES[chosen]}（{reason}）。",
        file=sys.stderr,
    )
    measured = {
        "reason": reason,
        "sample": sample.name,
        "held_out": sample.held_out,
        "records": len(sample.records),
        "target_tokens": len(reference.choices),
        "loss_adapter_on_nf4": loss,
        "merges": figures,
    }
    return {"qlora_merge": chosen, "measured": measured}
