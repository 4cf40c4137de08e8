"""How many tokens the chosen records have, so that max_seq_length can be chosen.

check_tokenizer(path) -> None                                    UserError when it can't be used
load_tokenizer(path) -> count                                    count(texts) -> tokens of each, none added
count_tokens(conversations, count) -> (n,) int64                 in the ChatML template
token_lengths(table, rows, rules, path, seed) -> str             HTML
"""

import random
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import orjson

from .chatml import ROLE_TO_NAME, parse_chatml
from .emit import render, rows_at
from .errors import UserError
from .report_page import Series, histogram, log_edges, number, percent
from .report_page import table as html_table
from .scan import Rules
from .table import Table

SAMPLE = 5000  # records
LIMITS = (256, 512, 1024, 2048, 4096)
WHOLE = 0.99  # share of the records that the recommended max_seq_length leaves whole
_PERCENTILES = (50, 90, 95, 99, 100)
_FOLDERS = ("models/", "data/", "output/", "work/", "./", "../", "~/")
_CHUNK = 256  # records encoded at a time: an encoding takes some 100 bytes a token

Count = Callable[[list[str]], list[int]]
Messages = list[dict[str, str]]


def check_tokenizer(path: str) -> None:
    load_tokenizer(path)


def load_tokenizer(path: str) -> Count:
    """path: a tokenizer.json, a folder, or a name on the hub. Its own code is never run."""
    if not Path(path).exists() and (path.count("/") != 1 or path.startswith(_FOLDERS)):  # no name on a hub
        raise UserError(f"--tokenizer {path}：没有这个目录；请检查路径，或先用 python data/download.py --model 下载。")
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        count = _count_by_file(file) if file.is_file() else _count_by_transformers(path)
        works = count(["规格严格，功夫到家。"])[0] > 0
    except Exception as error:  # tokenizers raises Exception itself, transformers a dozen kinds
        why = str(error).strip().split("\n")[0][:100]
        if Path(path).exists():
            raise UserError(
                f"--tokenizer {path}：读不出分词器（{why}）；请给出含 tokenizer.json 的模型目录。"
            ) from None
        raise UserError(f"--tokenizer {path}：本机没有这个目录，从 Hugging Face 也没取到；请检查路径和网络。") from None
    if not works:  # transformers makes an empty tokenizer of a folder that has only its settings
        raise UserError(f"--tokenizer {path}：里面没有词表；请把 tokenizer.json 或 tokenizer.model 也下载到这个目录。")
    return count


def _count_by_file(file: Path) -> Count:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # the file may have been saved with either
    tokenizer.no_padding()
    return lambda texts: [len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _count_by_transformers(path: str) -> Count:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def count_tokens(conversations: list[Messages], count: Count) -> np.ndarray:
    """Tokens of the contents, and of what the template puts around each message."""
    around = dict(zip(ROLE_TO_NAME, count([f"<|im_start|>{role}\n" for role in ROLE_TO_NAME]), strict=True))
    (end,) = count(["<|im_end|>\n"])
    owner = [i for i, messages in enumerate(conversations) for _ in messages]
    template = [around[message["role"]] + end for messages in conversations for message in messages]
    contents = count([message["content"] for messages in conversations for message in messages])
    return np.bincount(owner, np.add(template, contents), len(conversations)).astype(np.int64)


def token_lengths(table: Table, rows: np.ndarray, rules: Rules, path: str, seed: int) -> str:
    """rows: (m,) int64, those trained on."""
    count = load_tokenizer(path)
    some = sorted(random.Random(seed).sample(range(len(rows)), min(SAMPLE, len(rows))))
    if not some:
        return "<p>没有训练用的记录。</p>"
    tokens = []
    for start in range(0, len(some), _CHUNK):
        lines = render(rows_at(table, rows[some[start : start + _CHUNK]], rules))
        tokens.append(count_tokens([parse_chatml(orjson.loads(line)["text"]) for line in lines], count))
    what = f"随机抽取的 {number(len(some))} 条" if len(some) < len(rows) else f"全部 {number(len(some))} 条"
    text = f"训练用记录共 {number(len(rows))} 条，统计了{what}；分词器：{path}。"
    text += "按 ChatML 模板计算（每条消息另加角色与结尾标记），与训练时的模板可能差几个 token。"
    if count(["<|im_start|>"]) != [1]:
        text += "这个分词器里没有 <|im_start|>，模型用的多半是别的模板，实际会略短。"
    return f'<p class="soft">{escape(text)}</p>\n' + _show(np.concatenate(tokens))


def _show(tokens: np.ndarray) -> str:
    best = next((limit for limit in LIMITS if (tokens <= limit).mean() >= WHOLE), None)
    longest = np.percentile(tokens, 100 * WHOLE, method="inverted_cdf")
    advice = (
        f"建议 max_seq_length = {best}：这是让至少 {WHOLE:.0%} 的记录保持完整的最小一档。"
        if best
        else f"到 {LIMITS[-1]} 仍有 {percent(float((tokens > LIMITS[-1]).mean()))} 的记录被截断；"
        f"要保住 {WHOLE:.0%}，max_seq_length 至少 {number(int(longest))}，或先去掉过长的记录。"
    )
    ranks = np.percentile(tokens, _PERCENTILES, method="inverted_cdf").astype(int).tolist()
    names = ["中位数", *(f"{rank}%" for rank in _PERCENTILES[1:-1]), "最长"]
    cuts = []
    for limit in LIMITS:
        lost = np.maximum(tokens - limit, 0).sum() / max(1, tokens.sum())
        over = tokens > limit
        cuts.append([str(limit), int(over.sum()), percent(float(over.mean())), percent(float(lost))])
    edges = log_edges(int(tokens.max()))
    series = [Series("训练", "main", np.histogram(tokens, edges)[0] / len(tokens))]
    return (
        f'<p class="note">{advice}</p>\n'
        f'<div class="charts"><figure>{histogram("token 数", edges, series, [best] if best else [], "token")}'
        f"<figcaption>每条记录的 token 数（对数）{'；虚线是建议值' if best else ''}</figcaption></figure>\n"
        f"<div>{html_table(('百分位', 'token 数'), zip(names, ranks, strict=True))}</div></div>\n"
        + html_table(
            ("max_seq_length", "被截断的记录", "占比", "丢失的 token"),
            cuts,
            ["best" if limit == best else "" for limit in LIMITS],
        )
    )
