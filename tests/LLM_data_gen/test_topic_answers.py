import json

import pytest

from LLM_data_gen.settings import Teacher
from LLM_data_gen.topic_answers import failure_in, has_no_search, read_items, read_response, search_body, sources_of
from LLM_data_gen.topic_making import check_topic, clean

TWO = ["新生报到前的物品清单", "图书馆自习座位怎样预约"]


def dump(value):
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(
    "text",
    [
        dump(TWO),
        f"好的，以下是主题：\n```json\n{dump(TWO)}\n```\n希望有帮助。",
        dump({"topics": TWO}),
        dump([{"topic": TWO[0]}, {"主题": TWO[1], "sources": ["https://a.cn"]}]),
        f"以下是为您拟定的两个主题：\n\n1. {TWO[0]}\n2、**{TWO[1]}**\n\n希望这些主题对您有帮助",
        f"- “{TWO[0]}”\n- {TWO[1]}。",
        f"## 校园生活\n（1）{TWO[0]}\n（2）{TWO[1]}[citation:2]",
        f"好的，主题如下：\n{TWO[0]}\n{TWO[1]}",
        f'<think>先想 ["一个不要的主题在这里"]</think>{dump(TWO)}',
        f'["{TWO[0]}", "{TWO[1]}", "还没有写完的第三个主',
        f'[{{"topic": "{TWO[0]}"}}, {{"topic": "{TWO[1]}"}}, {{"topic": "没写完的主题和它',
        f'["{TWO[0]}"\n"{TWO[1]}",]',
    ],
)
def test_two_topics_are_found_however_they_are_written(text):
    found = [clean(item.text) for item in read_items(text)]
    assert [name for name in found if check_topic(name) is None] == TWO


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["1. " + TWO[0], "2. " + TWO[1], "3. 还没有写完的第三个主"]),
        dump(TWO)[:-1] + ', "还没有写完的第三个主',
    ],
)
def test_the_end_of_an_answer_that_was_cut_is_no_topic(text):
    assert [clean(item.text) for item in read_items(text, cut=True)] == TWO


def test_what_each_service_is_sent():
    def body(url, thinking=None, temperature=None):
        return search_body(Teacher(url, "m", thinking, "k"), [{"role": "user", "content": "x"}], temperature)

    openai = body("https://api.openai.com/v1", temperature=0.5)
    assert openai["include"] == ["web_search_call.action.sources"]
    assert openai["temperature"] == 0.5
    deepseek = body("https://api.deepseek.com", thinking=False)
    assert deepseek["tools"][0]["type"] == "deepseek_web_search"
    assert deepseek["thinking"] == {"type": "disabled"}
    assert "include" not in body("https://ark.cn-beijing.volces.com/api/v3")


def test_a_service_that_tells_no_pages_leaves_the_urls_of_the_model_marked():
    search = {"type": "web_search_call", "action": {"type": "search", "queries": ["哈工大"]}}
    message = {"type": "message", "content": [{"type": "output_text", "text": "x", "annotations": []}]}
    data = {"output": [search, message], "usage": {"input_tokens": 900, "output_tokens": 50}}
    answer, pages, searched = read_response(data)
    assert (answer.text, pages, searched) == ("x", [], True)
    assert answer.usage == {"prompt_tokens": 900, "cached_tokens": 0, "completion_tokens": 50}
    [item] = read_items('[{"topic": "新生报到前的物品清单", "sources": ["https://hit.edu.cn/a"]}]')
    assert sources_of(item, 0, [0], []) == [{"title": "", "url": "https://hit.edu.cn/a", "unverified": True}]


@pytest.mark.parametrize("data", [{}, {"output": None}, {"output": ["x", {"type": "message", "content": None}]}])
def test_odd_responses_are_answers_without_text(data):
    answer, pages, searched = read_response(data)
    assert (answer.text, pages, searched) == ("", [], False)


@pytest.mark.parametrize(
    "change",
    [
        {"usage": [1]},
        {"usage": {"input_tokens": 1, "output_tokens": 2, "input_tokens_details": 5}},
        {"incomplete_details": "x"},
        {"output": [None, "x", {"type": "web_search_call", "action": "search"}]},
        {"output": [{"type": "web_search_call", "action": {"sources": 5}}]},
        {"output": [{"type": "message", "content": "x"}, {"type": "message", "content": [None, {"annotations": "x"}]}]},
        {"output": [{"type": "message", "content": [{"text": 5, "annotations": [None, {"url": 7}]}]}]},
    ],
)
def test_odd_shapes_of_a_reply_do_not_stop_the_run(change):
    answer, pages, _ = read_response({"output": [], **change})
    assert isinstance(answer.text, str)
    assert pages == []


def test_a_failed_reply_is_told_from_an_answer():
    assert failure_in({"status": "failed", "error": {"code": "server_error", "message": "it broke"}}) == "it broke"
    assert failure_in({"error": "no"}) == "no"
    assert failure_in({"status": "failed", "error": None}) == "failed"
    assert failure_in({"status": "completed", "error": None, "output": []}) == ""


def test_only_what_speaks_of_the_tool_means_that_there_is_none():
    said = "http://x/v1/responses 答复 HTTP {}：请检查。服务的原话：{}"
    assert has_no_search(said.format(404, "Not Found")) == "404"
    assert has_no_search(said.format(400, "web_search is not supported with this model")) == "400"
    assert has_no_search(said.format(400, "Content Exists Risk")) is None
    assert has_no_search(said.format(401, "no search for you")) is None
