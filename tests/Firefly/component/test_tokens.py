"""The token cache: what it holds, when it is used again, and what damages it not."""

import json
import multiprocessing
import os
import pickle
import shutil
import time

import numpy as np
import pytest

from Firefly.component import pool, tokens
from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.errors import UserError
from Firefly.component.prompt import encode_conversation, record_to_messages
from Firefly.component.template import use_template
from Firefly.component.tokens import TokenStore, tokenize_once

from ..conftest import conversation


@pytest.fixture
def tokenizer(tiny_minicpm):
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    return tokenizer


def write(path, records) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def rows(store: TokenStore) -> list[tuple[list[int], list[int]]]:
    read = [store.read(start, length) for start, length in zip(store.starts, store.index["length"], strict=True)]
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in read]


def test_rows_are_what_each_record_encodes_to(tokenizer, tmp_path):
    records = [conversation(i, turns=1 + i % 4) | {"category": "乙" if i % 2 else None} for i in range(12)]
    path = write(tmp_path / "a.jsonl", records)
    store = tokenize_once([path], tokenizer)
    expected = [encode_conversation(tokenizer, record_to_messages(r)) for r in records]
    assert rows(store) == expected
    row = store.read(store.starts[3], 5)
    assert row["input_ids"].dtype == row["labels"].dtype == np.int32
    assert store.index["targets"].tolist() == [sum(x != -100 for x in labels[1:]) for _, labels in expected]
    assert [store.categories[c] for c in store.index["category"]] == ["General", "乙"] * 6
    assert store.index["messages"].tolist() == [1 + 2 * (1 + i % 4) for i in range(12)]
    assert store.where(4) == f"{path}:5"
    assert store.messages(4) == record_to_messages(records[4])


def test_mask_history_keeps_the_last_answer_only(tokenizer, tmp_path):
    record = conversation(0, turns=3)
    path = write(tmp_path / "a.jsonl", [record])
    ((ids, labels),) = rows(tokenize_once([path], tokenizer, mask_history=True))
    whole_ids, whole_labels = encode_conversation(tokenizer, record_to_messages(record))
    assert ids == whole_ids
    kept = [x for x in labels if x != -100]
    assert tokenizer.decode(kept) == record["conversation"][-1]["assistant"] + "<|im_end|>"
    assert labels[-len(kept) - 5 :] == whole_labels[-len(kept) - 5 :]


def test_the_second_start_uses_the_cache(tokenizer, tmp_path, token_cache):
    path, said = write(tmp_path / "a.jsonl", map(conversation, range(4))), []
    first = tokenize_once([path], tokenizer, say=said.append)
    inode = (first.folder / "ids.bin").stat().st_ino
    second = tokenize_once([path], tokenizer, say=said.append)
    assert (second.folder / "ids.bin").stat().st_ino == inode
    assert rows(first) == rows(second)
    assert "分词用了" in said[0]
    assert "缓存" in said[1]
    assert len(said) == 2
    assert [p.name for p in token_cache.iterdir()] == [first.folder.name]  # and no .part is left
    elsewhere = shutil.copy(path, tmp_path / "b.jsonl")
    assert tokenize_once([elsewhere], tokenizer, cache_dir=str(tmp_path / "mine")).folder.parent == tmp_path / "mine"


def test_the_key_is_content_and_template(tokenizer, tiny_minicpm, tmp_path):
    path = write(tmp_path / "a.jsonl", map(conversation, range(4)))

    def folder(of=tokenizer, path=path, **how) -> str:
        return tokenize_once([path], of, say=lambda _: None, **how).folder.name

    moved = write(tmp_path / "other" / "a.jsonl", map(conversation, range(4)))
    assert folder(path=moved) == folder()
    others = [folder(path=write(tmp_path / "more" / "a.jsonl", map(conversation, range(5)))), folder(mask_history=True)]
    plain = load_tokenizer(tiny_minicpm)
    others.append(folder(plain))  # the template that it brings
    larger = load_tokenizer(tiny_minicpm)
    use_template(larger, "minicpm4")
    larger.add_tokens(["校训"])
    others.append(folder(larger))
    assert len({folder(), *others}) == 5


def test_a_slow_tokenizer_has_a_key_too(tmp_path):
    from transformers import ByT5Tokenizer

    template = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    path, keys = write(tmp_path / "a.jsonl", [conversation(0)]), set()
    for extra in (10, 11, 11):
        tokenizer = ByT5Tokenizer(extra_ids=extra)
        tokenizer.chat_template = template
        assert not tokenizer.is_fast
        keys.add((store := tokenize_once([path], tokenizer)).folder.name)
    assert len(keys) == 2
    assert rows(store) == [encode_conversation(tokenizer, record_to_messages(conversation(0)))]


@pytest.mark.parametrize("damage", ["cut ids", "no index", "no meta", "half meta", "empty folder"])
def test_a_damaged_cache_is_made_again(tokenizer, tmp_path, token_cache, damage):
    path, said = write(tmp_path / "a.jsonl", map(conversation, range(4))), []
    folder = tokenize_once([path], tokenizer, say=lambda _: None).folder
    expected = rows(TokenStore(folder, [path]))
    if damage == "cut ids":
        os.truncate(folder / "ids.bin", 8)
    elif damage == "half meta":
        os.truncate(folder / "meta.json", 20)
    elif damage == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        (folder / {"no index": "index.bin", "no meta": "meta.json"}[damage]).unlink()
    assert rows(tokenize_once([path], tokenizer, say=said.append)) == expected
    assert "不完整" in said[0]
    assert list(token_cache.iterdir()) == [folder]


def test_processes_that_start_at_once_share_one_cache(tokenizer, tmp_path, token_cache):
    path = write(tmp_path / "a.jsonl", map(conversation, range(200)))
    fork = multiprocessing.get_context("fork")
    gate, answers = fork.Barrier(4), fork.Queue()

    def start():
        gate.wait()
        answers.put(rows(tokenize_once([path], tokenizer, say=lambda _: None)))

    processes = [fork.Process(target=start) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert all(answer == found[0] for answer in found)
    assert len(found[0]) == 200
    assert [p.suffix for p in token_cache.iterdir()] == [""]


def test_the_slower_of_two_keeps_what_the_faster_made(tokenizer, tmp_path, token_cache):
    path = write(tmp_path / "a.jsonl", map(conversation, range(4)))
    store = tokenize_once([path], tokenizer)
    inode = store.folder.stat().st_ino
    with tokens._part_folder(store.folder) as part:
        for name in ("ids.bin", "index.bin", "meta.json"):
            shutil.copy(store.folder / name, part)
        tokens._move_in(part, store.folder, [path])
    assert store.folder.stat().st_ino == inode
    assert list(token_cache.iterdir()) == [store.folder]


def test_leavings_of_a_killed_run_go_when_they_are_old(tokenizer, tmp_path, token_cache):
    for name in ("old.part", "new.part"):
        (token_cache / name).mkdir(parents=True)
        (token_cache / name / "ids.bin").write_bytes(b"x")
    long_ago = time.time() - 2 * tokens.STALE_SECONDS
    os.utime(token_cache / "old.part" / "ids.bin", (long_ago, long_ago))
    os.utime(token_cache / "old.part", (long_ago, long_ago))
    tokenize_once([write(tmp_path / "a.jsonl", [conversation(0)])], tokenizer)
    assert [p.name for p in token_cache.glob("*.part")] == ["new.part"]


def test_a_cache_goes_when_nobody_has_asked_for_it_in_a_month(tokenizer, tmp_path, token_cache):
    paths = [
        write(tmp_path / f"{name}.jsonl", [conversation(i)]) for i, name in enumerate(("asked", "forgotten", "new"))
    ]
    asked, forgotten = (tokenize_once([path], tokenizer).folder for path in paths[:2])
    long_ago = time.time() - 31 * 86400
    for folder in (asked, forgotten):
        os.utime(folder, (long_ago, long_ago))
    tokenize_once([paths[0]], tokenizer)
    said = []
    made = tokenize_once([paths[2]], tokenizer, say=said.append).folder
    assert sorted(token_cache.iterdir()) == sorted([asked, made])
    assert str(forgotten) in said[0]


def test_a_bad_line_is_named_and_nothing_stays_behind(tokenizer, tmp_path, token_cache):
    path = write(tmp_path / "a.jsonl", [conversation(0), {"conversation": [{"human": "问"}]}])
    with pytest.raises(UserError, match=r"a\.jsonl:2.*assistant"):
        tokenize_once([path], tokenizer)
    assert not list(token_cache.iterdir())
    with pytest.raises(UserError, match="没有一条记录"):
        tokenize_once([write(tmp_path / "b.jsonl", [])], tokenizer)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="token_cache_dir"):
        tokenize_once([write(tmp_path / "c.jsonl", [conversation(0)])], tokenizer, cache_dir=str(tmp_path / "file"))


def test_a_record_that_the_template_refuses_is_named(tokenizer, tmp_path):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if '禁' in m.content %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role + m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
    )
    bad = conversation(1)
    bad["conversation"][0]["assistant"] = "禁"
    with pytest.raises(UserError, match=r"a\.jsonl:2.*no"):
        tokenize_once([write(tmp_path / "a.jsonl", [conversation(0), bad])], tokenizer)


def test_several_processes_make_the_same_files(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_cores", lambda: 2)
    path = write(tmp_path / "a.jsonl", (conversation(i, turns=1 + i % 5) for i in range(2500)))
    assert os.path.getsize(path) > 2 * tokens.records.CHUNK_BYTES  # three chunks
    one = tokenize_once([path], tokenizer, cache_dir=str(tmp_path / "one"))
    monkeypatch.setattr(tokens, "PARALLEL_FROM", 1)
    two = tokenize_once([path], tokenizer, cache_dir=str(tmp_path / "two"), num_workers=2)
    for name in ("ids.bin", "index.bin", "meta.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    with open(path, "a") as file:
        file.write("{\n" * 3)
    with pytest.raises(UserError, match=r"a\.jsonl:2501"):
        tokenize_once([path], tokenizer, num_workers=2)


def test_a_store_pickles_as_its_path(tokenizer, tmp_path):
    store = tokenize_once([write(tmp_path / "a.jsonl", map(conversation, range(50)))], tokenizer)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert rows(pickle.loads(pickled)) == rows(store)


def test_documents_end_with_the_end_token_and_every_token_is_a_target(tokenizer, tmp_path):
    texts = ["规格严格，功夫到家。", "", "The quick brown fox"]
    files = [
        write(tmp_path / "b.jsonl", [{"text": texts[2], "category": "英"}]),
        write(tmp_path / "a.jsonl", [{"text": t} for t in texts[:2]]),
    ]
    store = tokenize_once(files, tokenizer, task="pretrain")
    expected = [tokenizer(t, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for t in (texts[2], *texts[:2])]  # fmt: skip
    assert rows(store) == [(ids, ids) for ids in expected]
    assert store.where(2) == f"{files[1]}:2"
    assert store.index["targets"].tolist() == [len(ids) - 1 for ids in expected]
    with pytest.raises(UserError, match=r"c\.jsonl:2.*text"):
        tokenize_once([*files, write(tmp_path / "c.jsonl", [{"text": "x"}, {"txt": 1}])], tokenizer, task="pretrain")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        tokenize_once(files, tokenizer, task="pretrain")
