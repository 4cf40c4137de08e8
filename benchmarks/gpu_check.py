"""Are the trainer's own kernels right on this GPU? Loss, logits and gradients against float32 on the CPU.

The reference is transformers' own Granite, eager attention, padded, in float32 on the CPU. Three ways are held against
it: what a plain bf16 run computes (padded, sdpa, autocast), our flat rows with target-only loss under the same autocast,
and our flat rows in float32. bf16 rounds: ours may be as far off as plain's, with a margin, and not more.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch

MARGIN = 1.5  # ours may round this much worse than plain bf16
FLOAT32 = 1e-3  # relative error allowed in float32


def compare(folder: Path, rows_file: Path, pad_token_id: int, device: str, n_rows: int = 8) -> tuple[str, bool]:
    """Return a Markdown table and whether every error is within its bound.

    Args:
        folder: a small MiniCPM with the real width, heads and vocabulary, few layers.
        rows_file: JSONL of input_ids and labels.
    """
    from train_plain import pad

    from Firefly.component.attention import use_flat_rows
    from Firefly.component.checkpoint import load_causal_lm
    from Firefly.component.collator import flatten_batch
    from Firefly.component.loss import install_target_loss

    rows = [json.loads(line) for line in rows_file.read_text().splitlines()[:n_rows]]
    padded, flat = pad(rows, pad_token_id), flatten_batch(rows)
    model = load_causal_lm(folder, dtype=torch.float32, attn_implementation="eager")
    keep = padded["attention_mask"].bool()
    reference = measure(model, padded, "cpu", torch.float32, keep)
    model.set_attn_implementation("sdpa")
    plain = measure(copy.deepcopy(model), padded, device, torch.bfloat16, keep)
    ours = copy.deepcopy(model)
    if not install_target_loss(ours) or not use_flat_rows(ours, None, None):
        return "没有用到平铺注意力或目标损失，无从核对。", False
    ours_bf16 = measure(ours, flat, device, torch.bfloat16, None)
    ours_f32 = measure(ours, flat, device, torch.float32, None)
    errors = {
        "plain, bf16": distance(plain, reference),
        "ours, bf16": distance(ours_bf16, reference),
        "ours, float32": distance(ours_f32, reference),
    }
    bounds = {
        "ours, bf16": [MARGIN * error for error in errors["plain, bf16"]],
        "ours, float32": [FLOAT32] * len(errors["plain, bf16"]),
    }
    lines = [
        "| 与 CPU float32 的相对误差 | 损失 | logits | 梯度 | 最差的梯度 | 是否合格 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    good = True
    for name, values in errors.items():
        bound = bounds.get(name)
        fits = bound is None or all(value <= limit + 1e-6 for value, limit in zip(values, bound, strict=True))
        good &= fits
        verdict = "" if bound is None else "是" if fits else "否"
        lines.append("| " + " | ".join([name, *(f"{value:.1e}" for value in values), verdict]) + " |")
    return "\n".join(lines), good


def measure(
    model: torch.nn.Module, batch: dict[str, Any], device: str, dtype: torch.dtype, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss, logits of the tokens that are data (tokens, vocab_size), and gradients, all float32 on the CPU."""
    model = model.to(device).train()
    batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
    labels = batch["labels"]
    count = int((labels[:, 1:] != -100).sum())
    model.zero_grad(set_to_none=True)
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "target_index")}
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits.float().cpu()
        loss = model(**batch, use_cache=False, num_items_in_batch=torch.tensor(count, device=device)).loss
    loss.backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach().float().cpu(), logits[0] if keep is None else logits[keep], gradients


def distance(ours: tuple, reference: tuple) -> list[float]:
    """Relative errors of the loss, the logits, all gradients together, and the worst tensor's gradient."""
    loss = abs((ours[0] - reference[0]) / reference[0]).item()
    logits = ((ours[1] - reference[1]).norm() / reference[1].norm()).item()
    assert ours[2].keys() == reference[2].keys()
    apart = {name: (ours[2][name] - grad).norm() for name, grad in reference[2].items()}
    sizes = {name: grad.norm() for name, grad in reference[2].items()}
    together = (sum(x**2 for x in apart.values()) / sum(x**2 for x in sizes.values())).sqrt().item()
    worst = max((apart[name] / sizes[name]).item() for name in apart)
    return [loss, logits, together, worst]
