"""A few fixed questions answered at every evaluation, kept in eval_samples.md (to read) and .jsonl (to go on from)."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from .errors import UserError
from .inference import build_messages, read_lines
from .prompt import IGNORE_INDEX, encode_prompt
from .utils import logger

N_QUESTIONS = 3  # of the held-out records, when the user gives none
MAX_QUESTIONS = 8
MAX_NEW_TOKENS = 128
MAX_SECONDS = 60.0
CONTINUE_FROM = 32  # tokens of a document to go on from: pretraining has no questions


@dataclass(frozen=True)
class Question:
    """``prompt``: token ids, just as inference sends them; ``reference`` may be empty."""

    source: str
    prompt: tuple[int, ...]
    text: str
    reference: str


def questions_of_rows(data: Any, tokenizer: Any, stop_ids: Sequence[int], count: int = N_QUESTIONS) -> list[Question]:
    """Take the first held-out row of each source, then the next rows: the prompt is what stands before its targets."""
    sources = list(getattr(data, "category", None) or [""] * len(data))
    firsts = list(dict.fromkeys(sources.index(name) for name in dict.fromkeys(sources)))
    chosen = [*firsts, *(i for i in range(min(len(data), count)) if i not in firsts)][:count]
    found = []
    for i in chosen:
        prompt, answer = _split(data[i])
        while answer and answer[-1] in stop_ids:
            answer.pop()
        found.append(Question(sources[i], tuple(prompt), tokenizer.decode(prompt), tokenizer.decode(answer)))
    return found


def _split(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Part a row into the prompt and the first answer; DPO's rows are parted already, a document goes on half-way."""
    if "prompt_ids" in row:
        return list(row["prompt_ids"]), list(row["chosen_ids"])
    ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
    start = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), len(ids))
    if start < 2:
        start = min(CONTINUE_FROM, max(1, len(ids) // 2))
    end = next((i for i in range(start, len(ids)) if labels[i] == IGNORE_INDEX), len(ids))
    return ids[:start], ids[start:end]


def questions_of_file(path: str, tokenizer: Any) -> list[Question]:
    """Read questions as the inference scripts do: {"prompt"}, {"messages"} or a conversation, whose answer is shown.

    Raises:
        UserError: no file, no question in it, or a line that is none (file:line).
    """
    found = []
    for where, fields in read_lines(path, f"eval_questions={path}：找不到这个文件，请检查路径。"):
        messages, had_reference = build_messages(fields, None, where)
        reference = _last_answer(fields) if had_reference else str(fields.get("reference") or "")
        ids = tuple(encode_prompt(tokenizer, messages))
        found.append(Question(str(fields.get("category") or ""), ids, tokenizer.decode(ids), reference))
    if not found:
        raise UserError(f'eval_questions={path}：文件里没有问题，每行应是 {{"prompt": "..."}} 或一条对话记录。')
    if len(found) > MAX_QUESTIONS:
        logger.warning(f"eval_questions={path}：有 {len(found)} 个问题，评测时只回答前 {MAX_QUESTIONS} 个。")
    return found[:MAX_QUESTIONS]


def _last_answer(fields: dict[str, Any]) -> str:
    return str(fields["messages"][-1]["content"] if "messages" in fields else fields["conversation"][-1]["assistant"])


@torch.no_grad()  # not inference_mode: what modules keep from here is used in training again
def answer_all(
    model: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], pad_id: int, half: torch.dtype | None = None
) -> list[list[int]]:
    """Answer the prompts greedily in one batch, padded on the left; no random number is drawn.

    Args:
        model: the trained one, adapter and all. It is left in the mode it was in.
        half: precision of autocast; None for none.

    Returns:
        New token ids of each, with the stop token if one came within the limits of tokens and seconds.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    device, width = base.get_input_embeddings().weight.device, max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        do_sample=False, repetition_penalty=1.0, max_new_tokens=MAX_NEW_TOKENS, max_time=MAX_SECONDS, use_cache=True,
        eos_token_id=list(stop_ids) or None, pad_token_id=pad_id,
    )  # fmt: skip
    was_training, own_config = model.training, base.generation_config
    model.eval()
    base.generation_config = GenerationConfig()  # else its sampling settings come in beside ours
    precision = torch.autocast(device.type, half) if half else contextlib.nullcontext()
    try:
        with precision:
            new = base.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    finally:
        base.generation_config = own_config
        model.train(was_training)
    return [_until_stop(answer, stop_ids) for answer in new]


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return ids[: ends[0] + 1] if ends else ids


class Samples(TrainerCallback):
    """Asks the questions after each evaluation. Under ZeRO-3 every process takes part, for each holds only a part of
    the weights; otherwise the first process answers alone.
    """

    def __init__(self, questions: list[Question], tokenizer: Any, stop_ids: Sequence[int], names: dict[str, str]):
        """names: what to call the source of each ``eval_loss_KEY``."""
        self.questions, self.tokenizer, self.stop_ids, self.names = questions, tokenizer, stop_ids, names
        self.entries: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fsdp and self.questions:
            self.questions = []
            logger.warning("FSDP 下评测时不回答问题（权重分散在各进程），只算评测损失。")
        path = Path(args.output_dir) / "eval_samples.jsonl"
        if state.global_step and path.exists():  # resumed: what came after the checkpoint will come again
            entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self.entries = [entry for entry in entries if entry["step"] <= state.global_step]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: dict | None = None, **kwargs: Any
    ) -> None:
        if not self.questions or not (state.is_world_process_zero or is_deepspeed_zero3_enabled()):
            return
        half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        pad_id = self.tokenizer.pad_token_id
        pad_id = pad_id if pad_id is not None else next(iter(self.stop_ids), 0)
        started = time.monotonic()
        try:
            new = answer_all(model, [q.prompt for q in self.questions], self.stop_ids, pad_id, half)
        except torch.OutOfMemoryError:
            self.questions = []
            torch.cuda.empty_cache()
            logger.warning("显存不够，评测时不再回答问题；训练和评测损失不受影响。")
            return
        if not state.is_world_process_zero:
            return
        metrics = metrics or {}
        losses = {key: value for key, value in metrics.items() if key.startswith("eval_loss")}
        if "eval_target_tokens" in metrics:  # else it is a loss of another kind, DPO's
            losses["perplexity"] = math.exp(min(metrics["eval_loss"], 99.0))
        answers = [
            {
                "prompt": q.text,
                "answer": self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                "stopped": bool(ids) and ids[-1] in self.stop_ids,
            }
            for q, ids in zip(self.questions, new, strict=True)
        ]
        self.entries = [entry for entry in self.entries if entry["step"] != state.global_step]
        self.entries.append(
            {"step": state.global_step, "epoch": round(state.epoch or 0, 4), **losses, "answers": answers}
        )
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries]
        _write(Path(args.output_dir) / "eval_samples.jsonl", "".join(lines))
        _write(Path(args.output_dir) / "eval_samples.md", render(self.questions, self.entries, self.names))
        logger.info(f"回答了 {len(answers)} 个问题，{time.monotonic() - started:.1f} 秒，见 eval_samples.md")


def _write(path: Path, text: str) -> None:
    part = Path(f"{path}.part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(part, path)


def render(questions: list[Question], entries: list[dict[str, Any]], names: dict[str, str]) -> str:
    """Return the Markdown: a table of losses, then for each question its answers in the order of the steps."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry if key.startswith("eval_loss_")))
    heads = ["步", "轮", "评测损失", "困惑度", *(_cell(names.get(key.removeprefix("eval_loss_"), key)) for key in keys)]
    lines = [
        "# 训练中的回答",
        "",
        f"每次评测时用贪心解码回答同样的问题，最多 {MAX_NEW_TOKENS} 个 token。",
        "",
        "## 损失",
        "",
    ]
    lines += [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    for entry in entries:
        figures = (entry.get(key) for key in ("eval_loss", "perplexity", *keys))
        shown = ("" if figure is None else f"{figure:.4g}" for figure in figures)
        lines.append(f"| {entry['step']} | {entry['epoch']:.2f} | {' | '.join(shown)} |")
    for number, question in enumerate(questions, 1):
        source = f"（{question.source}）" if question.source else ""
        lines += ["", f"## 问题 {number}{source}", "", _fence(question.text)]
        if question.reference:
            lines += ["", "**参考回答**", "", _fence(question.reference)]
        for entry in entries:
            answer = next((a for a in entry["answers"] if a["prompt"] == question.text), None)
            if answer:
                cut = "" if answer["stopped"] else "（到长度上限为止，没有停）"
                lines += ["", f"**第 {entry['step']} 步**{cut}", "", _fence(answer["answer"])]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fence(text: str) -> str:
    """A code block around text that may hold one itself."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}text\n{text}\n{ticks}"
