"""Preference data for DPO: a prompt, the answer that people chose and the one that they rejected, as token ids."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch

from .dataset import split_off
from .errors import UserError
from .prompt import IGNORE_INDEX, Messages, check_one_prompt, encode_conversations, record_to_messages
from .records import read_chunks, records_of
from .utils import logger

CHUNK_RECORDS = 512


class Preference(NamedTuple):
    """``prompt`` ends with the user's message; ``chosen`` and ``rejected`` are one assistant message each."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    where: str


class PreferenceDataset(torch.utils.data.Dataset):
    """Rows {"prompt_ids", "chosen_ids", "rejected_ids"}, lists of token ids; an answer ends with its stop token.

    lengths: (rows,) int32, tokens of both texts together; target_counts: (rows,) int32, of both answers; dropped: records
    left out, by reason; n_truncated: records of which something was cut.
    """

    def __init__(self, rows: list[tuple[np.ndarray, ...]], dropped: Counter, n_truncated: int):
        self.rows, self.dropped, self.n_truncated = rows, dropped, n_truncated
        self.target_counts = np.array([len(c) + len(r) for _, c, r in rows], np.int32)
        self.lengths = self.target_counts + np.array([2 * len(p) for p, _, _ in rows], np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return {name: ids.tolist() for name, ids in zip(names, self.rows[index], strict=True)}

    @property
    def n_records(self) -> int:
        return len(self)

    def count_tokens(self) -> tuple[int, int]:
        """Return (all tokens, tokens of answers)."""
        return int(self.lengths.sum(dtype=np.int64)), int(self.target_counts.sum(dtype=np.int64))


def load_preferences(custom: Any, args: Any, tokenizer: Any) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    """Return the training pairs and the held-out ones (eval_file, or a share of train_file), or None.

    Raises:
        UserError: bad data, or training and inference would see different prompts.
    """
    train, held_out = read_preferences(custom.train_file), None
    if custom.eval_file:
        held_out = read_preferences(custom.eval_file)
    elif custom.eval_ratio:
        parts = split_off(len(train), custom.eval_ratio, args.seed)
        train, held_out = ([train[i] for i in part] for part in parts)
    several = [*train[:24], *sorted(train, key=lambda record: len(record.prompt))[-8:]]
    try:
        compared = check_one_prompt(tokenizer, [record.prompt + record.chosen for record in several])
    except ValueError as error:
        raise UserError(f"template_name={custom.template_name}：{error}。") from None
    logger.info(f"训练与推理的提示逐 token 一致（核对了 {compared} 个回答）")
    sets = [
        data and encode_preferences(data, tokenizer, custom.max_prompt_length, custom.max_seq_length)
        for data in (train, held_out)
    ]
    for name, data in zip(("训练集", "评测集"), sets, strict=True):
        if data:
            logger.info("{} {} 对，{} 个 token，其中回答 {} 个".format(name, len(data), *data.count_tokens()))
    return sets[0], sets[1]


def read_preferences(path: str) -> list[Preference]:
    """Read JSONL of {"prompt", "chosen", "rejected"} (docs/FORMATS.md).

    Raises:
        UserError: names file:line and what is wrong with the first line that can't be used.
    """
    found = []
    for chunk in read_chunks([path]):
        for _, where, record in records_of(chunk):
            try:
                found.append(Preference(*_messages_of(record), where))
            except ValueError as error:
                raise UserError(f"{where}: {error}。") from None
    if not found:
        raise UserError(f"{path}: 文件里没有一条记录；DPO 数据每行应有 prompt、chosen、rejected。")
    return found


def _messages_of(record: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    if missing := [name for name in ("prompt", "chosen", "rejected") if not record.get(name)]:
        raise ValueError(f"缺少 {'、'.join(missing)}；DPO 数据每行应有 prompt、chosen、rejected，都不能为空")
    prompt = record["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
        if record.get("system"):
            prompt.insert(0, {"role": "system", "content": record["system"]})
    prompt = record_to_messages({"messages": prompt})
    if prompt[-1]["role"] != "user":
        raise ValueError("prompt 的最后一条应是 user 的消息")
    return prompt, *(_answer(record[name], prompt, name) for name in ("chosen", "rejected"))


def _answer(value: Any, prompt: Messages, name: str) -> Messages:
    """One assistant message; a list that repeats the prompt before it, as some data sets do, is taken too."""
    messages = record_to_messages(
        {"messages": [{"role": "assistant", "content": value}] if isinstance(value, str) else value}
    )
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if [message["role"] for message in messages] != ["assistant"]:
        raise ValueError(f"{name} 应是一条 assistant 的消息 [{{role, content}}]（前面可以重复 prompt）")
    return messages


def encode_preferences(
    data: list[Preference], tokenizer: Any, max_prompt_length: int, max_seq_length: int
) -> PreferenceDataset:
    """Tokenise; a prompt keeps its last ``max_prompt_length`` tokens, and prompt and answer ``max_seq_length`` in all.

    A pair whose answers do not differ within that length teaches nothing and is left out.

    Raises:
        UserError: nothing is left, or a record can't be rendered (names file:line).
    """
    rows, lost, n_truncated, n_prompts = [], [], 0, 0
    for start in range(0, len(data), CHUNK_RECORDS):
        part = data[start : start + CHUNK_RECORDS]
        for record, (prompt, chosen, rejected) in zip(part, _encode_chunk(part, tokenizer), strict=True):
            kept = prompt[-max_prompt_length:]
            room = max(0, max_seq_length - len(kept))
            n_prompts += len(kept) < len(prompt)
            n_truncated += len(kept) < len(prompt) or room < max(len(chosen), len(rejected))
            row = (kept, chosen[:room], rejected[:room])
            if np.array_equal(*row[1:]):
                lost.append(record.where)
            else:
                rows.append(row)
    if n_truncated:
        logger.warning(
            f"{n_truncated} / {len(data)} 对被截断：其中 {n_prompts} 对的提示超过 max_prompt_length={max_prompt_length}"
            f"（截去开头），其余的回答超过 max_seq_length={max_seq_length}（截去末尾）。"
        )
    if lost:
        named = "、".join(lost[:5]) + (" 等" if len(lost) > 5 else "")
        logger.warning(f"{len(lost)} 对的两个回答在截断后没有差别，已剔除：{named}。")
    if not rows:
        raise UserError(
            f"{data[0].where} 等 {len(data)} 对的两个回答都没有差别，或都被截断到没有差别；"
            f"请检查数据，或调大 max_seq_length（现为 {max_seq_length}）。"
        )
    return PreferenceDataset(rows, Counter(answers_do_not_differ=len(lost)), n_truncated)


def _encode_chunk(part: list[Preference], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (prompt, chosen, rejected) ids of each record; the prompt is what inference sends, see check_one_prompt."""
    try:
        pairs = encode_conversations(tokenizer, [r.prompt + answer for r in part for answer in r[1:3]], last_only=True)
    except Exception as error:  # one by one, to find which
        if len(part) == 1:
            raise UserError(f"{part[0].where}: 对话模板无法渲染这条记录：{error}。") from None
        return [row for record in part for row in _encode_chunk([record], tokenizer)]
    rows = []
    for record, chosen, rejected in zip(part, pairs[::2], pairs[1::2], strict=True):
        (prompt, good), (other, bad) = _split(*chosen), _split(*rejected)
        if not np.array_equal(prompt, other):
            raise UserError(f"{record.where}: 两个回答之前的提示不同，对话模板改写了提示；请换 template_name。")
        rows.append((prompt, good, bad))
    return rows


def _split(ids: list[int], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Part a text into prompt and answer; what a template puts after the stop token belongs to neither."""
    targets = np.flatnonzero(np.array(labels) != IGNORE_INDEX)
    first, last = (targets[0], targets[-1] + 1) if len(targets) else (len(ids), len(ids))
    return np.array(ids[:first], np.int32), np.array(ids[first:last], np.int32)
