import json

import pytest

from LLM_data_gen.answers import Reading, read_answer

GOOD = {
    "instruction": "你是一位熟悉校园生活的学长，请耐心回答新同学的提问。",
    "input": "我是从南方来的新生，第一次在哈尔滨过冬，应该准备些什么衣服呢？",
    "output": "建议按三层来穿：里层吸汗，中层保暖，外层防风。" * 5,
}
TWO = [GOOD, {**GOOD, "input": "我是从海边来的新生，冬天在室外走路怕滑倒，应该怎么选鞋子呢？"}]


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


TEXT = dumps(TWO)
DRAFT = dumps([{field: f"草稿：{value}" for field, value in GOOD.items()}])


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        json.dumps(TWO, indent=2),
        f"```json\n{TEXT}\n```",
        f"好的，以下是[两条]样本：\n{TEXT}\n希望对您有帮助。",
        f"格式 {{如下}}：```{TEXT}```以上[共两条]。",
        dumps({"data": TWO}),
        dumps({"samples": TWO}),
        dumps({"count": 2, "samples": TWO}),
        dumps({"data": {"samples": TWO}}),
        dumps({"1": TWO[0], "2": TWO[1]}),
        dumps([TWO[:1], TWO[1:]]),
        dumps({"samples": TEXT}),
        dumps(TEXT),
        dumps(TEXT)[1:-1],
        "\n".join(map(dumps, TWO)),
        "\n".join(f"第{i}条：\n```json\n{dumps(sample)}\n```" for i, sample in enumerate(TWO, 1)),
        "\n".join(f"```\n[{dumps(sample)}]\n```" for sample in TWO),
        "\ufeff  \n" + TEXT,
        TEXT.replace("}, {", "} {"),
        TEXT.replace("}, {", "}，{"),
    ],
    ids=[
        "plain", "escaped", "fenced", "prose", "braces", "data", "object", "count", "nested", "numbered", "arrays", "string in object",
        "string", "string without quotes", "lines", "fences", "arrays in fences", "bom", "comma missing", "full-width comma",
    ],
)  # fmt: skip
def test_samples_are_found_in_every_wrapping(answer):
    assert read_answer(answer) == Reading(TWO, None)


@pytest.mark.parametrize(
    "answer",
    [
        f"<think>先想 [a] 再写：{DRAFT}</think>\n{TEXT}",
        f"<think>\n{DRAFT}\n</think>{TEXT}",
        f"<think>写完要有 </think> 吗？\n{DRAFT}\n</think>\n\n好的：\n{TEXT}",
        f"先写一条 {DRAFT} 再改\n</think>\n\n{TEXT}",  # the server's template opened it
        f"<thinking>{DRAFT}</thinking>\n```json\n{TEXT}\n```",
        f"<seed:think>{DRAFT}</seed:think>{TEXT}",
        f"[THINK]{DRAFT}[/THINK]{TEXT}",
        f"◁think▷{DRAFT}◁/think▷{TEXT}",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}",
    ],
    ids=["think", "on one line", "named in it", "not opened", "thinking", "seed", "mistral", "kimi", "harmony"],
)
def test_thinking_in_the_text_is_never_read(answer):
    assert read_answer(answer) == Reading(TWO, None)


def test_thinking_that_never_ends_has_no_samples():
    assert read_answer(f"<think>先写一条 {DRAFT} 再") == Reading([], "cut_off")
    assert read_answer(f"<think>{DRAFT}</think>\n") == Reading([], "blank")


def test_a_sample_may_speak_of_thinking():
    about = [{**GOOD, "output": "推理模型先写 <think>，再写 </think>，\n然后作答。" * 5}]
    assert read_answer(dumps(about)) == Reading(about, None)
    assert read_answer(f"好的：\n{dumps(about)}") == Reading(about, None)
    assert read_answer(f"<think>{DRAFT}</think>\n{dumps(about)}") == Reading(about, None)


@pytest.mark.parametrize("answer", ["", "  \n", "\ufeff", "\n" * 5000])
def test_blank_answers(answer):
    assert read_answer(answer) == Reading([], "blank")


@pytest.mark.parametrize(
    "answer",
    [
        "抱歉，我无法完成。",
        "[]",
        "{}",
        '["字符串"]',
        '{"a": 1}',
        "[" * 3000,
        "null",
        "3",
        '"',
        "{" * 3000,
        '{"data": [' * 3000,
    ],
)
def test_answers_without_samples(answer):
    assert read_answer(answer) == Reading([], "no_samples")


def test_field_names_in_another_case_or_in_chinese():
    def renamed(*names):
        return [dict(zip(names, sample.values(), strict=True)) for sample in TWO]

    assert read_answer(dumps(renamed("Instruction", " INPUT ", "Output"))).samples == TWO
    assert read_answer(dumps(renamed("指令", "输入", "输出"))).samples == TWO
    assert read_answer(dumps([{**GOOD, "Output": "另一个"}])).samples[0]["output"] == GOOD["output"]
    guesses = renamed("system", "question", "answer")  # whatever they mean: they are shown as they came
    assert read_answer(dumps(guesses)) == Reading(guesses, None)


def test_wrong_types_and_strangers_are_left_for_validation():
    mixed = [{**GOOD, "output": ["第一步", "第二步"]}, "字符串", {"a": 1}, GOOD, {**GOOD, "input": 12}]
    assert read_answer(dumps(mixed)) == Reading(mixed, None)
