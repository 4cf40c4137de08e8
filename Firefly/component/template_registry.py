"""The chat format of every supported family, each as one Jinja chat template. This is the only place they are written.

A format is given as plain pieces of text with a few placeholders, and ``build`` turns the pieces into the Jinja text
that transformers, vLLM, SGLang and llama.cpp render alike: literals stand in expressions and every tag strips the
white space around it, so the result is the same with and without trim_blocks.

What each family does is taken from its own inference: the chat_template of its tokenizer_config.json, or where it
has none, the chat() of its model code or the example on its model card. Three things are common to all:

- A prompt ends where the family's prompt ends. A space that belongs before the answer ("ASSISTANT: hi") is rendered
  with the answer, as the families do, because tokenizers join it to the answer's first word.
- Every answer ends in the stop word, in history too.
- Content is rendered as it is, never stripped: what stands in the data is what is trained.
"""

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A family's chat format.

    chat_template: Jinja text with system default and BOS decided inside.
    stop_word: what ends an answer, one token of the family's tokenizers; None: the tokenizer's own eos_token.
    default_system: the system text used when a conversation brings none; None: then there is no system block.
    """

    name: str
    chat_template: str
    stop_word: str | None
    default_system: str | None = None


# Placeholders of the pieces, as Jinja expressions. {fold} is the system text inside the first user turn.
_NAMES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "system": "system",
    "content": "turn['content']",
    "round": "(loop.index0 // 2 + 1)",
}

_LAYOUT = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = @default -%}
    {%- set turns = messages -%}
{%- endif -%}
@head{%- for turn in turns -%}
    {%- if turn['role'] == 'user' -%}
        {{- @user -}}
    {%- elif turn['role'] == 'assistant' -%}
        {{- @answer -}}
    {%- else -%}
        {{- raise_exception('系统消息只能放在对话的第一条，其余消息的角色应是 user 或 assistant') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- @prompt -}}
{%- endif -%}
"""

_FOLD_GUARD = """\
{%- if system and (not turns or turns[0]['role'] != 'user') -%}
    {{- raise_exception('这个模型没有系统角色，系统消息要并入第一条 user 消息，请让对话从 user 开始') -}}
{%- endif -%}
"""


def build(
    *,
    user: str,
    answer: str,
    stop: str,
    prompt: str = "",
    start: str = "",
    system: str = "",
    fold: str = "",
    default_system: str | None = None,
) -> str:
    """Return the Jinja chat template of a format given in pieces.

    Args:
        user: a user turn, with {content} and, in families without a system role, {fold} where the system text goes.
        prompt: what comes before every answer, and what add_generation_prompt appends.
        answer: the answer after ``prompt``, with {content}; ``stop`` follows it at {stop}.
        start: once, before everything.
        system, fold: the system text with {system}, as a block of its own or inside the first user turn.
        default_system: used when the conversation has no system message. An empty one means: no system text.
    """
    head = f"{{{{- {_expression(start)} -}}}}\n" if start else ""
    if system:
        head += "{%- if system -%}\n    {{- " + _expression(system) + " -}}\n{%- endif -%}\n"
    if fold:
        head += _FOLD_GUARD
    pieces = {
        "default": json.dumps(default_system or "", ensure_ascii=False),
        "head": head,
        "user": _expression(user, fold),
        "answer": _expression(prompt + answer.replace("{stop}", stop)),
        "prompt": _expression(prompt),
    }
    return re.sub(r"@(\w+)", lambda match: pieces[match[1]], _LAYOUT)


def _expression(piece: str, fold: str = "") -> str:
    """Turn ``"a {content} b"`` into the Jinja expression ``"a " ~ turn['content'] ~ " b"``."""
    parts = []
    for text in re.split(r"(\{\w+\})", piece):
        if text == "{fold}":
            parts.append(f'({_expression(fold)} if loop.first and system else "")')
        elif re.fullmatch(r"\{\w+\}", text):
            parts.append(_NAMES[text[1:-1]])
        elif text:
            parts.append(json.dumps(text, ensure_ascii=False))
    return " ~ ".join(parts) or '""'


# ChatML, the shape most families share. The line break after <|im_end|> stands behind the stop word.
_CHATML = {
    "system": "<|im_start|>system\n{system}<|im_end|>\n",
    "user": "<|im_start|>user\n{content}<|im_end|>\n",
    "prompt": "<|im_start|>assistant\n",
    "answer": "{content}{stop}\n",
    "stop": "<|im_end|>",
}
# Qwen3 and MiniCPM5 think unless the prompt closes the thought: this is what enable_thinking=False renders. Every
# answer of the history carries it too, so that each answer is trained behind the very prompt that inference sends.
_CHATML_NO_THINKING = _CHATML | {"prompt": "<|im_start|>assistant\n<think>\n\n</think>\n\n"}

_BOS = {"start": "{bos}"}

_MISTRAL = {
    **_BOS,
    "user": " [INST] {fold}{content} [/INST]",
    "answer": " {content}{stop}",
    "stop": "</s>",
    "fold": "{system}\n\n",
}

_BAICHUAN = {"system": "{system}", "answer": "{content}{stop}", "stop": "</s>"}

_HELPFUL = "You are a helpful assistant."

_INTERNLM2_SYSTEM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文."
)

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_FORMATS: dict[str, dict[str, str]] = {
    # For models without a chat format of their own, such as BLOOM; the answer ends in the tokenizer's eos_token.
    "default": {
        "system": "System: {system}\n\n",
        "user": "User: {content}\n",
        "prompt": "Assistant:",
        "answer": " {content}{stop}",
        "stop": "{eos}",
    },
    "qwen": _CHATML | {"default_system": _HELPFUL},  # Qwen, Qwen1.5, Qwen2, Qwen2.5: no BOS
    "qwen3": _CHATML_NO_THINKING,
    # MiniCPM 1B and 2B: their own template prints a system text bare.
    "minicpm": {
        **_BOS,
        "system": "{system}",
        "user": "<用户>{content}",
        "prompt": "<AI>",
        "answer": "{content}{stop}",
        "stop": "</s>",
    },
    "minicpm3": _CHATML | _BOS,
    "minicpm4": _CHATML | _BOS | {"default_system": _HELPFUL},
    "minicpm5": _CHATML_NO_THINKING | _BOS,
    "yi": _CHATML,
    "internlm2": _CHATML | _BOS | {"default_system": _INTERNLM2_SYSTEM},
    # BOS opens every round.
    "llama2": {
        "user": "{bos}[INST] {fold}{content} [/INST]",
        "answer": " {content} {stop}",
        "stop": "</s>",
        "fold": "<<SYS>>\n{system}\n<</SYS>>\n\n",
    },
    "llama3": {
        **_BOS,
        "system": "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        "user": "<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        "prompt": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "answer": "{content}{stop}",
        "stop": "<|eot_id|>",
    },
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    # Gemma 1 and 2 refuse a system message; Gemma 3 folds it like this.
    "gemma": {
        **_BOS,
        "user": "<start_of_turn>user\n{fold}{content}<end_of_turn>\n",
        "prompt": "<start_of_turn>model\n",
        "answer": "{content}{stop}\n",
        "stop": "<end_of_turn>",
        "fold": "{system}\n\n",
    },
    "phi3": {
        "system": "<|system|>\n{system}<|end|>\n",
        "user": "<|user|>\n{content}<|end|>\n",
        "prompt": "<|assistant|>\n",
        "answer": "{content}{stop}\n",
        "stop": "<|end|>",
    },
    "zephyr": {
        **_BOS,
        "system": "<|system|>\n{system}</s>\n",
        "user": "<|user|>\n{content}</s>\n",
        "prompt": "<|assistant|>\n",
        "answer": "{content}{stop}\n",
        "stop": "</s>",
    },
    "vicuna": {
        **_BOS,
        "system": "{system} ",
        "user": "USER: {content} ",
        "prompt": "ASSISTANT:",
        "answer": " {content}{stop}",
        "stop": "</s>",
        "default_system": _VICUNA_SYSTEM,
    },
    "baichuan": _BAICHUAN | {"user": "<reserved_102>{content}", "prompt": "<reserved_103>"},
    "baichuan2": _BAICHUAN | {"user": "<reserved_106>{content}", "prompt": "<reserved_107>"},
    # DeepSeek LLM and MoE (2023-2024); later DeepSeek models bring their own template: use auto.
    "deepseek": {
        **_BOS,
        "system": "{system}\n\n",
        "user": "User: {content}\n\n",
        "prompt": "Assistant:",
        "answer": " {content}{stop}",
        "stop": "<｜end▁of▁sentence｜>",
    },
    "xverse": {
        "system": "{system}\n\n",
        "user": "Human: {content}\n\n",
        "prompt": "Assistant:",
        "answer": " {content}{stop}",
        "stop": "<|endoftext|>",
    },
    # Orion closes its prompt, too, with the stop word.
    "orion": {
        **_BOS,
        "user": "Human: {fold}{content}\n\n",
        "prompt": "Assistant: </s>",
        "answer": "{content}{stop}",
        "stop": "</s>",
        "fold": "{system}\n\n",
    },
    "ziya2": {
        **_BOS,
        "user": "<human>:{fold}{content}\n",
        "prompt": "<bot>:",
        "answer": "{content}{stop}\n",
        "stop": "</s>",
        "fold": "{system}\n\n",
    },
    "chatglm2": {
        "start": "[gMASK]sop",
        "user": "[Round {round}]\n\n问：{fold}{content}\n\n",
        "prompt": "答：",
        "answer": "{content}{stop}\n\n",
        "stop": "</s>",
        "fold": "{system}\n\n",
    },
    # The line break after <|assistant|> is an empty tool name, which ChatGLM3 writes itself; it belongs to the prompt.
    "chatglm3": {
        "start": "[gMASK]sop",
        "system": "<|system|>\n {system}",
        "user": "<|user|>\n {content}",
        "prompt": "<|assistant|>\n",
        "answer": " {content}{stop}",
        "stop": "</s>",
    },
}


def _template(name: str, pieces: dict[str, str]) -> Template:
    stop_word = None if pieces["stop"] == "{eos}" else pieces["stop"]
    return Template(name, build(**pieces), stop_word, pieces.get("default_system"))


TEMPLATES: dict[str, Template] = {name: _template(name, pieces) for name, pieces in _FORMATS.items()}
