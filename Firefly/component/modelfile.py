"""Ollama's Modelfile for an exported GGUF: template, stop words, system text and sampling as the model was trained.

Reference: docs/modelfile and docs/template of Ollama. Its templates are Go's text/template, so a Jinja chat template
cannot be copied; ChatML, which most Chinese families use, is written by hand and only when the model's own template
renders that very text.
"""

from pathlib import Path
from typing import Any

from .gguf_export import starts_with_bos, stop_ids
from .prompt import render
from .resolve import read_json

# Ollama adds BOS when it tokenises, so it does not stand here. The system text comes as a first message.
CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


def write_modelfile(path: Path, gguf_name: str, folder: Path, tokenizer: Any) -> bool:
    """Write the Modelfile; False when the chat format is not ChatML, so that it has no TEMPLATE."""
    is_chatml, system = read_chatml(tokenizer)
    lines = [f"FROM ./{gguf_name}"]
    if is_chatml:
        lines.append(f'TEMPLATE """{CHATML}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(i)}"' for i in stop_ids(tokenizer, folder)]
    lines += [f"PARAMETER {name} {value:g}" for name, value in sampling(folder).items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return is_chatml


def read_chatml(tokenizer: Any) -> tuple[bool, str]:
    """Whether the model's template renders ChatML, and the system text that it puts where a conversation has none."""
    if not tokenizer.chat_template:
        return False, ""
    turns = [("user", "一问"), ("assistant", "一答"), ("user", "二问")]
    messages = [{"role": role, "content": text} for role, text in turns]
    bos = tokenizer.bos_token if starts_with_bos(tokenizer) else ""
    bare = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    given = f"{bos}<|im_start|>system\n系统<|im_end|>\n{bare}"
    if render(tokenizer, [{"role": "system", "content": "系统"}, *messages], True) != given:
        return False, ""
    text = render(tokenizer, messages, True).removeprefix(bos)
    if not text.endswith(bare):
        return False, ""
    system = text.removesuffix(bare)
    start, end = "<|im_start|>system\n", "<|im_end|>\n"
    if system and not (system.startswith(start) and system.endswith(end)):
        return False, ""
    return True, system.removeprefix(start).removesuffix(end)


def sampling(folder: Path) -> dict[str, float]:
    """The values of generation_config.json under Ollama's names; its own repeat penalty of 1.1 is switched off."""
    path = folder / "generation_config.json"
    given = read_json(path) if path.exists() else {}
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
    values = {ollama: given[ours] for ours, ollama in names.items() if given.get(ours) is not None}
    if not given.get("do_sample"):
        values = {"temperature": 0}
    return values | {"repeat_penalty": given.get("repetition_penalty") or 1}
