"""Does the merged model answer as base + adapter did? Compared on the logits of greedy answers, with a bound for rounding."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .prompt import encode_text

PROMPTS = ["你好，请介绍一下你自己。", "用三句话说明为什么要保护水资源。", "把“学而时习之，不亦说乎”译成现代汉语。"]
ANSWER_TOKENS = 32
# The logits may differ by this share of the largest one, plus this many times what 16-bit rounding alone does to
# base + adapter (nothing in float32). Measured on random models with adapters up to their base's size:
# a right merge is 0.4 to 1.2 roundings away in float16 and bfloat16, and 1e-4 of the largest logit in float32.
SHARE, ROUNDINGS = 1e-3, 3.0


def greedy_answers(model: Any, tokenizer: Any) -> list[tuple[list[int], int]]:
    """For each sample prompt: ids of prompt + greedy answer, and the prompt's length."""
    from transformers import GenerationConfig

    own = model.generation_config  # generate() fills gaps from it, so sampling and penalties must go for a moment
    model.generation_config = GenerationConfig(
        max_new_tokens=ANSWER_TOKENS, eos_token_id=own.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    sequences = []
    for text in PROMPTS:
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = encode_text(tokenizer, text)
        inputs = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            out = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        sequences.append((out[0].tolist(), len(ids)))
    model.generation_config = own
    if hasattr(model, "get_base_model"):
        model.get_base_model().generation_config = own
    return sequences


def answer_logits(model: Any, sequences: list[tuple[list[int], int]]) -> torch.Tensor:
    """Logits (answer_tokens of all sequences, vocab_size), float32 on the CPU, that predict the answers' tokens."""
    model.eval()
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1].float().cpu()
            for ids, start in sequences
        ]
    return torch.cat(rows)


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Compute in float32 with the 16-bit weights as they are, each layer widened only while it works."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    hooks = []
    for module in model.modules():
        weights = [
            (p, p.dtype)
            for p in module.parameters(recurse=isinstance(module, BaseTunerLayer))
            if p.dtype in (torch.float16, torch.bfloat16)
        ]
        if weights:
            hooks.append(module.register_forward_pre_hook(lambda _module, _args, weights=weights: _widen(weights)))
            hooks.append(module.register_forward_hook(lambda _module, _args, _out, weights=weights: _narrow(weights)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widen(weights: list[tuple[torch.nn.Parameter, torch.dtype]]) -> None:
    for weight, _ in weights:
        weight.data = weight.data.float()


def _narrow(weights: list[tuple[torch.nn.Parameter, torch.dtype]]) -> None:
    for weight, dtype in weights:
        weight.data = weight.data.to(dtype)


def compare(before: torch.Tensor, exact: torch.Tensor, after: torch.Tensor, part: Path) -> dict[str, float]:
    """Print and return how far the merged model is from base + adapter; UserError when it is another model.

    All logits (answer_tokens, vocab_size): ``before`` of base + adapter, ``exact`` the same in float32, ``after`` of
    the merged model read back from ``part``.
    """
    if not (torch.isfinite(before).all() and torch.isfinite(exact).all()):
        raise UserError("核对失败：底座加适配器的输出里有 NaN 或 Inf，训练已发散，请换一个更早的 checkpoint。")
    if not torch.isfinite(after).all():
        raise UserError(
            f"核对失败：合并后的输出里有 NaN 或 Inf，请用 --dtype float32 或 bfloat16 重试；结果留在 {part}。"
        )
    difference, scale = (before - after).abs().max().item(), before.abs().max().item()
    equal = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
    bound = SHARE * scale + ROUNDINGS * (before - exact).abs().max().item()
    print(
        f"核对 {len(PROMPTS)} 个提示、{len(before)} 个词元：最大 logit 差 {difference:.3g}"
        f"（允许 {bound:.3g}，最大 logit {scale:.3g}），贪心词元相同 {equal:.1%}",
        file=sys.stderr,
    )
    if difference > bound:
        raise UserError(
            f"核对失败：最大 logit 差 {difference:.3g} 超过允许的 {bound:.3g}，请用 --dtype float32 重试；结果留在 {part}，没有改名。"
        )
    return {"max_logit_difference": difference, "largest_logit": scale, "equal_greedy_tokens": equal}
