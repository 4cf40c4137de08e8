"""Preference pairs: what is read, how it is cut, and that its prompt is the one inference sends."""

import json

import pytest

from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.preference import encode_preferences, read_preferences
from Firefly.component.prompt import encode_prompt
from Firefly.component.template import use_template

PROMPT = [{"role": "system", "content": "你是校园助手。"}, {"role": "user", "content": "校训是什么？"}]
GOOD, BAD = [{"role": "assistant", "content": "规格严格，功夫到家。"}], [{"role": "assistant", "content": "不知道。"}]


@pytest.fixture
def tokenizer(tiny_minicpm):
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    return tokenizer


@pytest.fixture
def read(tmp_path):
    def read(*records):
        path = tmp_path / "pairs.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_preferences(str(path))

    return read


def test_every_way_of_writing_a_pair_gives_the_same(read):
    same = read(
        {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD},
        {"prompt": "校训是什么？", "system": "你是校园助手。", "chosen": GOOD, "rejected": BAD},
        {"prompt": PROMPT, "chosen": "规格严格，功夫到家。", "rejected": " 不知道。\n"},
        {"prompt": PROMPT, "chosen": PROMPT + GOOD, "rejected": PROMPT + BAD},
    )
    assert {json.dumps(record[:3], ensure_ascii=False) for record in same} == {
        json.dumps([PROMPT, GOOD, BAD], ensure_ascii=False)
    }
    assert same[2].where.endswith("pairs.jsonl:3")


def test_ids_are_inferences_prompt_then_answer_and_stop_token(read, tokenizer):
    history = [*PROMPT, *GOOD, {"role": "user", "content": "有几个校区？"}]
    data = encode_preferences(read({"prompt": history, "chosen": GOOD, "rejected": BAD}), tokenizer, 512, 1024)
    row = data[0]
    assert row["prompt_ids"] == encode_prompt(tokenizer, history)
    assert tokenizer.decode(row["chosen_ids"]) == "规格严格，功夫到家。<|im_end|>"
    assert tokenizer.decode(row["rejected_ids"]) == "不知道。<|im_end|>"
    tokens = 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    assert data.count_tokens() == (tokens, len(row["chosen_ids"]) + len(row["rejected_ids"]))


def test_cutting_keeps_the_prompts_end_and_the_answers_start(read, tokenizer):
    pairs = read({"prompt": PROMPT, "chosen": GOOD, "rejected": BAD})
    whole = encode_preferences(pairs, tokenizer, 512, 1024)[0]
    data = encode_preferences(pairs, tokenizer, 5, 7)
    cut = data[0]
    assert cut["prompt_ids"] == whole["prompt_ids"][-5:]
    assert (cut["chosen_ids"], cut["rejected_ids"]) == (whole["chosen_ids"][:2], whole["rejected_ids"][:2])
    assert (data.n_truncated, data.n_records, len(data.lengths)) == (1, 1, 1)


def test_pairs_that_do_not_differ_are_counted_and_left_out(read, tokenizer):
    same = {"prompt": PROMPT, "chosen": GOOD, "rejected": GOOD}
    late = {"prompt": PROMPT, "chosen": "规格严格，功夫到家。", "rejected": "规格严格，不知道。"}
    pairs = read(same, late, {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD})
    prompt = len(encode_prompt(tokenizer, PROMPT))
    data = encode_preferences(pairs, tokenizer, 512, prompt + 1)
    assert (len(data), dict(data.dropped)) == (1, {"answers_do_not_differ": 2})
    with pytest.raises(UserError, match=r"pairs\.jsonl:1 等 3 对"):
        encode_preferences(pairs, tokenizer, 512, prompt)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "问", "chosen": GOOD}, ["rejected"]),
        ({"prompt": [], "chosen": GOOD, "rejected": BAD}, ["prompt"]),
        ({"prompt": [*PROMPT, *GOOD], "chosen": GOOD, "rejected": BAD}, ["prompt", "user"]),
        ({"prompt": PROMPT, "chosen": PROMPT, "rejected": BAD}, ["chosen", "assistant"]),
        ({"prompt": PROMPT, "chosen": GOOD, "rejected": [{"role": "bot", "content": "x"}]}, ["bot"]),
        ({"prompt": PROMPT, "chosen": GOOD, "rejected": [{"role": "assistant", "content": 3}]}, ["字符串"]),
        ({"prompt": 3, "chosen": GOOD, "rejected": BAD}, ["messages"]),
        ('{"prompt": ', ["JSON"]),
    ],
)
def test_bad_records_are_named(read, record, words):
    with pytest.raises(UserError) as caught:
        read({"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}, record)
    assert all(word in str(caught.value) for word in [*words, "pairs.jsonl:2"]), caught.value


def test_an_empty_file_is_named(read):
    with pytest.raises(UserError, match="没有一条记录"):
        read("")
