"""What is asked of the teacher: one request for ``n`` samples on one topic.

    build_messages(topic, n, known_questions=(), angles=(), json_mode=False) -> list[{"role", "content"}]
    size_of_answer(n, thinking) -> int      max_tokens that such an answer needs

scripts/sample_teacher.py reads two things back from the text: the line that begins with 主题： and the first "N 条".
"""

from collections.abc import Sequence

MOST_PER_REQUEST = 8  # samples; longer answers meet the caps on output and are cut off

_SYSTEM = "你为中文语言模型编写指令微调数据。你的回复只有一个 JSON {form}：前后不加任何说明，也不用代码块包裹。"

# What is the same for all topics comes first: services read it from their cache, for a tenth of the price.
_ASK = """请围绕一个主题写出中文样本。

每条样本是一个 JSON 对象，恰有三个字段，值都是字符串：
- instruction：给智能助手的身份与任务说明，30 到 150 个字，例如它以什么身份、为谁、解决哪一类问题。
- input：一位真实用户会提出的具体问题，25 到 200 个字，带上他的处境（年级、专业、目的或困难）。
- output：智能助手的完整回答，150 到 800 个字，先给结论，再分点说明可以照做的步骤。

要求：
1. 各条样本的提问者、角度和问题都要不同，彼此不重复。
2. 三个字段都以汉字为主，英文和代码只在离不开时使用。
3. 没有把握的数字、日期、人名、电话和网址一律不写，改为提醒用户以官方渠道为准。
4. 不拒答，不提自己是模型，不说空话套话。
5. 字符串里的换行写成 \\n，引号用中文的“”。

回复的形式：{example}

主题：{topic}
请写出 {n} 条。
{more}"""
_EXAMPLE = '[{"instruction": "……", "input": "……", "output": "……"}]'

_KNOWN_SHOWN = 20  # questions quoted in a follow-up request; more would cost more than they help
_KNOWN_CHARS = 300  # the longest question that passes validation, so questions are quoted whole

# 20-200 + 20-300 + 80-1200 characters at 0.6-0.7 tokens each, JSON around it; a full sample rarely passes 900 tokens.
_TOKENS_PER_SAMPLE = 1000
_TOKENS_CHAT_MAX = 8192  # the smallest cap on output among the services we know
_TOKENS_FOR_THINKING = 16384  # thinking counts towards max_tokens; too few and the answer itself comes back blank


def build_messages(
    topic: str, n: int, known_questions: Sequence[str] = (), angles: Sequence[str] = (), json_mode: bool = False
) -> list[dict[str, str]]:
    """Return chat messages asking for ``n`` samples on ``topic``, other than the questions already accepted.

    angles: who asks and from which side, one for each sample. json_mode: ask for an object, the only form that the JSON
    mode of most services gives.
    """
    more = ""
    if angles:
        more += "各条的提问者与角度依次参考下面各行，与主题不合的可以换：\n" + "".join(f"{angle}\n" for angle in angles)
    if known_questions:
        quoted = "".join(f"- {' '.join(q.split())[:_KNOWN_CHARS]}\n" for q in known_questions[-_KNOWN_SHOWN:])
        more += f"下面这些问题已经有了，不要再写相同或相近的：\n{quoted}"
    form, example = ("对象", f'{{"samples": {_EXAMPLE}}}') if json_mode else ("数组", _EXAMPLE)
    return [
        {"role": "system", "content": _SYSTEM.format(form=form)},
        {"role": "user", "content": _ASK.format(n=n, topic=topic, more=more, example=example)},
    ]


def size_of_answer(n: int, thinking: bool) -> int:
    """Return max_tokens for ``n`` samples: enough for long ones, under the caps of the services."""
    tokens = min(512 + _TOKENS_PER_SAMPLE * n, _TOKENS_CHAT_MAX)
    return tokens + _TOKENS_FOR_THINKING if thinking else tokens
