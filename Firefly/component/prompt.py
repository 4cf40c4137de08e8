"""One prompt: the token ids that training sees and the token ids that inference sends, from one renderer.

Every template is a Jinja chat template held by the tokenizer (see template.py), so whatever engine reads the saved
checkpoint renders the same text. Text becomes ids with ``add_special_tokens=False``: BOS, where the family has one,
stands in the template itself. The assistant's tokens are found by rendering prefixes of the conversation: what
``add_generation_prompt=True`` renders is the prompt, and what follows it up to and including the stop token is target.
"""

import re
from typing import Any

from .errors import UserError

IGNORE_INDEX = -100

Messages = list[dict[str, str]]


def record_to_messages(record: dict[str, Any]) -> Messages:
    """Turn a conversation record (docs/FORMATS.md), or one with OpenAI ``messages``, into messages.

    White space around a message is no content: a leading line break would also merge into the prompt's last token.

    Raises:
        ValueError: with a Chinese reason, when the record has another shape. The caller knows file and line.
    """
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError("messages 应是非空的 [{role, content}, ...]")
    else:
        turns = record.get("conversation")
        if not isinstance(turns, list) or not turns:
            raise ValueError(
                "缺少 conversation 字段，应是非空的 [{human, assistant}, ...]；ChatML 文件请先用 chatml2conversation.py 转换"
            )
        messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
        for turn in turns:
            if not isinstance(turn, dict) or "human" not in turn or "assistant" not in turn:
                raise ValueError("conversation 的每一轮都要有 human 和 assistant 两个字段")
            messages.append({"role": "user", "content": turn["human"]})
            messages.append({"role": "assistant", "content": turn["assistant"]})
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"角色 {message.get('role')!r} 不认识，应是 system、user 或 assistant")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"{message['role']} 的内容应是字符串，实际是 {type(message.get('content')).__name__}")
    return [{"role": message["role"], "content": message["content"].strip()} for message in messages]


def render(tokenizer: Any, messages: Messages, add_generation_prompt: bool) -> str:
    """Return the text of ``messages`` under the tokenizer's chat template. Thinking, where a family has it, is off."""
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
    )


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of rendered text: nothing is added, for BOS stands in the template."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Return the ids that every inference path sends for ``messages`` (history, then the user's last message)."""
    return encode_text(tokenizer, render(tokenizer, messages, add_generation_prompt=True))


def target_spans(
    tokenizer: Any, messages: Messages, special: re.Pattern[str] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and find the assistant's text in it. ``special``: its `_special_token_pattern`, if at hand.

    Returns:
        The rendered text, and for each assistant message the (start, end) character span of its target: the answer
        and its stop token, without the line break that some templates put after the stop token.

    Raises:
        ValueError: with a Chinese reason, when the template does not let the answers be found.
    """
    text = render(tokenizer, messages, add_generation_prompt=False)
    special = special or _special_token_pattern(tokenizer)
    spans = []
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:k], add_generation_prompt=True)
        if not text.startswith(prompt):
            raise ValueError(
                f"对话模板第 {k + 1} 条消息的提示不是整段对话的前缀，无法确定回答的位置；请换 template_name"
            )
        start = len(prompt)
        answer = message["content"].strip()
        found = text.find(answer, start)
        if found < 0:
            raise ValueError(f"对话模板改写了第 {k + 1} 条消息的内容，无法确定回答的位置；请换 template_name")
        end = found + len(answer)
        stop = special.match(text, end) if special else None
        spans.append((start, stop.end() if stop else end))
    return text, spans


def encode_conversations(
    tokenizer: Any, conversations: list[Messages], last_only: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Return (input_ids, labels) for each conversation; labels are -100 wherever there is no loss.

    ``last_only`` leaves the loss to the last answer of each conversation.

    The whole text is tokenised once, in one call for all conversations (fast tokenizers then use every core), and
    labels follow from character offsets.

    Raises:
        ValueError: see ``target_spans``.
    """
    special = _special_token_pattern(tokenizer)
    rendered = [target_spans(tokenizer, messages, special) for messages in conversations]
    if last_only:
        rendered = [(text, spans[-1:]) for text, spans in rendered]
    if not tokenizer.is_fast:
        return [_encode_by_prefixes(tokenizer, text, spans) for text, spans in rendered]
    encoded = tokenizer(
        [text for text, _ in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,  # too long for the model is no news here: records are cut at max_seq_length
    )
    results = []
    for (_, spans), ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        labels = [IGNORE_INDEX] * len(ids)
        position = 0
        for start, end in spans:
            while position < len(ids) and offsets[position][0] < start:
                position += 1
            while position < len(ids) and offsets[position][0] < end:
                labels[position] = ids[position]
                position += 1
        results.append((ids, labels))
    return results


def encode_conversation(tokenizer: Any, messages: Messages) -> tuple[list[int], list[int]]:
    """Return (input_ids, labels) of one conversation, see ``encode_conversations``."""
    return encode_conversations(tokenizer, [messages])[0]


def check_one_prompt(tokenizer: Any, conversations: list[Messages]) -> int:
    """Prove that what training sees before each answer is, token by token, what inference will send.

    Returns:
        The number of answers compared.

    Raises:
        UserError: names the first token that differs.
    """
    compared = 0
    for number, messages in enumerate(conversations, 1):
        ids, labels = encode_conversation(tokenizer, messages)
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = encode_prompt(tokenizer, messages[:k])
            where = f"第 {number} 条对话、第 {k + 1} 条消息"
            for i, inference_id in enumerate(prompt):
                training_id = ids[i] if i < len(ids) else None
                if training_id != inference_id:
                    raise UserError(
                        f"{where}：训练与推理的提示从第 {i + 1} 个 token 起不同：训练是 {_show(tokenizer, training_id)}，"
                        f"推理是 {_show(tokenizer, inference_id)}。请换 template_name，或改用词表里有该模板特殊符号的分词器。"
                    )
            if (
                len(prompt) >= len(ids)
                or labels[len(prompt)] == IGNORE_INDEX
                or labels[len(prompt) - 1] != IGNORE_INDEX
            ):
                raise UserError(
                    f"{where}：损失没有从回答的第一个 token（第 {len(prompt) + 1} 个）开始，"
                    "分词器把提示的末尾与回答的开头合成了一个 token；请换 template_name。"
                )
            compared += 1
    return compared


def _encode_by_prefixes(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Label by the lengths of tokenised prefixes: for tokenizers that know no offsets. Slow, and needs no more."""
    ids = encode_text(tokenizer, text)
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in spans:
        first, last = len(encode_text(tokenizer, text[:start])), len(encode_text(tokenizer, text[:end]))
        labels[first:last] = ids[first:last]
    return ids, labels


def _special_token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Match white space, then one of the tokenizer's special tokens: the stop token behind an answer."""
    tokens = set(tokenizer.all_special_tokens)
    tokens |= {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    if not tokens:
        return None
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")


def _show(tokenizer: Any, token_id: int | None) -> str:
    return "（没有）" if token_id is None else f"{token_id}（{tokenizer.convert_ids_to_tokens(token_id)!r}）"
