"""What make_tiny_model.py learns from and how: reading a corpus, packing it into rows, a short pretraining."""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from Firefly.component.errors import UserError

TEXT_KEYS = ("text", "instruction", "input", "output", "target", "conversation", "messages")
_HIT_CONTENT = re.compile(r"<\|beginofutterance\|>[^\n]*\n(.*?)\n?<\|endofutterance\|>", re.DOTALL)
_SENTENCE_END = re.compile(r"[。！？；\n]")


def read_corpus(path: Path) -> Iterator[str]:
    """Yield the documents of a .txt (a line each), .jsonl or .json (a list of records) file, fields joined by newlines."""
    try:
        raw = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}：语料文件不存在，请检查 --corpus。") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}：不是 UTF-8 文本，请先转成 UTF-8。") from None
    if path.suffix == ".txt":
        yield from (line.strip() for line in raw.splitlines() if line.strip())
        return
    for record in _records(path, raw):
        parts = ["\n".join(_HIT_CONTENT.findall(text) or [text]).strip() for text in _strings(record)]
        if any(parts):
            yield "\n".join(part for part in parts if part)


def _records(path: Path, raw: str) -> Iterator[Any]:
    if path.suffix == ".json":
        try:
            records = json.loads(raw)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}：不是完整的 JSON（{error.msg}），请修正这个文件。") from None
        yield from records if isinstance(records, list) else [records]
        return
    for number, line in enumerate(raw.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}：这一行不是 JSON（{error.msg}），请修正或删除这一行。") from None


def _strings(value: Any) -> Iterator[str]:
    """Every text of a record: the known keys at the top, all strings inside conversations."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings({k: v for k, v in item.items() if k != "role"} if isinstance(item, dict) else item)
    elif isinstance(value, dict):
        known = [key for key in TEXT_KEYS if key in value] or list(value)
        for key in known:
            yield from _strings(value[key])


def pretrain(
    model: Any,
    tokenizer: Any,
    texts: list[str],
    steps: int,
    batch_size: int,
    seq_length: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Plain AdamW language-model training on packed rows (batch_size, seq_length); returns the last smoothed loss.

    The embedding, which is the output layer too, learns 6 times as fast as the layers: MiniCPM multiplies it by
    scale_emb on the way in and divides the logits on the way out. 120 steps of 4 x 128 ended at a loss of 4.8 so, at
    5.1 with one rate of 5e-3 for all and at 5.5 with 2e-3 (4 layers of 192, vocabulary 2,500).
    """
    import torch
    from tqdm import trange

    rows = pack(tokenizer, texts, seq_length)
    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings().weight
    layers = [weight for weight in model.parameters() if weight is not embedding and weight.dim() > 1]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": layers, "weight_decay": 0.1},
            {"params": norms, "weight_decay": 0.0},
            {"params": [embedding], "weight_decay": 0.0, "lr": 6 * learning_rate},
        ],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * step / steps))
    )
    model.train()
    order, smooth = [], None
    for step in (bar := trange(steps, desc="预训练", unit="步", disable=None)):
        while len(order) < batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        batch, order = rows[order[:batch_size]], order[batch_size:]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{smooth:.2f}")
    model.eval()
    print(f"预训练 {steps} 步，{len(rows)} 行 x {seq_length} 词元，损失 {smooth:.3f}", file=sys.stderr)
    return smooth


def pack(tokenizer: Any, texts: list[str], seq_length: int) -> Any:
    """All documents as one stream of ids cut into rows (rows, seq_length), int64.

    Every second document stands as a chat turn, its first sentence as the user's, so that the rows of the chat tokens
    are trained too: LoRA leaves embeddings as they are, and a stop token never seen before would be hard to reach.
    """
    import torch

    documents = []
    for index, text in enumerate(texts):
        cut = _SENTENCE_END.search(text)
        if index % 2 and cut and cut.end() < len(text):
            user, assistant = text[: cut.end()].strip(), text[cut.end() :].strip()
            text = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}<|im_end|>\n"
        documents.append("<s>" + text + "</s>")
    stream = [token for ids in tokenizer(documents, add_special_tokens=False)["input_ids"] for token in ids]
    while len(stream) < seq_length:  # a corpus shorter than one row repeats itself
        stream += stream
    count = len(stream) // seq_length
    return torch.tensor(stream[: count * seq_length]).view(count, seq_length)
