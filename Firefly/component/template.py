"""Put a chat template on a tokenizer, after checking that the two fit. The formats are in template_registry.py.

``use_template(tokenizer, "minicpm4")``, or ``"auto"`` to keep the one that the tokenizer brings.
"""

import difflib
import logging
import re
from typing import Any

from .errors import UserError
from .template_registry import TEMPLATES, Template

logger = logging.getLogger("firefly")
__all__ = ["TEMPLATES", "Template", "get_template", "stop_token_ids", "template_of", "use_template"]


def get_template(name: str) -> Template:
    """Return the template called ``name``.

    Raises:
        UserError: no such template; names the nearest ones and all.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = difflib.get_close_matches(str(name).lower(), TEMPLATES, n=3)
    hint = f"是不是想写 {'、'.join(near)}？" if near else ""
    raise UserError(
        f"template_name={name!r} 没有这个模板，{hint}可用的有：auto（用分词器自带的对话模板）、{'、'.join(TEMPLATES)}。"
    )


def use_template(tokenizer: Any, name: str) -> str | None:
    """Set ``tokenizer.chat_template`` in place and return the stop word; ``auto`` keeps what is there, returns None.

    Raises:
        UserError: unknown name; ``auto`` without a template of its own; the tokenizer lacks the template's BOS, or
            cuts its stop word into several tokens (then the model would never learn to stop).
    """
    if name == "auto":
        if not tokenizer.chat_template:
            raise UserError(
                "template_name='auto'，但这个分词器没有自带对话模板，"
                f"请按模型家族写明 template_name，可用的有：{'、'.join(TEMPLATES)}。"
            )
        return None
    template = get_template(name)
    stop_word = template.stop_word or tokenizer.eos_token
    trouble = _misfit(tokenizer, template)
    if trouble:
        raise UserError(f"template_name={name!r} 与这个分词器不配：{trouble}。{_advice(tokenizer)}")
    if strangers := _of_another_family(tokenizer, template):
        logger.warning(
            "注意：模型自带的对话模板用 %s，template_name=%r 一个也不用；若不是有意换模板，%s",
            "、".join(strangers), name, _advice(tokenizer),
        )  # fmt: skip
    tokenizer.chat_template = template.chat_template
    return stop_word


def stop_token_ids(tokenizer: Any, model: Any, stop_word: str | None) -> list[int]:
    """What the base model stopped on, the tokenizer's EOS and the template's stop word, for generation_config.json."""
    base = model.generation_config.eos_token_id
    ids = [] if base is None else [base] if isinstance(base, int) else list(base)
    ids += [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop_word) if stop_word else None]
    return list(dict.fromkeys(i for i in ids if i is not None))


def template_of(tokenizer: Any) -> str | None:
    """Return the name of the template that stands on the tokenizer, or None when it is not one of ours."""
    return next((name for name, t in TEMPLATES.items() if t.chat_template == tokenizer.chat_template), None)


def _misfit(tokenizer: Any, template: Template) -> str | None:
    """Return None when the tokenizer can carry the template, else the reason in Chinese."""
    stop_word = template.stop_word or tokenizer.eos_token
    if stop_word is None:
        return "模板用 eos_token 结束回答，而分词器没有 eos_token"
    if not _is_one_token(tokenizer, stop_word):
        pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(stop_word, add_special_tokens=False))
        return f"停止词 {stop_word} 应是一个 token，实际成了 {len(pieces)} 个 {pieces}，模型学不会停"
    if "bos_token" in template.chat_template and tokenizer.bos_token is None:
        return "模板以 bos_token 开头，而分词器没有 bos_token"
    return None


def _of_another_family(tokenizer: Any, template: Template) -> list[str]:
    """The special words that the tokenizer's own template is made of, when the chosen one has none of them."""
    own = {word for word in _words(tokenizer.chat_template or "") if _is_one_token(tokenizer, word)}
    own -= {tokenizer.bos_token, tokenizer.eos_token}
    return [] if own & (_words(template.chat_template) | {template.stop_word}) else sorted(own)


def _words(chat_template: str) -> set[str]:
    return set(re.findall(r"<[^<>\s]+>|\[gMASK\]", chat_template))


def _is_one_token(tokenizer: Any, word: str) -> bool:
    ids = tokenizer.encode(word, add_special_tokens=False)
    return len(ids) == 1 and (ids[0] != tokenizer.unk_token_id or word == tokenizer.unk_token)


def _advice(tokenizer: Any) -> str:
    """Name the templates whose special words this tokenizer knows best; one that the model's name speaks of leads."""
    path = str(getattr(tokenizer, "name_or_path", "")).lower()

    def fitness(template: Template) -> tuple[bool, int]:
        words = _words(template.chat_template)
        known = sum(_is_one_token(tokenizer, word) for word in words)
        return template.name in path, 2 * known - len(words)

    fitting = [t for t in TEMPLATES.values() if t.stop_word and _misfit(tokenizer, t) is None]
    best = max(map(fitness, fitting), default=(False, 0))
    names = [t.name for t in fitting if fitness(t) == best > (False, 0)][:3]
    if not names and tokenizer.eos_token:
        names = ["default"]
    choices = [f"template_name={name!r}" for name in names]
    if tokenizer.chat_template:
        choices.append("'auto'（用分词器自带的对话模板）")
    return f"请改用 {'、'.join(choices)}，或换成模板所属家族的模型。" if choices else "请换成模板所属家族的模型。"
