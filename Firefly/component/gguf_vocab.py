"""A tokenizer.json of Llama's kind (BPE with byte fallback) as llama.cpp's SentencePiece vocabulary.

The two tokenizers differ: tokenizer.json joins the pair that comes first in its list of merges, llama.cpp joins the two
neighbours whose joined token has the highest score, whatever pair the token was learned from. With the first merge's
rank as the score they agree where every way of splitting a token is a merge, as in the tokenizers that transformers
made from SentencePiece (MiniCPM's, Llama's). Whether they agree is checked with a copy of llama.cpp's method before
anything is written. llama.cpp's own converter gives every token the same score when only tokenizer.json is there.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError
from .prompt import encode_text
from .resolve import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "▁"
PROBES = [
    "你好，请介绍一下你自己。\n“学而时习之，不亦说乎”是什么意思？",
    "规格严格，功夫到家。  两个空格\t制表符\r\n1234567890 3.14% A-b_C==d，“引号”……【括号】",
    "The quick brown fox doesn't jump over 13 lazy dogs. def f(x): return x ** 2",
    "龘靐齉 😀 ｱｲｳ Ａ１ é ñ Привет 한국어",
    " 开头有空格，结尾有空格 ",
]


class Vocabulary(NamedTuple):
    """What GGUF stores of a tokenizer, in the order of ids."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Read tokenizer.json into ``rows`` tokens, the rows of the embedding.

    Raises:
        UserError: no tokenizer.json, another kind of tokenizer, or more tokens than rows.
    """
    raw = read_json(folder / "tokenizer.json")
    model = raw.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise UserError(f"{folder}/tokenizer.json：不是带字节回退的 BPE 分词器（MiniCPM、Llama 一类），不能写成 GGUF。")
    added = {token["id"]: token for token in raw.get("added_tokens", [])}
    tokens = {index: token for token, index in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    if len(tokens) > rows or max(tokens) >= rows:
        raise UserError(f"{folder}：分词器有 {max(tokens) + 1} 个 token，模型的嵌入只有 {rows} 行，请核对这个目录。")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    texts = [tokens.get(i, f"[PAD{i}]") for i in range(rows)]

    def type_of(index: int) -> int:
        if index not in tokens:
            return UNUSED
        if texts[index] == model.get("unk_token"):
            return UNKNOWN
        if re.fullmatch(r"<0x[0-9A-F]{2}>", texts[index]):
            return BYTE
        if index in added:
            return CONTROL if added[index]["special"] else USER_DEFINED
        return NORMAL

    scores = [-float(ranks[text]) if text in ranks else -1e6 for text in texts]
    return Vocabulary(texts, scores, [type_of(i) for i in range(rows)], _space_prefix(folder, raw))


def _space_prefix(folder: Path, raw: dict[str, Any]) -> bool:
    """True when a space is put before the text; UserError for normalisers that llama.cpp cannot follow."""
    normalizer = raw.get("normalizer") or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer] if normalizer else []
    replaced, prefix = False, False
    for step in steps:
        if step["type"] == "Prepend" and step["prepend"] in (SPACE, " "):
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            replaced = True
        else:
            raise UserError(f"{folder}/tokenizer.json：llama.cpp 没有与 {step['type']} 相同的规范化，不能写成 GGUF。")
    splitter = raw.get("pre_tokenizer") or {}
    if splitter.get("type") == "Metaspace":
        replaced, prefix = True, splitter.get("prepend_scheme", "always") != "never"
    if not replaced:
        raise UserError(
            f"{folder}/tokenizer.json：没有把空格换成 {SPACE}，不是 SentencePiece 一类的分词器，不能写成 GGUF。"
        )
    return prefix


def encode_as_llama_cpp(vocabulary: Vocabulary, text: str) -> list[int]:
    """Ids of ``text`` by llama.cpp's method (llama-vocab.cpp, llm_tokenizer_spm), special tokens parsed; slow."""
    index = {token: i for i, token in enumerate(vocabulary.tokens)}
    whole = [t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    pieces = (
        re.split("(" + "|".join(map(re.escape, sorted(whole, key=len, reverse=True))) + ")", text) if whole else [text]
    )
    ids = []
    for number, piece in enumerate(pieces):
        if number % 2:
            ids.append(index[piece])
        elif piece:  # a prefix goes before every stretch of text: they start the text or follow a special token
            symbols = list(((" " if vocabulary.space_prefix else "") + piece).replace(" ", SPACE))
            for symbol in _join(symbols, index, vocabulary.scores):
                found = index.get(symbol)
                ids += [found] if found is not None else [index[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


def _join(symbols: list[str], index: dict[str, int], scores: list[float]) -> list[str]:
    """Join the two neighbours with the highest score, the leftmost of equals, until none form a token."""
    while True:
        best, at = None, -1
        for i in range(len(symbols) - 1):
            token = index.get(symbols[i] + symbols[i + 1])
            if token is not None and (best is None or scores[token] > best):
                best, at = scores[token], i
        if best is None:
            return symbols
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def check_tokens(vocabulary: Vocabulary, tokenizer: Any, texts: list[str]) -> None:
    """Raise UserError when llama.cpp would cut a text into other tokens than the model was trained on.

    Compared are ``texts`` and the text of 300 tokens from all over the vocabulary.
    """
    plain = [t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == NORMAL]
    for text in texts + [token.replace(SPACE, " ") for token in plain[:: max(1, len(plain) // 300)]]:
        ours, theirs = encode_text(tokenizer, text), encode_as_llama_cpp(vocabulary, text)
        if ours != theirs:
            at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
            raise UserError(
                f"分词核对失败：{json.dumps(text[:40], ensure_ascii=False)} 从第 {at + 1} 个 token 起不同，"
                f"这里是 {tokenizer.convert_ids_to_tokens(ours[at : at + 5])}，"
                f"llama.cpp 会是 {[vocabulary.tokens[i] for i in theirs[at : at + 5]]}；"
                "这个分词器不能无损写成 GGUF，请改用 --format granite。"
            )
