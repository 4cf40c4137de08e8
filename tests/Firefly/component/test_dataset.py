"""Rows over tokens on disk: every record read is kept or counted, whatever max_seq_length and eval_ratio are."""

import json
import pickle

import numpy as np
import pytest
import torch

from Firefly.component.argument import CustomizedArguments
from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.dataset import cut_records, load_datasets, split_documents, split_off
from Firefly.component.errors import UserError
from Firefly.component.template import use_template
from Firefly.component.tokens import tokenize_once

from ..conftest import conversation


def quiet(_text: str) -> None: ...


@pytest.fixture
def tokenizer(tiny_minicpm):
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    return tokenizer


@pytest.fixture
def write(tmp_path):
    def write(records, name="a.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def store(tokenizer, write):
    records = [conversation(i, turns=1 + i % 4) | {"category": f"类{i % 3}"} for i in range(30)]
    return tokenize_once([write(records)], tokenizer, say=quiet)


@pytest.mark.parametrize("longest", [48, 60, 100, 1000])
def test_one_cache_serves_every_length_and_read_is_kept_plus_dropped(store, longest):
    said = []
    data = cut_records(store, np.arange(30), longest, said.append)
    whole = [store.read(start, length) for start, length in zip(store.starts, store.index["length"], strict=True)]
    cut = [{name: column[:longest] for name, column in row.items()} for row in whole]
    targets = [int((row["labels"][1:] != -100).sum()) for row in cut]
    kept = [i for i in range(30) if targets[i]]
    assert data.records.tolist() == kept
    for i, row in zip(kept, data, strict=True):
        assert all(np.array_equal(row[name], cut[i][name]) for name in row)
    assert data.target_counts.tolist() == [targets[i] for i in kept]
    assert data.lengths.tolist() == [len(cut[i]["labels"]) for i in kept]
    assert data.lengths.dtype == data.target_counts.dtype == np.int32
    assert data.n_truncated == sum(len(row["labels"]) > longest for row in whole)
    assert len(data) + data.dropped["no_target_after_truncation"] == 30
    assert data.count_tokens() == (sum(data.lengths.tolist()), sum(data.target_counts.tolist()))
    assert data.category == [f"类{i % 3}" for i in kept]
    assert len(said) == (data.n_truncated > 0) + (len(kept) < 30)


def test_what_is_lost_is_named(tokenizer, write):
    long_question = conversation(0)
    long_question["conversation"][0]["human"] = "为什么" * 300
    path, said = write([*map(conversation, range(3)), *[long_question] * 6]), []
    store = tokenize_once([path], tokenizer, say=quiet)
    data = cut_records(store, np.arange(9), 256, said.append)
    assert (len(data), data.dropped, data.n_truncated) == (3, {"no_target_after_truncation": 6}, 6)
    assert "6 / 9 条" in said[0]
    assert all(f"a.jsonl:{n}" in said[1] for n in range(4, 9))
    assert "a.jsonl:9" not in said[1]
    with pytest.raises(UserError, match=r"a\.jsonl:4 等 6 条.*max_seq_length.*256"):
        cut_records(store, np.arange(3, 9), 256, quiet)


def test_rows_come_from_disk_in_a_loaders_workers_too(store):
    data = cut_records(store, np.arange(30), 50, quiet)
    again = pickle.loads(pickle.dumps(data))
    assert all(np.array_equal(again[i]["labels"], data[i]["labels"]) for i in range(len(data)))
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, collate_fn=lambda row: row)
    assert [row["input_ids"].tolist() for row in loader] == [row["input_ids"].tolist() for row in data]


def test_a_subset_shares_the_files(store):
    data = cut_records(store, np.arange(30), 50, quiet)
    part = data.subset([4, 2])
    assert part.store is store
    assert [row["input_ids"].tolist() for row in part] == [data[i]["input_ids"].tolist() for i in (4, 2)]
    assert part.where(0) == data.where(4)
    assert part.messages(1) == data.messages(2)
    assert part.n_truncated == sum(store.index["length"][data.records[i]] > 50 for i in (4, 2))
    assert not part.dropped


def test_split_off_is_random_seeded_and_in_order():
    train, held_out = split_off(100, 0.1, seed=3)
    assert len(held_out) == 10
    assert sorted([*train, *held_out]) == list(range(100))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert held_out.tolist() == split_off(100, 0.1, seed=3)[1].tolist() != split_off(100, 0.1, seed=4)[1].tolist()
    assert set(held_out) == set(np.random.default_rng(3).choice(100, 10, replace=False))
    assert len(split_off(100, 0.001, seed=0)[1]) == 1
    with pytest.raises(UserError, match="eval_ratio"):
        split_off(1, 0.5, seed=0)


@pytest.mark.parametrize("longest", [2, 3, 7, 1000])
def test_every_token_of_a_document_is_predicted_once(tokenizer, write, longest):
    texts = ["", "甲", "规格严格，功夫到家。" * 5, "The quick brown fox", "乙" * 12]
    said = []
    store = tokenize_once([write([{"text": t} for t in texts])], tokenizer, task="pretrain", say=quiet)
    data = split_documents(store, np.arange(5), longest, said.append)
    predicted = [[] for _ in texts]
    for i, row in enumerate(data):
        assert 2 <= len(row["input_ids"]) <= longest
        assert len(row["labels"]) == data.lengths[i] == data.target_counts[i] + 1
        assert (row["labels"] == row["input_ids"]).all()
        predicted[data.records[i]] += row["labels"][1:].tolist()
    whole = [tokenizer(t, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for t in texts]
    assert predicted == [ids[1:] for ids in whole]
    assert data.dropped == {"empty_text": 1}
    long = sum(len(ids) > longest for ids in whole)
    assert (f"{long} / 5 篇" in said[0]) == (long > 0)
    assert "a.jsonl:1" in said[-1]


def test_documents_without_text_and_length_one(tokenizer, write):
    store = tokenize_once([write([{"text": ""}])], tokenizer, task="pretrain", say=quiet)
    with pytest.raises(UserError, match=r"a\.jsonl:1"):
        split_documents(store, np.arange(1), 8, quiet)
    with pytest.raises(UserError, match="max_seq_length=1"):
        split_documents(store, np.arange(1), 1, quiet)


def test_the_held_out_records_stay_the_same_at_another_length(tokenizer, write):
    path = write([conversation(i, turns=1 + i % 4) for i in range(30)])
    held_out = []
    for longest in (40, 400):
        custom = CustomizedArguments(path, "", max_seq_length=longest, eval_ratio=0.2)
        train, part = load_datasets(custom, 1, tokenizer, quiet, quiet)
        assert len(train) + len(part) + sum(train.dropped.values()) + sum(part.dropped.values()) == 30
        assert not set(train.records) & set(part.records)
        held_out.append(set(part.records))
    assert held_out[0] < held_out[1]
    assert held_out[1] == set(split_off(30, 0.2, 1)[1])


def test_eval_file_and_no_eval(tokenizer, write):
    path, other = write(map(conversation, range(6))), write(map(conversation, range(3)), "b.jsonl")
    train, part = load_datasets(CustomizedArguments(path, "", eval_file=other), 0, tokenizer, quiet, quiet)
    assert (len(train), len(part)) == (6, 3)
    assert part.where(2) == f"{other}:3"
    assert load_datasets(CustomizedArguments(path, ""), 0, tokenizer, quiet, quiet)[1] is None


def test_pretraining_reads_a_folder(tokenizer, write, tmp_path):
    write([{"text": "规格严格，功夫到家。"}] * 3)
    write([{"text": "校训"}], "b.jsonl")
    custom = CustomizedArguments(str(tmp_path), "", task_type="pretrain", max_seq_length=64, eval_ratio=0.25)
    train, part = load_datasets(custom, 0, tokenizer, quiet, quiet)
    assert (len(train), len(part)) == (3, 1)


def test_a_prompt_that_differs_deep_in_the_file_is_found_on_every_start(tokenizer, write):
    """Record 60 alone has many turns, and the template treats those otherwise when it asks for an answer."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% if messages | length > 8 %}！{% endif %}{% endif %}"
    )
    records = [conversation(i, turns=6 if i == 60 else 1) for i in range(80)]
    custom = CustomizedArguments(write(records), "", template_name="mine")
    with pytest.raises(UserError, match=r"a\.jsonl:61"):
        load_datasets(custom, 0, tokenizer, quiet, quiet)
    tokenizer.chat_template = tokenizer.chat_template.replace("！", "")
    said = []
    for _ in range(2):
        load_datasets(custom, 0, tokenizer, said.append, quiet)
    assert [text for text in said if "核对了" in text] == ["训练与推理的提示逐 token 一致（核对了 37 个回答）"] * 2
