"""The journal holds every answer that was paid for, whatever happens to the disk or to the process."""

import errno
import json

import pytest

from LLM_data_gen.journal import Journal, entry_of, journal_path, open_journal, read_journal
from LLM_data_gen.wire import Answer
from sft_data.errors import UserError

USAGE = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 2}
MESSAGES = [{"role": "user", "content": "问"}]


def entry(text="[]", **answer):
    return entry_of("甲", 2, MESSAGES, "m", Answer(text, usage=USAGE, **answer))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_entry_says_all_and_comes_back(tmp_path):
    out = tmp_path / "train.jsonl"
    with open_journal(out, 4096) as journal:
        journal.append(entry("答", finish_reason="stop", reasoning="想"))
        journal.append(entry(finish_reason="length"))
        journal.append(entry(complete=False))
        assert (tmp_path / "train_journal.jsonl.reserve").stat().st_size == 4096
    first, second, third = read_journal(out, print)
    assert {"time", "prompt"} < set(first)
    assert {name: first[name] for name in ("topic", "asked", "model", "text", "reasoning", "usage")} == {
        "topic": "甲", "asked": 2, "model": "m", "text": "答", "reasoning": "想", "usage": USAGE,
    }  # fmt: skip
    assert [first["status"], second["status"], third["status"]] == ["ok", "cut", "partial"]
    assert "reasoning" not in second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_journal.jsonl"]


def test_nothing_paid_for_leaves_nothing_behind(tmp_path):
    with open_journal(tmp_path / "o.jsonl", 4096):
        pass
    assert not list(tmp_path.iterdir())
    assert list(read_journal(tmp_path / "o.jsonl", print)) == []


def test_a_line_that_was_cut_is_removed_and_a_bad_one_is_named(tmp_path):
    out, said = tmp_path / "o.jsonl", []
    with open_journal(out, 1) as journal:
        journal.append(entry())
    with open(journal_path(out), "ab") as file:
        file.write(b'{"topic": "\xe7')
    assert len(list(read_journal(out, said.append))) == 1
    assert "没有写完" in said[0]
    for wrong in ({"topic": "甲"}, entry() | {"usage": None}, entry() | {"text": None}, [1]):
        journal_path(out).write_text(json.dumps(wrong) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match="o_journal.jsonl:1"):
            list(read_journal(out, print))


class FullDisk:
    """A file on a disk that is full until a file of it is removed."""

    def __init__(self, file, reserve):
        self.file, self.reserve = file, reserve

    def write(self, data):
        if self.reserve.exists():
            self.file.write(data[:3])
            raise OSError(errno.ENOSPC, "no space")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_with_the_disk_full_answers_go_into_the_space_kept_for_them(tmp_path):
    journal = Journal(tmp_path / "o_journal.jsonl", 4096)
    journal.append(entry("一"))
    journal._file = FullDisk(journal._file, tmp_path / "o_journal.jsonl.reserve")
    journal.append(entry("二"))
    assert journal.disk_full
    journal.append(entry("三"))
    journal.close()
    assert [line["text"] for line in lines(tmp_path / "o_journal.jsonl")] == ["一", "二", "三"]
