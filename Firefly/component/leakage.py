"""Did the model see the exam? Held-out records that stand in the training data, exactly or nearly.

    find_leaks([(question, answer), ...], train_files) -> (leaks, training records read)

Texts are compared by letters and digits alone: width, case, punctuation and white space count for nothing. A record
leaks when a training record is

    exact       the same question and answer
    answer      the same answer (of 20 characters or more) to another question: a paraphrase, if the questions agree
    question    the same question, another answer; the share of its pieces says how far another
    near        none of these, but holds at least 70 % of its 8-character pieces, in any order: an edited or embedded copy

Every training text is hashed with numpy, many at a time, and looked up in a table of the held-out pieces; only
records that share enough of a sample of them are compared in full.
"""

import gzip
import json
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from .errors import UserError

GRAM = 8  # characters, a power of two
NEAR = 0.7
_SAMPLED = 64  # pieces of each held-out record that are looked up: its rarest, so that stock phrases find nobody
_ANSWER = 20  # characters; shorter answers are the same by chance
_ENOUGH = 0.5  # of the sample, for a full comparison; 64 of a record with 70 % hold fewer once in 2,000
_BATCH = 1 << 17  # characters hashed at a time: what a processor's cache holds
_FILTER_BITS = 22
KINDS = {"exact": "完全相同", "answer": "回答相同", "question": "问题相同", "near": "近似"}
_ORDER = list(KINDS)

Pair = tuple[str, str]  # (question, answer)


@dataclass(frozen=True)
class Leak:
    """A held-out record found in the training data. share: of its pieces that the training record holds."""

    index: int
    kind: str
    share: float
    train_where: str
    train: Pair


@dataclass
class _Index:
    """The held-out side. grams: sorted hashes of the sampled pieces; owners[starts[i]:starts[i + 1]] have grams[i]."""

    texts: list[np.ndarray]  # folded question and answer of each record, GRAM zeros between them
    exact: dict[bytes, list[int]]
    questions: dict[bytes, list[int]]
    answers: dict[bytes, list[int]]
    grams: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    owners: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    sampled: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (records,) how many are sampled
    maybe: np.ndarray = field(default_factory=lambda: np.zeros(1 << _FILTER_BITS, bool))


@cache
def _folds() -> np.ndarray:
    """(0x110000,) uint32: what each code point counts as, 0 for what counts for nothing."""
    table = np.arange(0x110000, dtype=np.uint32)
    for code in range(0x10000):  # beyond stand rare characters and emoji, which count as themselves
        char = unicodedata.normalize("NFKC", chr(code)) if not 0xD800 <= code < 0xE000 else ""
        char = char if len(char) == 1 else chr(code)
        char = lower if len(lower := char.lower()) == 1 else char
        table[code] = ord(char) if char.isalnum() else 0
    return table


def fold(text: str) -> np.ndarray:
    """(characters,) uint32: letters and digits of a text."""
    codes = _folds()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
    return codes[codes != 0]


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """One array of several texts, GRAM zeros behind each, so that no piece reaches from one into another."""
    gap = np.zeros(GRAM, np.uint32)
    return np.concatenate([piece for part in parts for piece in (part, gap)] or [gap])


def _hashes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash every piece of GRAM characters that holds no zero. Returns (where it starts, hash as uint64)."""
    if len(codes) < GRAM:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    values, factor, width = codes.astype(np.uint64), np.array([0x9E3779B97F4A7C15], np.uint64), 1
    while width < GRAM:  # two pieces side by side make one of twice the width
        values = values[:-width] * factor + values[width:]
        factor, width = factor * factor, 2 * width
    values ^= values >> np.uint64(29)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    zeros = np.flatnonzero(codes == 0)
    whole = np.ones(len(values), bool)
    for back in range(GRAM):
        starts = zeros - back
        whole[starts[(starts >= 0) & (starts < len(values))]] = False
    where = np.flatnonzero(whole)
    return where, values[where]


def _cells(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


def _build_index(records: list[Pair]) -> _Index:
    folded = [(fold(question), fold(answer)) for question, answer in records]
    index = _Index([_join(list(pair)) for pair in folded], {}, {}, {})
    grams = []
    for i, (question, answer) in enumerate(folded):
        if len(question):
            index.questions.setdefault(question.tobytes(), []).append(i)
            index.exact.setdefault(question.tobytes() + b"|" + answer.tobytes(), []).append(i)
        if len(answer) >= _ANSWER:
            index.answers.setdefault(answer.tobytes(), []).append(i)
        grams.append(np.unique(_hashes(index.texts[i])[1]))
    every, counts = np.unique(np.concatenate(grams), return_counts=True) if grams else (index.grams, None)
    sample = []
    for own in grams:
        rarity = counts[np.searchsorted(every, own)] if len(own) else own
        sample.append(own[np.lexsort((own, rarity))[:_SAMPLED]])
    index.sampled = np.array([len(own) for own in sample])
    owners = np.repeat(np.arange(len(sample)), index.sampled)
    flat = np.concatenate(sample)
    order = np.argsort(flat, kind="stable")
    index.owners = owners[order]
    index.grams, index.starts = np.unique(flat[order], return_index=True)
    index.starts = np.append(index.starts, len(flat))
    index.maybe[_cells(index.grams)] = True
    return index


def find_leaks(records: list[Pair], train_files: Iterable[str]) -> tuple[list[Leak], int]:
    """Return one training record for each held-out record that leaks, and how many training records were read.

    It is the first of the gravest kind, and of near ones the nearest.

    Raises:
        UserError: a training file is missing, broken, or of another shape.
    """
    index = _build_index(records)
    best: dict[int, Leak] = {}
    read = 0
    for batch in _batches(train_files):
        read += len(batch)
        folded = [(fold(question), fold(answer)) for _, (question, answer) in batch]
        for row, i, kind in _equal(index, folded):
            share = 1.0 if kind == "exact" else _contained(index.texts[i], _join(list(folded[row])))
            _keep_gravest(best, Leak(i, kind, share, *batch[row]))
        for row, i in _candidates(index, folded):
            if i in best and _rank(best[i].kind) < _rank("near"):
                continue
            share = _contained(index.texts[i], _join(list(folded[row])))
            if share >= NEAR:
                _keep_gravest(best, Leak(i, "near", share, *batch[row]))
    return [best[i] for i in sorted(best)], read


def _rank(kind: str) -> int:
    return _ORDER.index(kind)


def _keep_gravest(best: dict[int, Leak], leak: Leak) -> None:
    known = best.get(leak.index)
    if known is None or (_rank(leak.kind), -leak.share) < (_rank(known.kind), -known.share):
        best[leak.index] = leak


def _equal(index: _Index, folded: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[int, int, str]]:
    """Yield (row of the batch, held-out record, kind). What was found once is not looked for again: it stays found."""
    for row, (question, answer) in enumerate(folded):
        asked, said = question.tobytes(), answer.tobytes()
        looks = (
            ("exact", index.exact, asked + b"|" + said),
            ("answer", index.answers, said),
            ("question", index.questions, asked),
        )
        for kind, table, key in looks:
            for i in table.pop(key, ()):
                yield row, i, kind


def _candidates(index: _Index, folded: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    """(row, held-out record) of those that share enough sampled pieces."""
    texts = [_join(list(pair)) for pair in folded]
    where, hashes = _hashes(np.concatenate(texts))
    hit = np.flatnonzero(index.maybe[_cells(hashes)])
    place = np.searchsorted(index.grams, hashes[hit])
    place[place == len(index.grams)] = 0
    known = index.grams[place] == hashes[hit] if len(index.grams) else np.zeros(len(hit), bool)
    if not known.any():
        return []
    rows = np.searchsorted(np.cumsum([len(text) for text in texts]), where[hit[known]], side="right")
    pairs = np.unique(rows * len(index.grams) + place[known])  # each piece once a row
    rows, place = np.divmod(pairs, len(index.grams))
    counts = index.starts[place + 1] - index.starts[place]
    ends = np.cumsum(counts)
    reach = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    owners = index.owners[np.repeat(index.starts[place], counts) + reach]
    both, shared = np.unique(np.repeat(rows, counts) * len(index.texts) + owners, return_counts=True)
    rows, owners = np.divmod(both, len(index.texts))
    enough = shared >= _ENOUGH * index.sampled[owners]
    return list(zip(rows[enough].tolist(), owners[enough].tolist(), strict=True))


def _contained(held_out: np.ndarray, train: np.ndarray) -> float:
    wanted = np.unique(_hashes(held_out)[1])
    if not len(wanted):
        return 0.0
    return round(float(np.isin(wanted, _hashes(train)[1]).mean()), 4)


def _batches(paths: Iterable[str]) -> Iterator[list[tuple[str, Pair]]]:
    batch: list[tuple[str, Pair]] = []
    size = 0
    for path in paths:
        for where, pair in read_train(path):
            batch.append((where, pair))
            size += sum(map(len, pair))
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def read_train(path: str) -> Iterator[tuple[str, Pair]]:
    """Yield (file:line, (question, answer)) of JSONL, .gz too: conversations, messages, instruction/output, or text."""
    if not Path(path).is_file():
        raise UserError(f"{path}：找不到训练文件，请检查 --train-file 的路径。")
    with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as lines:
        try:
            for number, raw in enumerate(lines, 1):
                if raw.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield f"{path}:{number}", _parse(raw, f"{path}:{number}")
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise UserError(f"{path}：不是完整的 gzip 文件，请重新取得这个文件。") from None


def _parse(raw: bytes, where: str) -> Pair:
    try:
        return question_and_answer(json.loads(raw.decode("utf-8-sig")))
    except (ValueError, RecursionError):
        raise UserError(f"{where}：不是完整的一行 JSON，请改正或删去；JSON 数组请先转成 JSONL。") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{where}：看不出问题和回答；应有 conversation、messages、instruction/output 或 text 字段。"
        ) from None


def question_and_answer(record: dict) -> Pair:
    """All that is asked and all that is answered in a record, turns joined by line breaks."""
    if "conversation" in record:
        turns = record["conversation"]
        return "\n".join(turn["human"] for turn in turns), "\n".join(turn["assistant"] for turn in turns)
    if "messages" in record:
        return of_messages(record["messages"])
    if "output" in record:
        return "\n".join([record["instruction"], record.get("input") or ""]).strip(), record["output"]
    return "", record["text"] + ""


def of_messages(messages: list[dict]) -> Pair:
    """The same of a list of messages; what the system says is left out."""
    parts = [[m["content"] for m in messages if m["role"] == role] for role in ("user", "assistant")]
    return "\n".join(parts[0]), "\n".join(parts[1])
