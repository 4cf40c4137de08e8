"""Read conversation files and turn them into token ids and labels, with every record accounted for."""

import json
import multiprocessing
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .errors import UserError
from .prompt import IGNORE_INDEX, Messages, encode_conversations, record_to_messages

CHUNK_RECORDS = 512
PARALLEL_FROM = 20_000  # below this many records, starting processes costs more than it saves


@dataclass
class Conversations:
    """What a file holds. ``where`` names each record's place, file:line, for messages."""

    messages: list[Messages] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    category: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.messages)


class TokenDataset(torch.utils.data.Dataset):
    """input_ids and labels, (seq_len,) int32 arrays each; ``dropped`` counts the records left out, by reason."""

    def __init__(
        self, rows: list[tuple[np.ndarray, np.ndarray]], category: list[str], dropped: Counter, n_truncated: int
    ):
        self.rows, self.category, self.dropped, self.n_truncated = rows, category, dropped, n_truncated

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        input_ids, labels = self.rows[index]
        return {"input_ids": input_ids, "labels": labels}

    def count_tokens(self) -> tuple[int, int]:
        """Return (all tokens, target tokens)."""
        targets = sum(int((labels[1:] != IGNORE_INDEX).sum()) for _, labels in self.rows)
        return sum(len(ids) for ids, _ in self.rows), targets


def read_conversations(path: str) -> Conversations:
    """Read conversation JSONL (or lines with OpenAI ``messages``).

    Raises:
        UserError: names file:line and what is wrong with the first line that can't be used.
    """
    result = Conversations()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise UserError(f"{where}: 不是 UTF-8 文本（可能是 GBK 或二进制文件），请先转成 UTF-8。") from None
            except json.JSONDecodeError as error:
                hint = (
                    "文件像是 JSON 数组，请转成一行一条的 JSONL"
                    if line.lstrip().startswith(b"[")
                    else "请删去或改正这一行"
                )
                raise UserError(f"{where}: 不是合法的 JSON（{error.msg}，第 {error.colno} 列），{hint}。") from None
            if not isinstance(record, dict):
                raise UserError(f"{where}: 每行应是一个 JSON 对象，实际是 {type(record).__name__}。")
            try:
                messages = record_to_messages(record)
            except ValueError as error:
                raise UserError(f"{where}: {error}。") from None
            result.messages.append(messages)
            result.where.append(where)
            result.category.append(str(record.get("category") or "General"))
    if not result.messages:
        raise UserError(f"{path}: 文件里没有一条记录，请检查上一步（chatml2conversation.py）的输出。")
    return result


def split_off(data: Conversations, ratio: float, seed: int) -> tuple[Conversations, Conversations]:
    """Split ``ratio`` of the records off at random, at least one; both parts keep the file's order."""
    n_eval = max(1, round(len(data) * ratio))
    if n_eval >= len(data):
        raise UserError(
            f"eval_ratio={ratio}：共 {len(data)} 条，分出 {n_eval} 条后没有剩下训练数据，请调小或补充数据。"
        )
    chosen = set(np.random.default_rng(seed).choice(len(data), n_eval, replace=False).tolist())

    def pick(keep: bool) -> Conversations:
        index = [i for i in range(len(data)) if (i in chosen) == keep]
        return Conversations(*[[column[i] for i in index] for column in (data.messages, data.where, data.category)])

    return pick(False), pick(True)


def tokenize(
    data: Conversations, tokenizer: Any, max_seq_length: int, num_workers: int = 1, say: Any = None
) -> TokenDataset:
    """Tokenise, cut at ``max_seq_length`` tokens, and leave out records that would train on nothing.

    Raises:
        UserError: when nothing is left, or a record can't be rendered (names file:line).
    """
    say = say or (lambda text: print(text, file=sys.stderr))
    rows, category, lost, n_truncated = [], [], [], 0
    for where, kind, (ids, labels) in zip(
        data.where, data.category, _encode_all(data, tokenizer, num_workers), strict=True
    ):
        n_truncated += len(ids) > max_seq_length
        ids, labels = ids[:max_seq_length], labels[:max_seq_length]
        if (labels[1:] != IGNORE_INDEX).any():
            rows.append((ids, labels))
            category.append(kind)
        else:
            lost.append(where)
    if n_truncated:
        say(f"{n_truncated} / {len(data)} 条超过 max_seq_length={max_seq_length}，截去了末尾。")
    if lost:
        say(f"{len(lost)} 条截断后没有可训练的回答，已剔除：{'、'.join(lost[:5])}{' 等' if len(lost) > 5 else ''}。")
    if not rows:
        raise UserError(
            f"{data.where[0]} 等 {len(data)} 条都在截断后没有回答可训练，请调大 max_seq_length（现为 {max_seq_length}）。"
        )
    return TokenDataset(rows, category, Counter(no_target_after_truncation=len(lost)), n_truncated)


def _encode_all(data: Conversations, tokenizer: Any, num_workers: int):
    """Yield (input_ids, labels) int32 arrays in order; processes are forked for large files where fork exists."""
    from tqdm import tqdm

    starts = range(0, len(data), CHUNK_RECORDS)
    chunks = ((data.messages[s : s + CHUNK_RECORDS], data.where[s : s + CHUNK_RECORDS], tokenizer) for s in starts)
    workers = min(num_workers, os.cpu_count() or 1)
    with tqdm(total=len(data), desc="分词", unit="条", disable=None) as bar:
        if len(data) < PARALLEL_FROM or workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
            for chunk in chunks:
                yield from _encode_chunk(chunk)
                bar.update(len(chunk[0]))
            return
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for encoded in pool.imap(_encode_chunk, chunks):
                yield from encoded
                bar.update(len(encoded))


def _encode_chunk(chunk: tuple[list[Messages], list[str], Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    conversations, where, tokenizer = chunk
    try:
        encoded = encode_conversations(tokenizer, conversations)
    except Exception:
        encoded = [
            _encode_one(tokenizer, messages, place) for messages, place in zip(conversations, where, strict=True)
        ]
    return [(np.asarray(ids, np.int32), np.asarray(labels, np.int32)) for ids, labels in encoded]


def _encode_one(tokenizer: Any, messages: Messages, where: str) -> tuple[list[int], list[int]]:
    """Encode one record of a chunk that failed, to find which one and say why."""
    import jinja2

    try:
        return encode_conversations(tokenizer, [messages])[0]
    except (ValueError, jinja2.TemplateError) as error:
        raise UserError(f"{where}: 对话模板无法渲染这条记录：{error}。") from None
