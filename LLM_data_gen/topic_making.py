"""A list of topics: how it is asked for, what is accepted, and that none comes twice.

category_messages(subject) / topic_messages(...)   what the teacher is told
clean(text) -> str; check_topic(topic) -> reason   numbering off; None to keep, else a key of REASONS
read_categories(text); own_categories(given)      from an answer, from --categories
Topics(subject, n, categories)                     what is kept so far: plan() says what to ask next, take(entry) keeps
write_topics(topics, out, sources)                 the file that topics.py reads, and the pages beside it
"""

import contextlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from sft_data.errors import UserError
from sft_data.quality import chinese_ratio, tidy
from sft_data.storage import all_together, write_atomically

from .topic_answers import NUMBER, read_items, sources_of

REASONS = {
    "duplicate": "重复",
    "near_duplicate": "相近",
    "too_short": "太短",
    "too_long": "太长",
    "not_chinese": "中文太少",
    "filler": "凑数的话",
    "markup": "含网址或格式标记",
    "surplus": "多于所要",
}
SHORTEST, LONGEST = 8, 60  # characters of a topic
MOST_PER_REQUEST = 40
_MIN_CHINESE = 0.6  # the share that the samples themselves must have
_BARREN = 2  # answers in a row with nothing new, and a category is asked no more
_KNOWN_SHOWN, _CLASHES_SHOWN = 60, 20  # topics quoted in a follow-up request

# Share of character pairs in common (Jaccard), without the subject's name, from which two topics are one. On the 145 of
# topics.txt, written by hand, the closest pair has 0.22; edits at 1, 2, 3 places leave 100, 100, 81 % of them at 0.5 or
# above. "A的课程主线与学习次序" and "B的课程主线与学习次序" count as one, too: their questions would differ by a name.
NEAR = 0.5
_CONTAINED = 6  # characters; a topic at least so long that lies whole inside another says nothing new

_SYSTEM = "你为中文语言模型的微调数据拟定主题。你的回复只有一个 JSON 数组：前后不加任何说明，也不用代码块包裹。"
_CATEGORIES = """请把围绕“{subject}”的主题分成 8 到 15 个类别。
要求：类别之间不重叠，合起来覆盖不同的人会关心的各个方面；每个类别名 2 到 12 个字，以汉字为主，不编号；不要“其他”“综合”这类兜底的类别。
回复的形式：["类别甲", "类别乙"]"""
_TOPICS = """请围绕“{subject}”拟定 {n} 个主题，彼此不重复。

类别：{category}
{others}
要求：
1. 每个主题 8 到 40 个字，以汉字为主，具体到能据此写出几个不同的问题。
2. 角度各不相同：换不同的人、阶段、场合和困难，不要只在同一个句式里换词。
3. 主题只提出方向，不写未经核实的数字、日期与结论。
4. 不编号，不写“以上”“其他”“等等”这类凑数的话。
{known}{form}"""
_FORM = '回复的形式：["……", "……"]'
_FORM_WEB = """先联网搜索这个类别，主题要来自搜到的内容；sources 写所依据网页的完整网址，没有就写空数组，不要编造。
回复的形式：[{"topic": "……", "sources": ["https://……"]}]"""


def category_messages(subject: str) -> list[dict[str, str]]:
    user = _CATEGORIES.format(subject=subject)
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]


def topic_messages(
    subject: str, category: str, others: list[str], n: int, known: list[str], web: bool
) -> list[dict[str, str]]:
    """Ask for ``n`` topics of ``category``, apart from ``known`` and from what belongs to the ``others``."""
    quoted = "\n".join(f"- {topic}" for topic in known)
    user = _TOPICS.format(
        subject=subject,
        n=n,
        category=category,
        others=f"另有这些类别，不要写属于它们的主题：{'、'.join(others)}\n" if others else "",
        known=f"5. 下面这些已经有了，不要再写相同或相近的：\n{quoted}\n" if known else "",
        form=_FORM_WEB if web else _FORM,
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]


_LEADING = re.compile(rf"^(?:{NUMBER}|#+\s*|主题\s*\d*\s*[:：]\s*)")
_CITED = re.compile(r"\(?\[[^\[\]]*\]\(https?://[^)\s]*\)\)?|【\d+[^】]*】|\[(?:citation:|ref_?)?\d+\]|\ue200.*?\ue201")
_QUOTES = ("“”", '""', "''", "「」", "‘’")


def clean(text: str) -> str:
    """Return the topic without numbering, quotes, emphasis, citation marks and closing punctuation."""
    text = _CITED.sub("", " ".join(tidy(text).split()))
    text = re.sub(r"\*\*|__|`", "", text).strip(" |")
    while match := _LEADING.match(text):
        text = text[match.end() :]
    text = text.rstrip("。；;，,、 ")
    if text[:1] + text[-1:] in _QUOTES and not set(text[1:-1]) & set("".join(_QUOTES)):
        text = text[1:-1]  # “规格严格”与“功夫到家” keeps its four
    return text.strip()


_FILLER = re.compile(
    r"^(?:以上|其他|其它|等等)"
    r"|(?:以上|其他|其它)(?:的)?(?:主题|方面|内容|问题|话题|类别|都|均|各|相关)"
    r"|(?:等等|\.\.\.|…|待补充)$"
)
_MARKUP = re.compile(r"https?:|www\.|<\||[\x00-\x1f\x7f\ud800-\udfff\ufffd{}]|\]\(")


def check_topic(topic: str, shortest: int = SHORTEST, longest: int = LONGEST) -> str | None:
    """Return None to keep a cleaned topic, else the reason to drop it."""
    if _MARKUP.search(topic):
        return "markup"
    if _FILLER.search(topic):
        return "filler"
    if len(topic) < shortest:
        return "too_short"
    if len(topic) > longest:
        return "too_long"
    return "not_chinese" if chinese_ratio(topic) < _MIN_CHINESE else None


def read_categories(text: str) -> list[str]:
    """Return the distinct category names in an answer, at most 15."""
    names = [clean(part) for item in read_items(text) for part in re.split("[、,，]", item.text)]
    return list(dict.fromkeys(name for name in names if check_topic(name, 2, 20) is None))[:15]


def own_categories(given: str | None) -> list[str]:
    """Return what --categories gives, a list or a file; [] when the teacher is to name them."""
    if given is None:
        return []
    path, text = Path(given), given
    with contextlib.suppress(OSError):  # a long list is no name of a file
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise UserError(f"{path}：不是 UTF-8 编码的文本；请另存为 UTF-8。") from None
            text = "\n".join(line for line in lines if not line.strip().startswith("#"))
        elif path.suffix in (".txt", ".md", ".csv"):
            raise UserError(f"{path}：找不到类别文件；请检查路径，或直接写：--categories 校史,专业,生活。")
    names = dict.fromkeys(" ".join(name.split()) for name in re.split(r"[,，、;；\n]", text))
    names.pop("", None)
    if not names:
        raise UserError("--categories 里没有类别；请用逗号隔开，例如 --categories 校史,专业,生活。")
    if long := [name for name in names if len(name) > 60]:
        raise UserError(f"--categories 里的“{long[0][:20]}……”有 {len(long[0])} 个字，不像类别；请用逗号隔开。")
    return list(names)


class Topics:
    """What is kept: ``kept[category]`` is a list of (topic, sources); every topic that came is kept or in ``dropped``."""

    def __init__(self, subject: str, n: int, categories: list[str]):
        self.subject, self.n, self.categories = subject, n, categories
        self.kept: dict[str, list[tuple[str, list[dict]]]] = {category: [] for category in categories}
        self.dropped: Counter[str] = Counter()
        self.returned = self.unreadable = 0
        self.barren: Counter[str] = Counter()
        self._clashes: dict[str, list[str]] = defaultdict(list)  # topics of any category that an answer came too near
        self._name = _letters(subject)
        self._forms: list[str] = []
        self._texts: list[str] = []
        self._pairs: list[int] = []
        self._with_pair: dict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._texts)

    def plan(self) -> dict[str, int]:
        """How many to ask of each category: what is missing goes where there is least, unless nothing new comes there."""
        open_ = [category for category in self.categories if self.barren[category] < _BARREN]
        asked: Counter[str] = Counter()
        for _ in range(self.n - len(self) if open_ else 0):
            asked[min(open_, key=lambda category: len(self.kept[category]) + asked[category])] += 1
        return {category: min(asked[category], MOST_PER_REQUEST) for category in open_ if asked[category]}

    def known(self, category: str) -> list[str]:
        """What a follow-up request for ``category`` should quote."""
        own = [topic for topic, _ in self.kept[category][-_KNOWN_SHOWN:]]
        return list(dict.fromkeys([*own, *self._clashes[category][-_CLASHES_SHOWN:]]))

    def take(self, entry: dict[str, Any]) -> None:
        """Keep what is new in an answer (an entry of the journal), in its order; count every other topic by reason."""
        category, items = entry["topic"], read_items(entry["text"], entry.get("status", "ok") != "ok")
        self.unreadable += not items
        kept, before = self.kept[category], len(self)
        starts = [item.at for item in items]
        for place, item in enumerate(items):
            topic = clean(item.text)
            reason = check_topic(topic) or self._repeats(topic, category)
            if reason is None and (len(self) - before >= entry["asked"] or len(self) >= self.n):
                reason = "surplus"
            self.returned += 1
            if reason:
                self.dropped[reason] += 1
                continue
            self._note(topic)
            kept.append((topic, sources_of(item, place, starts, entry.get("sources", []))))
        self.barren[category] = 0 if len(self) > before or not items else self.barren[category] + 1

    def _repeats(self, topic: str, category: str) -> str | None:
        form = self._form(topic)
        pairs = _pairs(form)
        shared = Counter(index for pair in pairs for index in self._with_pair[pair])
        for index, common in shared.items():
            other = self._forms[index]
            near = common >= NEAR * (len(pairs) + self._pairs[index] - common)
            if near or (common >= _CONTAINED - 1 and (form in other or other in form)):
                self._clashes[category].append(self._texts[index])
                return "duplicate" if form == other else "near_duplicate"
        return None

    def _note(self, topic: str) -> None:
        form = self._form(topic)
        pairs = _pairs(form)
        for pair in pairs:
            self._with_pair[pair].append(len(self._texts))
        self._forms.append(form)
        self._texts.append(topic)
        self._pairs.append(len(pairs))

    def _form(self, topic: str) -> str:
        """What is compared: letters only, without the subject's name, which every topic may carry."""
        letters = _letters(topic)
        return letters.replace(self._name, "") or letters


def _letters(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKC", text).casefold() if char.isalnum())


def _pairs(form: str) -> set[str]:
    return {form[i : i + 2] for i in range(max(1, len(form) - 1))}


def write_topics(topics: Topics, out: Path, sources: Path | None) -> None:
    """Write the topics file and, where asked for, JSONL of topic, category and sources: both, or neither."""
    lines = [f"# {topics.subject}：{len(topics)} 个主题，一行一个；# 开头的行和空行会被略过。\n"]
    records = []
    for category, kept in topics.kept.items():
        if kept:
            lines.append(f"\n# {category}\n" + "".join(f"{topic}\n" for topic, _ in kept))
        records += [{"topic": topic, "category": category, "sources": pages} for topic, pages in kept]
    with all_together() as waiting:
        with write_atomically(out, waiting) as file:
            file.write("".join(lines).encode())
        if sources:
            with write_atomically(sources, waiting) as file:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
