"""Generated answers measured: BLEU-4 and ROUGE on jieba's words, and whether they end, repeat, are empty, change language.

BLEU is sacrebleu's, over the corpus (exponential smoothing); ROUGE is Google's rouge_score, F of each answer, then the
mean. Both get words that are cut here, since their own tokenizers know no Chinese: rouge_score's drops all of it.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from . import bootstrap
from .binomial import compare
from .errors import UserError

TOKENIZATION = (
    "文本先做 NFKC 归一并转小写，用 rjieba（关闭 HMM，与 jieba 的 HMM=False 相同）分词，空白不算词，标点算词；"
    "BLEU-4 为 sacrebleu 的语料级 BLEU（tokenize=none，exp 平滑），ROUGE 为 rouge_score 的 F 值逐条平均；都是 0 到 100"
)
ROUGES = ("rouge1", "rouge2", "rougeL")
COMPARED = ("bleu4", *ROUGES, "ends_by_itself")
LOOP_PERIOD = 100  # characters; a longer unit that repeats is rather a list than a loop
_LOOP_TIMES, _LOOP_LENGTH = 3, 20
_WORD = re.compile(r"[^\W\d_]")


def check_libraries() -> None:
    """Raise UserError before any model is loaded when a library is missing."""
    import importlib.util

    missing = [name for name in ("rjieba", "sacrebleu", "rouge_score") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--generate 要算 BLEU 和 ROUGE，缺少 {'、'.join(missing)}：请先运行 pip install -r requirements.txt。"
        )


def words(text: str) -> list[str]:
    """jieba's words of a text, punctuation among them; see ``TOKENIZATION``."""
    import rjieba

    cut = rjieba.cut(unicodedata.normalize("NFKC", text).lower(), hmm=False)
    return [part for word in cut for part in word.split()]


class _Words:
    """rouge_score's interface of a tokenizer, for text whose words are already apart."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return text.split()


def make_scorer() -> Callable[[str, str], dict]:
    """Return a function of (reference, answer) giving ROUGE F values from 0 to 100, and the counts that BLEU is made of."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    rouge = RougeScorer(list(ROUGES), tokenizer=_Words())
    bleu = BLEU(tokenize="none", effective_order=True, force=True)

    def score(reference: str, answer: str) -> dict:
        wanted, given = " ".join(words(reference)), " ".join(words(answer))
        counted = bleu.sentence_score(given, [wanted])
        found = {name: 100 * float(part.fmeasure) for name, part in rouge.score(wanted, given).items()}
        return found | {"bleu_counts": [*counted.counts, *counted.totals, counted.sys_len, counted.ref_len]}

    return score


def bleu_of(counts: Sequence[float]) -> float:
    """BLEU-4 of summed ``bleu_counts``: 4 of matches, 4 of n-grams, the answers' and the references' length."""
    from sacrebleu.metrics import BLEU

    whole = [round(x) for x in counts]
    if not all(whole[4:8]):  # no answer has four words
        return 0.0
    return BLEU.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score


def traits(question: str, answer: str) -> dict:
    """What can be seen of an answer without a reference. Lengths are in characters."""
    text = answer.strip()
    loop, unit = longest_loop(text)
    return {
        "characters": len(text),
        "empty": not text,
        "repeated_4grams": repeated_share(words(text)),
        "longest_loop": loop,
        "loop_unit": unit,
        "loops": loop >= _LOOP_LENGTH and any(char.isalnum() for char in unit),  # a rule of dashes is no loop
        "chinese_share": chinese_share(text),
        "same_language": same_language(question, text),
    }


def repeated_share(tokens: list[str], n: int = 4) -> float:
    """Share of n-grams that stood in the text before: 0 for a text that says nothing twice, or has fewer words."""
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_loop(text: str) -> tuple[int, str]:
    """The longest stretch in which one unit of up to 100 characters follows itself at least 3 times, and that unit."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    best, where, period = 0, 0, 0
    for p in range(1, min(LOOP_PERIOD, len(codes) // _LOOP_TIMES) + 1):
        same = np.concatenate([[False], codes[p:] == codes[:-p], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        if len(edges):
            runs = edges[1::2] - edges[::2]
            length = int(runs.max()) + p
            if length >= _LOOP_TIMES * p and length > best:
                best, where, period = length, int(edges[2 * runs.argmax()]), p
    return best, text[where : where + period]


def chinese_share(text: str) -> float | None:
    """Chinese characters among all letters; None where there are no letters."""
    letters = _WORD.findall(text)
    return sum(map(_is_han, letters)) / len(letters) if letters else None


def same_language(question: str, answer: str) -> bool | None:
    """Whether a text in Chinese is answered in Chinese, another in another; None where either has no letters.

    A text is Chinese when at least half of its words are: a Chinese character counts as a word, as does a run of others.
    """
    kinds = [_is_chinese(text) for text in (question, answer)]
    return None if None in kinds else kinds[0] == kinds[1]


def _is_chinese(text: str) -> bool | None:
    han = sum(map(_is_han, text))
    others = len(re.findall(r"[^\W\d_]+", re.sub(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", " ", text)))
    return han >= others if han + others else None


def _is_han(char: str) -> bool:
    return "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\U00020000" <= char <= "\U0003ffff"


def score_models(answers: dict[str, list[dict]], seed: int) -> tuple[dict[str, dict], list[dict]]:
    """Score every model's answers to the same questions; each answer gets its own values as ``scores``.

    Returns:
        Each model's figures, and the differences of the pairs.
    """
    from tqdm import tqdm

    score = make_scorer()
    for name, samples in answers.items():
        for one in tqdm(samples, desc=f"{name} 打分", unit="条", disable=None, file=sys.stderr):
            one["scores"] = score(one["reference"], one["response"]) | traits(one["question"], one["response"])
    names = list(answers)
    draws = _draws(answers, seed)
    count = len(answers[names[0]])
    figures = {name: _summary(samples, draws[name]) for name, samples in answers.items()}
    differences = []
    for before, after in bootstrap.pairs_to_compare(names):
        for metric in COMPARED:
            if metric == "ends_by_itself":
                bounds = _ends_interval(answers[before], answers[after])
            else:
                bounds = bootstrap.interval(draws[after][metric] - draws[before][metric], count)
            differences.append(
                {
                    "metric": metric,
                    "before": before,
                    "after": after,
                    "difference": figures[after][metric] - figures[before][metric],
                    "interval": bounds,
                    "records": count,
                    "verdict": bootstrap.judge(bounds, count, lower_is_better=False),
                }
            )
    for samples in answers.values():
        for one in samples:
            del one["scores"]["bleu_counts"]
    return figures, differences


def _columns(samples: list[dict]) -> np.ndarray:
    rows = [[*one["scores"]["bleu_counts"], *(one["scores"][name] for name in ROUGES)] for one in samples]
    return np.array(rows, float)


def _ends_interval(before: list[dict], after: list[dict]) -> list[float] | None:
    """The exact interval of a difference of shares: 6 of 6 against 0 of 6 is no proof of 100 points, nor 5 of 100 of any."""
    gains = [
        (b["finish_reason"] == "stop") - (a["finish_reason"] == "stop") for a, b in zip(before, after, strict=True)
    ]
    if len(gains) < bootstrap.MIN_RECORDS:
        return None
    found = compare(gains.count(1), gains.count(-1), len(gains))
    return [round(found.low, 6) + 0.0, round(found.high, 6)]


def _draws(answers: dict[str, list[dict]], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """BLEU and ROUGE over resampled questions, the same questions for every model."""
    draws = {}
    for name, samples in answers.items():
        totals = bootstrap.resample(_columns(samples), seed)
        means = dict(zip(ROUGES, totals[:, 10:].T / len(samples), strict=True))
        draws[name] = {"bleu4": np.array([bleu_of(row) for row in totals[:, :10]])} | means
    return draws


def _summary(samples: list[dict], draws: dict[str, np.ndarray]) -> dict:
    scores, count = [one["scores"] for one in samples], len(samples)
    result: dict = {"bleu4": bleu_of(_columns(samples)[:, :10].sum(0))}
    result |= {name: float(np.mean([one[name] for one in scores])) for name in ROUGES}
    for name in ("bleu4", *ROUGES):
        result[f"{name}_interval"] = bootstrap.interval(draws[name], count)
    shares = {
        "ends_by_itself": [one["finish_reason"] == "stop" for one in samples],
        "empty": [one["empty"] for one in scores],
        "loops": [one["loops"] for one in scores],
        "same_language": [one["same_language"] for one in scores if one["same_language"] is not None],
    }
    for name, hits in shares.items():
        result[name] = sum(hits) / len(hits) if hits else None
        result[f"{name}_interval"] = bootstrap.wilson(sum(hits), len(hits)) if hits else None
    result["repeated_4grams"] = float(np.mean([one["repeated_4grams"] for one in scores]))
    result["longest_loop"] = max(one["longest_loop"] for one in scores)
    known = [one["chinese_share"] for one in scores if one["chinese_share"] is not None]
    result["chinese_share"] = float(np.mean(known)) if known else None
    result["characters"] = spread([one["characters"] for one in scores])
    result["tokens"] = spread([one["completion_tokens"] for one in samples])
    return result


def spread(values: Sequence[int]) -> dict[str, float]:
    """Mean, and the points below which 10, 25, 50, 75 and 90 % lie."""
    points = np.percentile(values, [10, 25, 50, 75, 90])
    keys = ("p10", "p25", "median", "p75", "p90")
    return {"mean": float(np.mean(values))} | {key: float(x) for key, x in zip(keys, points, strict=True)}
