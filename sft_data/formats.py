"""The forms in which conversations travel between programs: told apart by content, read, and written.

    format_of(obj) -> str                                one of FORMATS; ValueError when it is none of them
    read_messages(obj) -> messages                       stripped, in order, none empty; ValueError says what is wrong
    write_record(form, messages, obj, number, category)  -> dict   with what travels on from ``obj``, the record read
    dataset_info(form, path) -> dict                     LLaMA-Factory's description of such a file; {} when it reads none

    firefly   {"conversation_id", "category", "system"?, "conversation": [{"human", "assistant"}]}   Firefly/train.py
    messages  {"messages": [{"role", "content"}]}                                   TRL, ms-swift, OpenAI
    sharegpt  {"conversations": [{"from", "value"}]}                                LLaMA-Factory, ms-swift
    alpaca    {"instruction", "input", "output", "system"?, "history"?: [[q, a]]}   LLaMA-Factory
    chatml    {"text": HIT ChatML}                                                  prep_sft_firefly_hit.py

A message is ``{"role": "system" | "user" | "assistant", "content": str}``, as in chatml.py. Every ValueError is Chinese.
"""

import os
from typing import Any

from .chatml import BEGIN, carried, check_order, firefly_fields, firefly_messages, parse_chatml, render_chatml
from .storage import is_remote

FORMATS = ("firefly", "messages", "sharegpt", "alpaca", "chatml")
Messages = list[dict[str, str]]

_NAMES = {"system": "系统文本", "user": "用户的话", "assistant": "回答"}
_LISTS = {"messages": "messages", "conversations": "sharegpt", "conversation": "firefly"}
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
_NOT_HELD = ("tools", "images", "videos", "audios")  # a conversation without them is another one


def format_of(obj: dict[str, Any]) -> str:
    """Return the form of a record; a null field counts as missing, for in parquet every column is in every record."""
    given = {key for key, value in obj.items() if value is not None}
    for key, form in _LISTS.items():
        if key in given:
            return form
    is_alpaca = bool({"instruction", "output", "target"} & given)
    if "text" in given and not (is_alpaca and BEGIN not in str(obj["text"])):  # Stanford's alpaca has a text, too
        return "chatml"
    if is_alpaca:
        return "alpaca"
    raise ValueError(
        f"认不出这条记录的格式：没有 text、instruction 和 output、conversation、messages、conversations 字段，只有 {sorted(obj)}"
    )


def read_messages(obj: dict[str, Any]) -> Messages:
    """Return the record's messages in one shape, whatever its form."""
    form = format_of(obj)
    for key in _NOT_HELD:
        if obj.get(key) and obj[key] != "[]":
            raise ValueError(f"有 {key} 字段：工具、图片、音视频在这里的各种格式里都写不下")
    if form == "chatml":
        if not isinstance(obj["text"], str):
            raise ValueError(f"text 字段是 {type(obj['text']).__name__}，应为字符串")
        messages = parse_chatml(obj["text"])
    elif form == "alpaca":
        messages = [*_from_pairs(obj.get("history") or []), *firefly_messages(*firefly_fields(obj))]
    elif form == "firefly":
        messages = _from_turns(obj["conversation"])
    else:
        messages = _from_list(form, obj["messages" if form == "messages" else "conversations"])
    system = obj.get("system") if form != "chatml" else None
    if isinstance(system, str):
        system = system.strip()
    if system and messages[0] != {"role": "system", "content": system}:  # some sets hold it in both places
        messages = [{"role": "system", "content": system}, *messages]
    return _checked(messages)


def _checked(messages: Messages) -> Messages:
    for message in messages:
        name, content = _NAMES[message["role"]], message["content"]
        if not isinstance(content, str):
            raise ValueError(f"{name}是 {type(content).__name__}，应为字符串")
        if not content.strip():
            raise ValueError(f"{name}是空的")
    check_order(messages)
    return [{**message, "content": message["content"].strip()} for message in messages]


def _from_pairs(history: Any) -> Messages:
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("history 应是 [[问, 答], ...]，从早到晚")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in history for role, text in zip(roles, pair, strict=True)]


def _from_turns(turns: Any) -> Messages:
    if not isinstance(turns, list) or not turns:
        raise ValueError("conversation 应是非空的 [{human, assistant}, ...]")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or turn.get("human") is None or turn.get("assistant") is None:
            raise ValueError(f"conversation 的第 {number} 轮没有 human 或 assistant")
    return _from_pairs([[turn["human"], turn["assistant"]] for turn in turns])


def _from_list(form: str, items: Any) -> Messages:
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        shape = (
            "messages 应是非空的 [{role, content}" if form == "messages" else "conversations 应是非空的 [{from, value}"
        )
        raise ValueError(f"{shape}, ...]")
    messages = []
    for number, item in enumerate(items, 1):
        role = item["role"] if item.get("role") is not None else item.get("from")
        if _ROLES.get(str(role)) is None or item.get("tool_calls") or item.get("function_call"):
            what = f"角色是 {role!r}" if str(role) not in _ROLES else "有工具调用"
            raise ValueError(
                f"第 {number} 条消息{what}：这里的各种格式只有 system、user（human）、assistant（gpt）的文字，写不下工具调用"
            )
        content = item["content"] if item.get("content") is not None else item.get("value")
        messages.append({"role": _ROLES[role], "content": content})
    return messages


def write_record(form: str, messages: Messages, obj: dict[str, Any], number: int, category: str) -> dict[str, Any]:
    """Return the record in ``form``; keys in a fixed order so that equal input gives equal bytes.

    ``category`` stands in for a missing one, though not in chatml: there a later step may still have a better one.
    """
    own = obj.get("category")
    known = carried(obj) if form == "chatml" else {"category": own if isinstance(own, str) and own else category}
    extra = {
        **known,
        **({"source": obj["source"]} if isinstance(obj.get("source"), str) else {}),
        **({"meta": obj["meta"]} if isinstance(obj.get("meta"), dict) else {}),
    }
    if form == "firefly":
        return {"conversation_id": number, "category": extra["category"], **_firefly(messages), **extra}
    return {**_WRITERS[form](messages), **extra}


def split_system(messages: Messages) -> tuple[str, Messages]:
    """Return the system text ("" when there is none) and the turns."""
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def _pairs(turns: Messages) -> list[list[str]]:
    texts = [turn["content"] for turn in turns]
    return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _firefly(messages: Messages) -> dict[str, Any]:
    system, turns = split_system(messages)
    head = {"system": system} if system else {}
    return {**head, "conversation": [{"human": human, "assistant": answer} for human, answer in _pairs(turns)]}


def _sharegpt(messages: Messages) -> dict[str, Any]:
    # The system text is a message, not a column: datasets guesses columns from a file's first 10 MB, and fails on a
    # column that comes later. LLaMA-Factory, TRL and ms-swift all read a first message from "system".
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}


def _alpaca(messages: Messages) -> dict[str, Any]:
    # For the same reason every key is in every record, and no system text is "", which LLaMA-Factory takes as none.
    system, turns = split_system(messages)
    *history, (instruction, output) = _pairs(turns)
    return {"instruction": instruction, "input": "", "output": output, "system": system, "history": history}


_WRITERS = {
    "messages": lambda messages: {"messages": messages},
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "chatml": lambda messages: {"text": render_chatml(messages)},
}

_COLUMNS = {
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
    "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
    "alpaca": {
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        }
    },
}


def dataset_info(form: str, path: str | os.PathLike) -> dict[str, Any]:
    """Return the entry for LLaMA-Factory's dataset_info.json, by an absolute path so that the file may stay here."""
    name, ending = os.path.splitext(os.path.basename(path))
    if form not in _COLUMNS or ending.lower() not in (".json", ".jsonl", ".parquet") or is_remote(path):
        return {}
    return {name: {"file_name": os.path.abspath(path), **_COLUMNS[form]}}
