"""Read a topics file: one topic a line, # comments and blank lines skipped, repeats dropped."""

import re
from collections.abc import Callable
from pathlib import Path

from sft_data.chatml import BEGIN, END
from sft_data.errors import UserError

_LONGEST = 300  # characters; a longer line is most likely not a list of topics
_FORBIDDEN = re.compile(
    rf"[\x00-\x1f\x7f]|{re.escape(BEGIN)}|{re.escape(END)}"
)  # no sample that repeats it is accepted


def read_topics(path: Path, say: Callable[[str], None]) -> list[str]:
    """Return the topics in ``path``, in order, white space normalised. UserError: no such file, not UTF-8, no topic."""
    if not path.is_file():
        raise UserError(f"{path}：找不到主题文件；请用 --topics-file 给出一行一个主题的 UTF-8 文本文件。")
    try:
        lines = path.read_text(encoding="utf-8").split(
            "\n"
        )  # not splitlines: it ends lines at characters that are blanks
    except UnicodeDecodeError:
        raise UserError(
            f"{path}：不是 UTF-8 编码的文本；若是 GBK，请先转换：iconv -f GB18030 -t UTF-8 原文件 > 新文件。"
        ) from None
    topics: dict[str, None] = {}
    repeats = 0
    for number, line in enumerate(lines, 1):
        topic = " ".join(line.replace("\ufeff", "").split())
        if not topic or topic.startswith("#"):
            continue
        if _FORBIDDEN.search(topic):
            raise UserError(f"{path}:{number}：这一行里有控制字符或 ChatML 的格式标记（{topic[:40]!r}）；请删去它们。")
        if len(topic) > _LONGEST:
            raise UserError(
                f"{path}:{number}：这一行有 {len(topic)} 个字符，不像主题；每行写一个不超过 {_LONGEST} 字的主题。"
            )
        repeats += topic in topics
        topics[topic] = None
    if not topics:
        raise UserError(f"{path}：里面没有主题；请每行写一个主题。")
    if repeats:
        say(f"{path}：{repeats} 行与前面的主题相同，已略过。")
    return list(topics)
