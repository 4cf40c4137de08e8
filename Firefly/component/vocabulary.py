"""Tokens added to a vocabulary: on the tokenizer, in the embeddings, and again where an adapter is put on its base.

With LoRA only the new tokens' rows are trained (PEFT's ``trainable_token_indices``) and only they are saved, so an
adapter stays small; full training trains every row.
"""

import contextlib
import functools
import warnings
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .resolve import read_json
from .utils import logger

# PEFT looks for tied modules to train whole; ours are trained by the row, in both
warnings.filterwarnings("ignore", message="You have requested `ensure_weight_tying`, but no tied modules are added")


def add_tokens(tokenizer: Any, tokens: list[str]) -> list[int]:
    """Add ``tokens`` to the tokenizer in place, each matched in raw text, and return their ids.

    Raises:
        UserError: no list; a token that is empty, stands there twice, or is one token of the vocabulary already.
    """
    if not isinstance(tokens, list):
        raise UserError(f'add_tokens={tokens!r}：应是字符串列表，例如 ["<|think|>"]，请改正。')
    if not tokens:
        return []
    known = tokenizer.get_vocab()
    for token in tokens:
        if not isinstance(token, str) or not token.strip() or tokens.count(token) > 1:
            raise UserError(f"add_tokens={tokens!r}：应是互不相同、不为空的字符串列表，问题出在 {token!r}，请改正。")
        if token in known:
            raise UserError(f"add_tokens：{token!r} 已在词表里（编号 {known[token]}），请从 add_tokens 里删去它。")
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return tokenizer.convert_tokens_to_ids(tokens)


def grow_embeddings(model: torch.nn.Module, token_ids: list[int]) -> None:
    """Give each new token a row, in both embeddings where they are two, that starts at the mean of the old rows.

    Rows that the base keeps in reserve are used first; the matrices grow only beyond them.
    """
    old = min(token_ids)
    embedding = model.get_input_embeddings()
    if max(token_ids) >= embedding.num_embeddings:
        model.resize_token_embeddings(max(token_ids) + 1, mean_resizing=False)
        embedding = model.get_input_embeddings()
    weights = [embedding.weight]
    if (head := model.get_output_embeddings()) is not None and head.weight is not embedding.weight:
        weights.append(head.weight)
    with torch.no_grad(), _whole(weights):
        for weight in weights:
            if weight.numel():
                weight[token_ids] = weight[:old].float().mean(0).to(weight.dtype)


def trainable_rows(model: torch.nn.Module, token_ids: list[int]) -> dict[str, Any]:
    """What LoraConfig needs to train just these rows; an output embedding of its own has its rows trained too."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embedding.weight:
        return {"trainable_token_indices": token_ids, "ensure_weight_tying": head is not None}
    names = {id(module): name for name, module in model.named_modules()}
    return {"trainable_token_indices": {names[id(module)]: token_ids for module in (embedding, head)}}


def save_new_rows_only(model: Any) -> None:
    """Keep PEFT from saving the whole embeddings because they grew: the new rows are in the adapter already."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)


def fit_vocabulary(model: torch.nn.Module, adapter: str | Path) -> None:
    """Make room in a base for the tokens that an adapter trained, before the adapter is put on it. Else do nothing."""
    rows = adapter_rows(adapter)
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)


def adapter_rows(adapter: str | Path) -> int:
    """Rows of the embedding that the adapter's trained tokens need; 0 when it trained none."""
    indices = read_json(Path(adapter) / "adapter_config.json").get("trainable_token_indices") or []
    return max(
        (i + 1 for part in (indices.values() if isinstance(indices, dict) else [indices]) for i in part), default=0
    )


def tokenizer_folder(model_name_or_path: str, adapter: str | None) -> str:
    """Where the tokenizer of a run lies: with the adapter of stage 1 if that added tokens, else with the base."""
    if adapter and (Path(adapter) / "tokenizer_config.json").exists() and adapter_rows(adapter):
        logger.info(f"适配器 {adapter} 添加过 token，用它带的分词器。")
        return adapter
    return model_name_or_path


def _whole(weights: list[torch.Tensor]) -> contextlib.AbstractContextManager:
    """Under ZeRO-3 a process holds a part of each weight: gather them, change them on rank 0, share them again."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
