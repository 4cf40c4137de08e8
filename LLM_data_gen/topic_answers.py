"""What comes back when topics are asked for: entries of a list, and with a search tool the pages that they rest on.

read_items(text, cut) -> list[Item]                JSON or lines, fenced, with prose around; [] when there is nothing
search_body(teacher, messages, temperature)        POST /responses with the service's search tool
read_response(data) -> (Answer, pages, searched)   what such a request returns
failure_in(data); has_no_search(refusal)           what it says when it fails
sources_of(item, place, starts, pages)             the pages of one topic
"""

import json
import re
from bisect import bisect_right
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .cost import usage_of
from .settings import Teacher
from .wire import Answer


class Item(NamedTuple):
    """A topic as it stands in an answer: the text, URLs that the model wrote beside it, and where it begins."""

    text: str
    urls: list[str]
    at: int


# 1. 2、 (3) ① 一、 and bullets; not 985、211, 2.5D, 8:30, 一、二年级
NUMBER = (
    r"(?:[-*+]\s+|[-•·●▪–—]\s*"
    r"|[（(【\[]?\d{1,2}(?:[、）)】\]]|[.．:：](?!\d))\s*"
    r"|[①-⑳]\s*|第?[一二三四五六七八九十]{1,3}[、.．](?![一二三四五六七八九十])\s*)"
)
_BULLET = re.compile(rf"\s*(?:\*\*|__)?{NUMBER}")
_JSON_START = re.compile(r"[\[{](?=\s*[\"\[{])")
_MOST_DAMAGED = 20  # false starts in one answer: each costs a pass over the text
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_URL = re.compile(r"https?://[^\s\"'<>\\）)\]】，。；]+")
_TOPIC_KEYS = ("topic", "主题", "title", "标题", "name", "category", "类别")


def read_items(text: str, cut: bool = False) -> list[Item]:
    """Find the entries of the list in ``text``: a JSON array (sound or damaged), or else its bulleted or bare lines.

    cut: the answer stops before its end, so the last line is half a topic. (Half a JSON string shows by itself.)
    """
    shown = _THOUGHTS.sub(lambda match: " " * len(match[0]), text)  # the places of what follows stay
    found = _read_json(shown)
    if found is None:
        found = [(line, _URL.findall(line)) for line in _list_lines(shown)[: -1 if cut else None]]
    items, cursor = [], 0
    for entry, urls in found:
        at = shown.find(entry, cursor)
        items.append(Item(entry, urls, cursor if at < 0 else at))
        cursor = cursor if at < 0 else at + len(entry)
    return items


def _read_json(text: str) -> list[tuple[str, list[str]]] | None:
    """Return what all JSON in ``text`` lists; None when it holds none. Whole objects of a broken array are found too."""
    decoder = json.JSONDecoder(strict=False)
    found, position, damaged = [], 0, []
    for match in _JSON_START.finditer(text):
        if match.start() < position:
            continue  # inside what has been read already
        try:
            value, position = decoder.raw_decode(text, match.start())
            found += _flatten(value)
        except (ValueError, RecursionError):
            damaged.append(match.start())
            if len(damaged) >= _MOST_DAMAGED:
                break
    return found or (_repair(text[damaged[0] :]) if damaged else None)


def _repair(text: str) -> list[tuple[str, list[str]]] | None:
    """Salvage a damaged list with json-repair (10 ms, so only then); an entry that lost its end is dropped."""
    import json_repair

    try:
        found = _flatten(json_repair.loads(text, skip_json_loads=True))
    except (ValueError, RecursionError, IndexError):
        return None
    whole = re.search(r"[\]}\"][\s,`]*$", text)
    return (found if whole else found[:-1]) or None


def _flatten(value: Any) -> list[tuple[str, list[str]]]:
    """Return (topic, URLs beside it) of all that ``value`` lists: strings, objects with a topic, lists under any name."""
    if isinstance(value, str):
        return [(value, [])]
    if isinstance(value, list):
        return [entry for part in value for entry in _flatten(part)]
    if not isinstance(value, dict):
        return []
    for key in _TOPIC_KEYS:
        if isinstance(value.get(key), str):
            return [(value[key], _URL.findall(json.dumps(value, ensure_ascii=False)))]
    parts = [part for key, part in value.items() if not isinstance(part, str) or str(key).isdigit()]
    return _flatten(parts)


def _list_lines(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", "```", "|--"))]
    bulleted = [line for line in lines if _BULLET.match(line)]
    if len(bulleted) > 1:
        return bulleted
    return [line for line in lines if not line.rstrip().endswith(("：", ":", "。", "！", "!"))]  # those are prose


def search_body(teacher: Teacher, messages: list[dict[str, str]], temperature: float | None) -> dict[str, Any]:
    """Return the body of POST /responses with the service's search tool.

    OpenAI (developers.openai.com/api/docs/guides/tools-web-search), 百炼 (help.aliyun.com/zh/model-studio/
    compatibility-with-openai-responses-api) and 火山方舟 (its page 联网搜索 Web Search) have web_search. DeepSeek has
    deepseek_web_search (api-docs.deepseek.com/guides/web_tools, which shows its type and name for the Messages API and says
    that the Responses API takes it); users report that deepseek-flash passes over web_search in silence (GitHub,
    earendil-works/pi issue 9952, 2026-09-23). All looked up 2026-11-26, none tried with a key. Only OpenAI has to be asked
    for the pages it looked at; others may refuse that field.
    """
    host = urlsplit(teacher.base_url).hostname or ""
    name = "deepseek_web_search" if host == "api.deepseek.com" else "web_search"
    body: dict[str, Any] = {"model": teacher.model, "input": messages, "tools": [{"type": name}]}
    if name != "web_search":
        body["tools"][0]["name"] = name
    if host == "api.openai.com":
        body["include"] = ["web_search_call.action.sources"]
    if temperature is not None:  # models that think refuse it, so only where it was asked for
        body["temperature"] = temperature
    if teacher.thinking is not None:
        body["thinking"] = {"type": "enabled" if teacher.thinking else "disabled"}
    return body


def read_response(data: dict[str, Any]) -> tuple[Answer, list[dict[str, Any]], bool]:
    """Return (answer, pages it rests on, whether a search was made). A page: title, url, and ``at``, its place in the text."""
    texts, pages, searched, length = [], [], False, 0
    for item in _objects(data.get("output")):
        searched = searched or "search" in str(item.get("type"))
        for action in _objects([item.get("action")]):
            pages += [_page(source) for source in [*_objects(action.get("sources")), action]]
        for part in _objects(item.get("content")) if item.get("type") == "message" else ():
            pages += [_page(note, length) for note in _objects(part.get("annotations"))]
            texts.append(str(part.get("text") or ""))
            length += len(texts[-1])
    cut = any(why.get("reason") == "max_output_tokens" for why in _objects([data.get("incomplete_details")]))
    pages = [page for page in pages if page]
    answer = Answer("".join(texts), "length" if cut else "stop", usage=usage_of(data.get("usage")))
    return answer, pages, searched or bool(pages)


def failure_in(data: dict[str, Any]) -> str:
    """What a reply with status 200 complains of, in its own words; "" when it is an answer."""
    error, status = data.get("error"), data.get("status")
    if not error and status not in ("failed", "cancelled"):
        return ""
    said = error.get("message") if isinstance(error, dict) else error
    return str(said or error or status)


def has_no_search(refusal: str) -> str | None:
    """Return the status when ``refusal``, of POST /responses, says that there is no such address or no such tool."""
    status = re.search(r"HTTP (400|404|405|422)\b", refusal)
    said = refusal.partition("服务的原话：")[2]
    about_it = status and (
        status[1] in ("404", "405") or re.search("search|tool|response|联网|工具", said, re.IGNORECASE)
    )
    return status[1] if about_it else None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _page(source: dict[str, Any], shift: int = 0) -> dict[str, Any] | None:
    if not str(source.get("url")).startswith(("http://", "https://")):
        return None
    page = {"title": str(source.get("title") or ""), "url": _plain(source["url"])}
    at = source.get("start_index")
    return page | ({"at": at + shift} if isinstance(at, int) else {})


def _plain(url: str) -> str:
    return re.sub(r"(?:#ws_call.*|[?&]utm_source=openai)$", "", url)  # marks that services add to what they cite


def sources_of(item: Item, place: int, starts: list[int], pages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return {title, url} of the pages of one topic: cited within it, or named beside it and looked at by the service;

    else all pages of its answer. A URL of the model's own that no page confirms counts only when the service tells no
    pages at all, and is marked ``unverified``.
    """
    urls = [_plain(url) for url in item.urls]
    if not pages:
        return [{"title": "", "url": url, "unverified": True} for url in dict.fromkeys(urls)]
    cited = [page for page in pages if "at" in page and bisect_right(starts, page["at"]) - 1 == place]
    own = cited + [page for page in pages if page["url"] in urls]
    titles: dict[str, str] = {}
    for page in [*own, *pages]:
        titles[page["url"]] = titles.get(page["url"]) or page["title"]
    return [{"title": titles[url], "url": url} for url in dict.fromkeys(page["url"] for page in own or pages)]
