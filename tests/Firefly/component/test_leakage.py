"""Held-out records that stand in the training data: each kind, each format, and against plain sets of pieces."""

import gzip
import json
import random

import pytest

from Firefly.component.errors import UserError
from Firefly.component.leakage import GRAM, NEAR, find_leaks, read_train

QUESTION = "请介绍哈尔滨工业大学的校训，并说说它的来历。"
ANSWER = "规格严格，功夫到家，是学校代代相传的校训。前半句讲标准，做人做事都要合乎规矩；后半句讲功夫，本领要练到纯熟。"
OTHER = ("食堂几点开门？", "早上六点半开门，晚上九点关门，周末照常供应，逢年过节另有通知，请留意公告。")


def write(path, pairs) -> str:
    rows = [{"conversation": [{"human": q, "assistant": a}]} for q, a in pairs]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("held_out", "kind"),
    [
        ((QUESTION, ANSWER), "exact"),
        ((QUESTION.replace("，", ", ") + "\n", ANSWER.replace("。", " .")), "exact"),
        (("学校的校训有什么含义？", ANSWER), "answer"),
        ((QUESTION, "不知道。"), "question"),
        ((QUESTION, ANSWER.replace("代代相传", "世代相传")), "question"),
        ((QUESTION.replace("请", "烦请"), ANSWER.replace("代代相传", "世代相传")), "near"),
        (("材料如下", f"引用：{QUESTION}{ANSWER}以上是引用。"), "near"),
        (("怎样选课？", "先看培养方案，再在系统里选课，注意学分要求。"), None),
        (("好？", "好。"), None),
    ],
)
def test_each_kind_is_found_at_its_place(tmp_path, held_out, kind):
    path = write(tmp_path / "train.jsonl", [OTHER, (QUESTION, ANSWER), OTHER])
    leaks, read = find_leaks([("另一个问题？", "另一个回答。"), held_out], [path])
    assert read == 3
    assert [(leak.index, leak.kind, leak.train_where) for leak in leaks] == ([(1, kind, f"{path}:2")] if kind else [])


def test_the_gravest_kind_wins_over_several_files(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [(QUESTION, "不知道。"), ("校训的来历？", ANSWER.replace("代代", "世代"))]),
        write(tmp_path / "b.jsonl", [OTHER, ("校训？", ANSWER)]),
    ]
    leaks, _ = find_leaks([(QUESTION, ANSWER), (QUESTION, ANSWER)], files)
    assert [(leak.index, leak.kind, leak.train_where) for leak in leaks] == [
        (0, "answer", f"{files[1]}:2"),
        (1, "answer", f"{files[1]}:2"),
    ]


def test_near_is_what_plain_sets_of_pieces_find(tmp_path):
    """Training records edited in 0 to 12 places each, among unrelated ones."""
    rng = random.Random(0)
    letters = [chr(0x4E00 + i) for i in range(800)]

    def text(length: int) -> str:
        return "".join(rng.choice(letters) for _ in range(length))

    held_out = [(text(20), text(rng.randrange(60, 300))) for _ in range(120)]
    train = []
    for _, answer in held_out:
        edited = list(answer)
        for _ in range(rng.randrange(13)):
            edited[rng.randrange(len(edited))] = rng.choice(letters)
        train += [(text(20), "".join(edited)), (text(20), text(150))]
    leaks, _ = find_leaks(held_out, [write(tmp_path / "t.jsonl", train)])

    def pieces(pair: tuple[str, str]) -> set[str]:
        return {part[i : i + GRAM] for part in pair for i in range(len(part) - GRAM + 1)}

    shares = [
        max(len(pieces(h) & pieces(t)) / len(pieces(h)) for t in train[2 * i : 2 * i + 2])
        for i, h in enumerate(held_out)
    ]
    found = {leak.index: leak.share for leak in leaks if leak.kind == "near"}
    same = {leak.index for leak in leaks if leak.kind == "answer"}
    expected = {i: round(share, 4) for i, share in enumerate(shares) if share >= NEAR and i not in same}
    assert found == expected
    assert 20 < len(found) < 100


def test_stock_phrases_alone_are_no_leak(tmp_path):
    stock = "你是一个有用的助手，请根据下面的材料回答问题，答案要简短明白，不要编造："
    held_out = [
        (stock + f"材料{i}讲的是第{i}件事？", f"第{i}件事的回答，内容各不相同，编号{i * 7919}。") for i in range(50)
    ]
    train = [(stock + f"别的材料{i * 31}？", f"别的回答{i * 104729}，与上面无关。") for i in range(200)]
    assert find_leaks(held_out, [write(tmp_path / "t.jsonl", train)])[0] == []


def test_every_format_of_training_data_is_read(tmp_path):
    rows = [
        {"conversation": [{"human": "一", "assistant": "二"}, {"human": "三", "assistant": "四"}]},
        {
            "messages": [
                {"role": "system", "content": "零"},
                {"role": "user", "content": "一"},
                {"role": "assistant", "content": "二"},
            ]
        },
        {"instruction": "一", "input": "", "output": "二"},
        {"text": "全文"},
    ]
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    assert list(read_train(str(path))) == [
        (f"{path}:1", ("一\n三", "二\n四")),
        (f"{path}:3", ("一", "二")),
        (f"{path}:5", ("一", "二")),
        (f"{path}:7", ("", "全文")),
    ]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text"', ":2：不是完整的一行 JSON"),
        ("t.jsonl", b'{"chosen": []}', ":1：看不出问题和回答"),
        ("t.jsonl", b'{"text": 3}', ":1：看不出问题和回答"),
        ("t.jsonl", b"[1, 2]", ":1：看不出问题和回答"),
        ("t.jsonl.gz", b"not gzip", "不是完整的 gzip"),
        ("none.jsonl", None, "找不到训练文件"),
    ],
)
def test_broken_training_data_is_said_with_its_place(tmp_path, name, data, says):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        find_leaks([(QUESTION, ANSWER)], [str(tmp_path / name)])
