"""Lines of a topic do not repeat."""

import re
import subprocess
import sys
from pathlib import Path

from LLM_data_gen import variety
from LLM_data_gen.variety import angles

ROOT = Path(__file__).resolve().parents[2]


def test_lines_of_a_topic_are_short_and_do_not_repeat_until_all_were_used():
    sizes = [len(variety._ROLES), len(variety._SITUATIONS), len(variety._ANGLES)]
    assert [len(set(words)) for words in (variety._ROLES, variety._SITUATIONS, variety._ANGLES)] == sizes == [25, 9, 16]
    lines = angles("食堂", 3600)
    assert len(set(lines)) == 3600
    assert max(map(len, lines)) <= 30
    assert angles("食堂", 2, first=3600) == lines[:2]
    form = re.compile(r"提问者是(\w+)，(\w+)，角度是(\w+)")
    for start in range(0, 3600, 9):
        parts = zip(*(form.fullmatch(line).groups() for line in lines[start : start + 9]), strict=True)
        assert [len(set(part)) for part in parts] == [9, 9, 9]


def test_lines_go_on_where_they_stopped_and_depend_on_topic_and_seed():
    assert angles("食堂", 3) + angles("食堂", 3, first=3) == angles("食堂", 6)
    assert angles("食堂", 6) != angles("宿舍", 6)
    assert angles("食堂", 6) != angles("食堂", 6, seed=1)
    assert angles("食堂", 0) == []
    first = {angles(f"主题{i}", 1)[0] for i in range(300)}
    assert len(first) > 250  # topics do not all begin with the same person


def test_lines_are_the_same_in_another_process():
    code = "from LLM_data_gen.variety import angles; print(*angles('食堂', 6), sep='|')"
    said = [
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert said == ["|".join(angles("食堂", 6))] * 2
