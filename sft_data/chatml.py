"""HIT ChatML, the text form in which a record travels from generation to conversion.

    render_chatml(messages: list[dict[str, str]]) -> str      messages -> text; ValueError when it could not be read back
    parse_chatml(text: str) -> list[dict[str, str]]           text -> messages; ValueError(Chinese reason) when malformed
    check_order(messages: list[dict[str, str]]) -> None       ValueError unless [system] (user assistant)+
    firefly_fields(obj: dict) -> tuple[str, str, str]         (instruction, input, output) of an open-data record
    firefly_messages(instruction, inp, output) -> messages    the same as messages: user = instruction + input
    hit_record(obj) / firefly_record(obj) / conversation_record(messages) -> (fields, messages)   tidied, fields being what the gates look at
    carried(obj) -> dict[str, str]                            category and topic, which travel beside the text

A message is ``{"role": "system" | "user" | "assistant", "content": str}``; in the text the roles are 系统, 用户, 智能助手:

    <|beginofutterance|>用户
    CONTENT
    <|endofutterance|>

This is a data format. The template that the model sees is another thing and lives in Firefly/.
"""

from typing import Any

from .quality import tidy

Fields = list[tuple[str, str]]  # ("instruction" | "input" | "output" | "other", text), as quality.check_record takes it

BEGIN = "<|beginofutterance|>"
END = "<|endofutterance|>"
ROLE_TO_NAME = {"system": "系统", "user": "用户", "assistant": "智能助手"}
_USUAL = list(ROLE_TO_NAME)
NAME_TO_ROLE = {name: role for role, name in ROLE_TO_NAME.items()}


def check_order(messages: list[dict[str, str]]) -> None:
    """Raise ValueError unless the messages are at most one system text, then user/assistant pairs."""
    roles = [message["role"] for message in messages]
    if roles == _USUAL:
        return
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in turns:
        raise ValueError("「系统」只能有一条，而且在最前面")
    if not turns:
        raise ValueError("没有「用户」和「智能助手」的内容")
    for position, role in enumerate(turns):
        expected = ("user", "assistant")[position % 2]
        if role != expected:
            raise ValueError(
                f"第 {position // 2 + 1} 轮应为「{ROLE_TO_NAME[expected]}」，却是「{ROLE_TO_NAME.get(role, role)}」"
            )
    if len(turns) % 2:
        raise ValueError("最后一条是「用户」，缺少「智能助手」的回答")


def render_chatml(messages: list[dict[str, str]]) -> str:
    """Write messages as HIT ChatML. A marker inside a content would break the format, so it is a ValueError."""
    check_order(messages)
    parts = []
    for message in messages:
        content = message["content"]
        if BEGIN in content or END in content:
            raise ValueError(f"「{ROLE_TO_NAME[message['role']]}」的内容里含有格式标记 {BEGIN} 或 {END}")
        parts.append(f"{BEGIN}{ROLE_TO_NAME[message['role']]}\n{content}\n{END}")
    return "\n".join(parts)


def parse_chatml(text: str) -> list[dict[str, str]]:
    """Read HIT ChatML strictly: ``parse_chatml(render_chatml(m)) == m``. Contents may be empty; order is checked."""
    before, *pieces = text.split(BEGIN)
    if not pieces:
        raise ValueError(f"没有 {BEGIN}，不是 HIT ChatML")
    if before.strip():
        raise ValueError(f"第一个 {BEGIN} 之前有多余的文字：{before.strip()[:20]!r}")
    messages = [_parse_message(piece, number) for number, piece in enumerate(pieces, 1)]
    check_order(messages)
    return messages


def _parse_message(piece: str, number: int) -> dict[str, str]:
    body, end, after = piece.partition(END)
    if not end:
        raise ValueError(f"第 {number} 段没有以 {END} 结束")
    if after and not after.isspace():
        raise ValueError(f"第 {number} 段的 {END} 之后有多余的文字：{after.strip()[:20]!r}")
    name, newline, content = body.partition("\n")
    role = NAME_TO_ROLE.get(name.strip())
    if role is None or not newline:
        raise ValueError(f"第 {number} 段的角色是 {name.strip()[:20]!r}，应为 系统、用户、智能助手 之一，独占一行")
    return {"role": role, "content": content.removesuffix("\n")}


def firefly_fields(obj: dict) -> tuple[str, str, str]:
    """Return (instruction, input, output) of a Firefly/Alpaca record, in either of its two forms.

    ``{"instruction", "input"?, "output"}`` or ``{"kind"?, "input", "target"}``; input may be missing, null or empty.
    Raises ValueError with a Chinese reason when a field is missing or is not text.
    """
    if "output" not in obj and "target" in obj:
        obj = {"instruction": obj.get("input"), "input": "", "output": obj["target"]}
    inp = obj.get("input") or ""
    for name, value in (("instruction", obj.get("instruction")), ("input", inp), ("output", obj.get("output"))):
        if value is None:
            raise ValueError(f"缺少 {name} 字段；每条须有 instruction、input、output（或 kind、input、target）")
        if not isinstance(value, str):
            raise ValueError(f"{name} 字段是 {type(value).__name__}，应为字符串")
    return obj["instruction"], inp, obj["output"]


def firefly_messages(instruction: str, inp: str, output: str) -> list[dict[str, str]]:
    """Open-data records have no system text: what is asked, and what it is asked about, make the user's message."""
    asked = "\n".join(part for part in (instruction, inp) if part)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def hit_record(obj: dict[str, Any]) -> tuple[Fields, list[dict[str, str]]]:
    """Read ``{"text": HIT ChatML}``."""
    if not isinstance(obj.get("text"), str):
        hint = "；这像是开源数据，请用 --firefly-json 给出" if "output" in obj or "target" in obj else ""
        raise ValueError(f"没有 text 字段（应为 HIT ChatML 字符串）{hint}")
    return conversation_record(parse_chatml(obj["text"]))


def conversation_record(messages: list[dict[str, str]]) -> tuple[Fields, list[dict[str, str]]]:
    """Of messages in order. A user's later turns are ``other``: they have no length of their own to keep."""
    messages = [{**message, "content": tidy(message["content"])} for message in messages]
    names = {"system": "instruction", "user": "input", "assistant": "output"}
    fields = [(names[message["role"]], message["content"]) for message in messages]
    first_user = 1 if messages[0]["role"] == "system" else 0
    for i in range(first_user + 2, len(fields), 2):
        fields[i] = ("other", fields[i][1])
    return fields, messages


def firefly_record(obj: dict[str, Any]) -> tuple[Fields, list[dict[str, str]]]:
    """Read an open-data record; an empty input is left out of the fields and so skips the gates."""
    if isinstance(obj.get("text"), str) and "output" not in obj:
        raise ValueError("这像是 HIT ChatML 记录，请用 --hit-jsonl 给出")
    instruction, inp, output = map(tidy, firefly_fields(obj))
    fields = [("instruction", instruction), ("input", inp), ("output", output)]
    return [item for item in fields if item != ("input", "")], firefly_messages(instruction, inp, output)


def carried(obj: dict[str, Any]) -> dict[str, str]:
    """Fields that travel beside the text: where a record comes from matters to the user, not to the filters."""
    extra = {"category": obj.get("category") or obj.get("kind"), "topic": obj.get("topic")}
    return {name: value for name, value in extra.items() if isinstance(value, str) and value}
