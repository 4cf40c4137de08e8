"""What type each key of a train_args file takes, read from the two dataclasses that declare them."""

import enum
import functools
import json
import math
import types
import typing
from dataclasses import MISSING, fields
from typing import Any

from .argument import CustomizedArguments
from .errors import UserError

Kinds = frozenset[type]

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NAMES = {
    bool: "true 或 false",
    int: "整数",
    float: "数字",
    str: "文字",
    list: "列表",
    dict: "{键: 值}",
    type(None): "null",
}
_EXAMPLES = {bool: True, int: 8, float: 0.1, str: "文字", list: ["q_proj", "v_proj"], dict: {}}


@functools.cache
def key_kinds() -> dict[str, Kinds]:
    """Every key that may be given, with the types its value may have."""
    from transformers import TrainingArguments

    kinds = {
        field.name: _kinds(hints[field.name])
        for owner in (TrainingArguments, CustomizedArguments)
        for hints in [typing.get_type_hints(owner)]
        for field in fields(owner)
        if field.init
    }
    return kinds | {"fsdp": kinds["fsdp"] | {bool}}  # transformers 5 wants true there; its hint still says text


def _kinds(hint: Any) -> Kinds:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return frozenset().union(*map(_kinds, args))
    if origin is typing.Literal:
        return frozenset(map(type, args))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return frozenset([str])
    return frozenset([origin or hint])


def from_text(key: str, text: str, kinds: Kinds) -> Any:
    """Read a word of the command line as the type that its key takes; what fits none stays text for check_type."""
    word = text.strip().lower()
    if type(None) in kinds and (word == "null" or (word == "none" and str not in kinds)):
        return None
    if bool in kinds and word in _WORDS:
        return _WORDS[word]
    for number in (int, float):
        if number in kinds or not kinds:
            try:
                return number(text)
            except ValueError:
                pass
    if word[:1] in ("[", "{") or not kinds:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if kinds & {list, dict}:
                raise UserError(
                    f"命令行 --{key} {text}：不是合法的 JSON（{error.msg}，第 {error.colno} 列），例如 '[\"q_proj\"]'。"
                ) from None
    if list in kinds and "," in text:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def check_type(key: str, value: Any, kinds: Kinds, path: str) -> Any:
    """Return the value if it is of one of the types, or means the same as one that is.

    Raises:
        UserError: names the key, the value and an example.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key}={value!r} 不是一个有限的数。")
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    if int in kinds and isinstance(value, float) and value.is_integer():  # 1e3
        return int(value)
    if bool in kinds and value in (0, 1):
        return bool(value)
    if key.endswith("_strategy") and value is False:  # YAML's no
        return "no"
    if isinstance(value, str) and list in kinds:
        return [part.strip() for part in value.split(",") if part.strip()]
    wanted = "、".join(name for kind, name in _NAMES.items() if kind in kinds)
    example = json.dumps(_example(key, kinds), ensure_ascii=False)
    quoted = ""
    if isinstance(value, str) and type(from_text(key, value, kinds - {list, dict})) is not str:
        quoted = "（不要加引号）"
    elif str in kinds and isinstance(value, bool | int | float):
        quoted = "（请加引号）"
    raise UserError(f"{path}: {key}={value!r} 的类型不对，应是{wanted}{quoted}，例如 {key}: {example}。")


def _example(key: str, kinds: Kinds) -> Any:
    """The key's default where it says something, else a value of the first type."""
    from transformers import TrainingArguments

    for owner in (CustomizedArguments, TrainingArguments):
        for field in fields(owner):
            if field.name == key and field.default not in (MISSING, None) and not isinstance(field.default, enum.Enum):
                return field.default
    return next(value for kind, value in _EXAMPLES.items() if kind in kinds)
