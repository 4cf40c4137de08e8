"""Training rows over tokens on disk: what is cut, what is left out and why, and what is held out."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .errors import UserError
from .prompt import Messages, check_one_prompt
from .records import first_conversations, list_files
from .tokens import Say, TokenStore, tokenize_once


class TokenDataset(torch.utils.data.Dataset):
    """Rows of a TokenStore: {"input_ids", "labels"}, (seq_len,) int32 arrays each, read from disk when asked for.

    lengths: (rows,) int32, tokens; target_counts: (rows,) int32, labels[1:] that are not -100; records: (rows,) int64,
    the record of the store that a row comes from; dropped: records left out, by reason; n_truncated: records cut.
    """

    def __init__(
        self,
        store: TokenStore,
        records: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        target_counts: np.ndarray,
        dropped: Counter | None = None,
        n_truncated: int = 0,
    ):
        self.store, self.records, self.starts = store, records, starts
        self.lengths, self.target_counts = lengths.astype(np.int32), target_counts.astype(np.int32)
        self.dropped, self.n_truncated = dropped or Counter(), n_truncated

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.store.read(self.starts[index], self.lengths[index])

    @property
    def category(self) -> list[str]:
        """The records' category field, one a row."""
        return [self.store.categories[number] for number in self.store.index["category"][self.records]]

    @property
    def n_records(self) -> int:
        return len(self)

    def count_tokens(self) -> tuple[int, int]:
        """Return (all tokens, target tokens)."""
        return int(self.lengths.sum(dtype=np.int64)), int(self.target_counts.sum(dtype=np.int64))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "TokenDataset":
        """Return some of the rows, over the same files; nothing in it counts as dropped."""
        indices = np.asarray(indices, np.int64)
        columns = (self.records, self.starts, self.lengths, self.target_counts)
        part = TokenDataset(self.store, *(column[indices] for column in columns))
        part.n_truncated = (
            int((self.store.index["length"][part.records] > part.lengths).sum()) if self.n_truncated else 0
        )
        return part

    def where(self, index: int) -> str:
        """Return "file:line" of a row."""
        return self.store.where(int(self.records[index]))

    def messages(self, index: int) -> Messages:
        """Read a row's conversation again from its file."""
        return self.store.messages(int(self.records[index]))


def cut_records(store: TokenStore, records: np.ndarray, max_seq_length: int, warn: Say = print) -> TokenDataset:
    """Rows of conversations: cut at ``max_seq_length`` tokens, without those that would then train on nothing.

    Raises:
        UserError: nothing is left.
    """
    starts, full, targets = (
        column[records] for column in (store.starts, store.index["length"], store.index["targets"])
    )
    lengths = np.minimum(full, max_seq_length)
    cut = np.flatnonzero(full > max_seq_length)
    for i in cut:
        targets[i] = (store.ids[starts[i] + 1 : starts[i] + lengths[i]] >= 0).sum()
    kept, lost = np.flatnonzero(targets > 0), records[targets == 0]
    if len(cut):
        warn(f"{len(cut)} / {len(records)} 条超过 max_seq_length={max_seq_length}，截去了末尾。")
    if len(lost):
        named = "、".join(map(store.where, lost[:5])) + (" 等" if len(lost) > 5 else "")
        warn(f"{len(lost)} 条截断后没有可训练的回答，已剔除：{named}。")
    if not len(kept):
        raise UserError(
            f"{store.where(records[0])} 等 {len(records)} 条都在截断后没有回答可训练，请调大 max_seq_length（现为 {max_seq_length}）。"
        )
    dropped = Counter(no_target_after_truncation=len(lost))
    return TokenDataset(
        store, *(column[kept] for column in (records, starts, lengths, targets)), dropped, n_truncated=len(cut)
    )


def split_documents(store: TokenStore, records: np.ndarray, max_seq_length: int, say: Say = print) -> TokenDataset:
    """Rows of documents: pieces of at most ``max_seq_length`` tokens, none lost.

    A piece starts with the last token of the one before, so every token of a document but its first is predicted
    once, whatever the length. A document without text has nothing to predict and is left out.

    Raises:
        UserError: nothing is left, or max_seq_length is below 2.
    """
    if max_seq_length < 2:
        raise UserError(f"max_seq_length={max_seq_length}：至少要 2，一个 token 预测不了下一个。")
    starts, full = store.starts[records], store.index["length"][records]
    stride = max_seq_length - 1
    pieces = -(-(full - 1) // stride)
    owner = np.repeat(np.arange(len(records)), pieces)
    before = (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * stride
    lengths = np.minimum(full[owner] - before, max_seq_length)
    if long := int((pieces > 1).sum()):
        say(
            f"{long} / {len(records)} 篇超过 max_seq_length={max_seq_length}，分成了 {pieces[pieces > 1].sum()} 段，没有丢弃。"
        )
    if empty := int((pieces == 0).sum()):
        say(f"{empty} 篇没有文字，已剔除，例如 {store.where(records[pieces == 0][0])}。")
    if not len(owner):
        raise UserError(f"{store.where(records[0])} 等 {len(records)} 篇都没有文字，请检查 text 字段。")
    return TokenDataset(store, records[owner], starts[owner] + before, lengths, lengths - 1, Counter(empty_text=empty))


def split_off(n_records: int, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``ratio`` of the records off at random, at least one; both parts are indices in the file's order."""
    n_eval = max(1, round(n_records * ratio))
    if n_eval >= n_records:
        raise UserError(
            f"eval_ratio={ratio}：共 {n_records} 条，分出 {n_eval} 条后没有剩下训练数据，请调小或补充数据。"
        )
    held_out = np.zeros(n_records, bool)
    held_out[np.random.default_rng(seed).choice(n_records, n_eval, replace=False)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load_datasets(
    custom: Any, seed: int, tokenizer: Any, say: Say, warn: Say
) -> tuple[TokenDataset, TokenDataset | None]:
    """Return the training rows and the held-out ones (eval_file, or a share of train_file), or None.

    custom: CustomizedArguments.

    Raises:
        UserError: bad data, or training and inference would see different prompts.
    """
    pretrain = custom.task_type == "pretrain"
    if not pretrain:
        compared = _prove_prompts(custom, tokenizer, first_conversations(custom.train_file, 24))
    read = functools.partial(
        tokenize_once, tokenizer=tokenizer, task=custom.task_type, mask_history=custom.mask_history,
        num_workers=custom.tokenize_num_workers, cache_dir=custom.token_cache_dir, say=say,
    )  # fmt: skip
    rows = functools.partial(split_documents, say=say) if pretrain else functools.partial(cut_records, warn=warn)
    store = read(list_files(custom.train_file, pretrain))
    if not pretrain:  # the most turns are the likeliest to differ
        several = np.argsort(-store.index["messages"], kind="stable")[:8]
        compared += _prove_prompts(custom, tokenizer, [store.messages(record) for record in several])
        say(f"训练与推理的提示逐 token 一致（核对了 {compared} 个回答）")
    train, held_out, eval_store = np.arange(len(store)), None, store
    if custom.eval_file:
        eval_store = read(list_files(custom.eval_file, pretrain))
        held_out = np.arange(len(eval_store))
    elif custom.eval_ratio:
        train, held_out = split_off(len(store), custom.eval_ratio, seed)
    return rows(store, train, custom.max_seq_length), (
        None if held_out is None else rows(eval_store, held_out, custom.max_seq_length)
    )


def _prove_prompts(custom: Any, tokenizer: Any, conversations: list[Messages]) -> int:
    try:
        return check_one_prompt(tokenizer, conversations)
    except ValueError as error:
        raise UserError(f"template_name={custom.template_name}：{error}。") from None
