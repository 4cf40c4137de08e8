import re

from LLM_data_gen.prompt import build_messages, size_of_answer


def test_request_names_topic_and_count_where_the_sample_teacher_looks():
    system, user = build_messages("哈工大的 {大括号} 与 100% 主题", 4)
    assert (system["role"], user["role"]) == ("system", "user")
    assert re.search(r"主题：(.+)", user["content"])[1] == "哈工大的 {大括号} 与 100% 主题"
    assert re.search(r"(\d+)\s*条", user["content"])[1] == "4"


def test_follow_up_quotes_known_questions_whole_on_one_line_and_at_most_twenty():
    questions = [f"问题{i}\n第二行" + "长" * 200 for i in range(30)]
    content = build_messages("主题", 2, questions)[1]["content"]
    quoted = [line for line in content.splitlines() if line.startswith("- 问题")]
    assert len(quoted) == 20
    assert quoted[-1] == "- " + " ".join(questions[-1].split())


def test_thinking_gets_room_beside_the_answer():
    assert size_of_answer(6, False) == 6512
    assert size_of_answer(100, False) == 8192
    assert size_of_answer(6, True) > size_of_answer(6, False) + 8000
