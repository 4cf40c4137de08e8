"""Held-out conversations for an evaluation: read, thinned out evenly, and encoded alike for every model."""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

from .errors import UserError
from .evaluation import MAX_SOURCES, group_sources
from .inference import Request, is_unicode, read_lines

SHOWN = 5  # lines said of records that are left out, of however many

Encoded = list[tuple[list[int], list[int]]]  # (input_ids, labels) of each record


@dataclass(frozen=True)
class Record:
    """One held-out conversation; ``source`` is the group it counts in."""

    where: str
    source: str
    messages: list[dict]

    def question(self) -> list[dict]:
        """The conversation up to, and without, its last assistant message."""
        last = max(i for i, message in enumerate(self.messages) if message["role"] == "assistant")
        return self.messages[:last]

    def reference(self) -> str:
        return self.messages[len(self.question())]["content"]


def read_records(path: str, flag: str = "--eval-file") -> list[Record]:
    """Read conversation JSONL; UserError names the first bad line by file:line."""
    from .prompt import record_to_messages

    records = []
    for where, fields in read_lines(path, f"{path}：找不到评估文件，请检查 {flag} 的路径。"):
        try:
            messages = record_to_messages(fields)
        except ValueError as error:
            raise UserError(f"{where}：{error}；请改正或删去这一行。") from None
        if not any(message["role"] == "assistant" for message in messages[1:]):
            raise UserError(f"{where}：没有提问和 assistant 的回答，无从评估；请补上或删去这一行。")
        if not all(is_unicode(message["content"]) for message in messages):
            raise UserError(f"{where}：文本里有半个字符（\\ud800 到 \\udfff 的转义），请改正或删去这一行。")
        records.append(Record(where, str(fields.get("source") or fields.get("category") or "未分类"), messages))
    if not records:
        raise UserError(f"{path}：文件里没有一条对话，请检查 {flag}。")
    return records


def every_nth(items: list, count: int | None) -> list:
    """Return ``count`` items evenly spread over the list, all of them when it is not longer."""
    if count is None or len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def choose_asked(records: list[Record], leaked: set[str], count: int) -> tuple[list[Record], list[str]]:
    """Return ``count`` records to be answered, of those that did not leak if there are any, and a note of that."""
    clean = [record for record in records if record.where not in leaked]
    if not count or len(clean) in (0, len(records)):
        return (every_nth(records, count) if count else []), []
    return every_nth(clean, count), [f"生成的问题只取自没有与训练数据重合的 {len(clean)} 条。"]


def requests_of(records: list[Record]) -> list[Request]:
    """Each record's last question, to be answered anew; the fields hold the conversation up to its reference answer."""
    return [
        Request(
            i,
            q := record.question(),
            {"source": record.source, "messages": record.messages[: len(q) + 1]},
            record.where,
        )
        for i, record in enumerate(records)
    ]


@dataclass(frozen=True)
class HeldOut:
    """Records ready to be measured. encoded: for each model. groups: models of one number predict the same tokens.

    counts: read, truncated, and dropped by reason. notes: what stands in the way of comparing, in sentences.
    """

    records: list[Record]
    encoded: dict[str, Encoded]
    groups: dict[str, int]
    read: int
    truncated: int
    dropped: dict[str, int]
    notes: list[str]


def prepare(sessions: dict[str, Any], records: list[Record], leaked: set[str], max_length: int) -> HeldOut:
    """Encode records for every model, without what leaked, what stood before, and what has no target tokens for one."""
    clean = [record for record in records if record.where not in leaked]
    if not clean:
        raise UserError("所有评估记录都与训练数据重合，没有可算的；请换一份评估文件，或去掉 --drop-leaked。")
    found, clean = len(clean), without_repeats(clean)
    cut, truncated = encode_all(sessions, clean, max_length)
    kept = [i for i in range(len(clean)) if all(any(x != -100 for x in pairs[i][1][1:]) for pairs in cut.values())]
    empty = sorted(set(range(len(clean))) - set(kept))
    for i in empty[:SHOWN]:
        print(f"{clean[i].where}：截到 {max_length} 个 token 后没有可算损失的回答，不计入。", file=sys.stderr)
    if len(empty) > SHOWN:
        print(f"另有 {len(empty) - SHOWN} 条也是这样。", file=sys.stderr)
    if not kept:
        raise UserError(f"没有一条记录可算损失，请加大 --max-seq-length（现在是 {max_length}）。")
    encoded = {name: [pairs[i] for i in kept] for name, pairs in cut.items()}
    groups = target_groups(encoded)
    dropped = {"没有目标 token": len(clean) - len(kept)}
    if found > len(clean):
        dropped["与前面的记录相同"] = found - len(clean)
    if leaked:
        dropped["与训练数据重合"] = len(records) - found
    rest, notes = fewer_sources([clean[i] for i in kept])
    return HeldOut(rest, encoded, groups, len(records), truncated, dropped, say_differences(sessions, groups) + notes)


def without_repeats(records: list[Record]) -> list[Record]:
    """The first of each conversation: a copy is no new evidence, and copies would make every interval too narrow."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(json.dumps(record.messages, ensure_ascii=False), record)
    return list(first.values())


def fewer_sources(records: list[Record]) -> tuple[list[Record], list[str]]:
    """Put the smallest sources together where there are more than anybody reads; return that, and a note of it."""
    groups = group_sources([record.source for record in records])
    named = {row: name for name, rows in groups.items() for row in rows}
    count = len({record.source for record in records})
    notes = [f"有 {count} 个来源：记录最多的 {len(groups) - 1} 个分列，其余合为一组。"] if count > MAX_SOURCES else []
    return [replace(record, source=named[i]) for i, record in enumerate(records)], notes


def encode_all(sessions: dict[str, Any], records: list[Record], max_length: int) -> tuple[dict[str, Encoded], int]:
    """Encode every record for every model, cut at ``max_length``; return that, and how many records were cut."""
    from .prompt import encode_conversations

    cut: dict[str, Encoded] = {}
    truncated: set[int] = set()
    for name, session in sessions.items():
        try:
            pairs = encode_conversations(session.tokenizer, [record.messages for record in records])
        except ValueError as error:
            raise UserError(f"--models {name}：{error}。") from None
        truncated |= {i for i, (ids, _) in enumerate(pairs) if len(ids) > max_length}
        cut[name] = [(ids[:max_length], labels[:max_length]) for ids, labels in pairs]
    return cut, len(truncated)


def target_groups(encoded: dict[str, Encoded]) -> dict[str, int]:
    """Number the models by what they predict: losses compare within a number, where the target tokens are the same."""
    seen: list[list[list[int]]] = []
    numbers = {}
    for name, pairs in encoded.items():
        targets = [[x for x in labels[1:] if x != -100] for _, labels in pairs]
        if targets not in seen:
            seen.append(targets)
        numbers[name] = seen.index(targets)
    return numbers


def say_differences(sessions: dict[str, Any], groups: dict[str, int]) -> list[str]:
    """What makes the models' losses hard to compare, in sentences."""
    notes = []
    if len(set(groups.values())) > 1:
        alike = {n: "、".join(name for name in groups if groups[name] == n) for n in sorted(set(groups.values()))}
        notes.append(
            f"各模型的目标 token 不同（{'；'.join(alike.values())} 各为一组），组与组之间按 token 平均的损失不能相比，不给差值。"
        )
    if len({session.tokenizer.chat_template for session in sessions.values()}) > 1:
        notes.append("各模型的提示模板不同；要用同一个模板相比，请给出 --template-name。")
    return notes
