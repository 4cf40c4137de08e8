"""What in a dropped record its reason is about: the phrase, the number. Looked up again by the plain functions, for few."""

from typing import Any

from .chatml import BEGIN, END, Fields
from .pii import find_pii
from .quality import Gates, chinese_ratio, find_in_output


def evidence(fields: Fields, reason: str, gates: Gates | None) -> Any:
    """Return a phrase or a number; fields: normalised. An empty string where there is nothing to show."""
    if reason == "format_marker":
        return BEGIN if any(BEGIN in text for _, text in fields) else END
    if reason.startswith("pii_"):
        items = [(item.kind, text[item.start : item.end]) for _, text in fields for item in find_pii(text)]
        items.sort(key=lambda item: f"pii_{item[0]}" != reason)  # of two that overlap, only the longer one is found
        return items[0][1] if items else ""
    name, _, why = reason.partition("_")
    texts = [text for field, text in fields if field == name]
    if gates is None or not texts:
        return ""
    if why in ("too_short", "too_long"):
        low, high = gates.lengths[name]
        length = next(len(text) for text in texts if not low <= len(text) <= high)
        return f"{length} 字，应为 {low}–{high}"
    if why == "low_chinese":
        worst = min(map(chinese_ratio, texts))
        return f"中文占比 {worst:.3f}，下限 {gates.min_chinese_ratio:g}"
    found = (find_in_output(text, gates.max_urls, gates.drop_patterns) for text in texts)
    words = next((words for _, words in filter(None, found)), "")
    return f"{len(words.split())} 个网址，上限 {gates.max_urls}" if why == "too_many_urls" else words
