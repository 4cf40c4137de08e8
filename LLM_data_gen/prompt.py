"""What is asked of the teacher: one request for ``n`` samples on one topic.

    build_messages(topic, n, known_questions=()) -> list[{"role", "content"}]
    size_of_answer(n, thinking) -> int      max_tokens that such an answer needs

scripts/sample_teacher.py reads two things back from the text: the line that begins with 主题： and the first "N 条".
"""

from collections.abc import Sequence

_SYSTEM = "你为中文语言模型编写指令微调数据。你的回复只有一个 JSON 数组：前后不加任何说明，也不用代码块包裹。"

_ASK = """请围绕一个主题写出 {n} 条中文样本，彼此不重复。

主题：{topic}

每条样本是一个 JSON 对象，恰有三个字段，值都是字符串：
- instruction：给智能助手的身份与任务说明，30 到 150 个字，例如它以什么身份、为谁、解决哪一类问题。
- input：一位真实用户会提出的具体问题，25 到 200 个字，带上他的处境（年级、专业、目的或困难）。
- output：智能助手的完整回答，150 到 800 个字，先给结论，再分点说明可以照做的步骤。

要求：
1. {n} 条样本的提问者、角度和问题都要不同。
2. 三个字段都以汉字为主，英文和代码只在离不开时使用。
3. 没有把握的数字、日期、人名、电话和网址一律不写，改为提醒用户以学校官方渠道为准。
4. 不拒答，不提自己是模型，不说空话套话。
5. 字符串里的换行写成 \\n，引号用中文的“”。
{known}
回复的形式：[{{"instruction": "……", "input": "……", "output": "……"}}]"""

_KNOWN_SHOWN = 20  # questions quoted in a follow-up request; more would cost more than they help
_KNOWN_CHARS = 300  # the longest question that passes validation, so questions are quoted whole

# 20-200 + 20-300 + 80-1200 characters at 0.6-0.7 tokens each, JSON around it; a full sample rarely passes 900 tokens.
_TOKENS_PER_SAMPLE = 1000
_TOKENS_CHAT_MAX = 8192  # the smallest cap on output among the services we know
_TOKENS_FOR_THINKING = 16384  # thinking counts towards max_tokens; too few and the answer itself comes back blank


def build_messages(topic: str, n: int, known_questions: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return chat messages asking for ``n`` samples on ``topic``, other than the questions already accepted."""
    known = ""
    if known_questions:
        quoted = "\n".join(f"- {' '.join(q.split())[:_KNOWN_CHARS]}" for q in known_questions[-_KNOWN_SHOWN:])
        known = f"6. 下面这些问题已经有了，不要再写相同或相近的：\n{quoted}\n"
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _ASK.format(n=n, topic=topic, known=known)},
    ]


def size_of_answer(n: int, thinking: bool) -> int:
    """Return max_tokens for ``n`` samples: enough for long ones, under the caps of the services."""
    tokens = min(512 + _TOKENS_PER_SAMPLE * n, _TOKENS_CHAT_MAX)
    return tokens + _TOKENS_FOR_THINKING if thinking else tokens
