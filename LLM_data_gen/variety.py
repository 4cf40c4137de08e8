"""Ask for questions that are not alike. near.py keeps those that came apart, similarity.py says how alike they are.

angles(topic, n, first=0, seed=0) -> list   who asks, in what situation, about which side of the topic: for the prompt
"""

import math
import random

# The three numbers have no common factor, so that stepping through all three lists at once meets every combination before
# any comes again (the Chinese remainder theorem), and nine lines in a row share no role, situation or angle.
_ROLES, _SITUATIONS, _ANGLES = (
    words.split()
    for words in (
        "刚接触的新手 大一新生 备考的高中生 在读研究生 高年级本科生 快毕业的学生 学生家长 中学教师 大学教师 社区工作者 "
        "刚入职的新人 有经验的从业者 准备转行的人 部门负责人 小公司的老板 自由职业者 写报道的记者 做调研的人 自学的爱好者 "
        "退休的老人 刚到外地的人 在华留学生 替家人打听的人 社团志愿者 做科普的博主",
        "时间很紧 预算有限 试过但不顺利 听到几种说法 身边无人可问 手头资料不全 正在做计划 要讲给别人听 怕走弯路",
        "从哪里开始 具体的步骤 要做哪些准备 常见的错误 几种选择的比较 背后的原因 一个实际例子 时间怎样安排 花费与投入 "
        "风险与注意事项 怎样判断好坏 出了问题怎么办 容易混淆的概念 有哪些规定 长远的影响 怎样更进一步",
    )
)

_STEPS = [
    (len(items), [step for step in range(1, len(items)) if math.gcd(step, len(items)) == 1])
    for items in (_ROLES, _SITUATIONS, _ANGLES)
]


def angles(topic: str, n: int, first: int = 0, seed: int = 0) -> list[str]:
    """Lines ``first`` to ``first + n`` of those of ``topic``, each a person and what he wants to know, in 30 characters.

    A topic has 3,600 of them in an order of its own; any nine in a row have no role, situation or angle in common.
    """
    rng = random.Random(f"{seed} {topic}")
    (role, by_role), (situation, by_situation), (angle, by_angle) = [
        (rng.randrange(size), rng.choice(steps)) for size, steps in _STEPS
    ]
    return [
        f"提问者是{_ROLES[(role + i * by_role) % len(_ROLES)]}，"
        f"{_SITUATIONS[(situation + i * by_situation) % len(_SITUATIONS)]}，"
        f"角度是{_ANGLES[(angle + i * by_angle) % len(_ANGLES)]}"
        for i in range(first, first + n)
    ]
