import errno
import json
import os

import pytest

from LLM_data_gen.output import open_output
from LLM_data_gen.validation import fingerprint
from sft_data.chatml import render_chatml
from sft_data.errors import UserError


def record(topic, question="问题", **extra):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "回答"}]
    return {"text": render_chatml(messages), "topic": topic, **extra}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_was_written_is_known_to_the_next_run(tmp_path):
    path = tmp_path / "deep" / "o.jsonl"
    with open_output(path, print) as output:
        output.append([record("甲", "一"), record("甲", "二")])
        output.append([record("乙", "三")])
    with open_output(path, print) as output:
        assert dict(output.questions) == {"甲": ["一", "二"], "乙": ["三"]}
        assert fingerprint(record("甲", "一")["text"]) in output.fingerprints
        assert len(output) == 3
    assert lines(path) == [record("甲", "一"), record("甲", "二"), record("乙", "三")]


def test_partial_last_line_is_cut_and_said(tmp_path):
    path, said = tmp_path / "o.jsonl", []
    whole = json.dumps(record("甲"), ensure_ascii=False).encode() + b"\n"
    path.write_bytes(whole + whole[:20])
    with open_output(path, said.append) as output:
        output.append([record("乙")])
    assert lines(path) == [record("甲"), record("乙")]
    assert "20 字节" in said[0]


def test_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps(record("甲")), encoding="utf-8")
    with open_output(path, print) as output:
        output.append([record("乙")])
    assert lines(path) == [record("甲"), record("乙")]


def test_lines_from_elsewhere_are_kept_and_count_for_no_topic(tmp_path):
    path = tmp_path / "o.jsonl"
    foreign = {"text": record("")["text"]}
    path.write_text(json.dumps(foreign) + "\n", encoding="utf-8")
    with open_output(path, print) as output:
        assert (len(output), dict(output.questions)) == (1, {})
        assert fingerprint(foreign["text"]) in output.fingerprints
    assert lines(path) == [foreign]


@pytest.mark.parametrize("line", ['{"prompt": "x"}', '{"text": "没有标记"}', "{坏行}", "[1]"])
def test_a_file_of_another_kind_is_refused_by_line_and_left_alone(tmp_path, line):
    path = tmp_path / "o.jsonl"
    before = json.dumps(record("甲")) + "\n" + line + "\n"
    path.write_text(before, encoding="utf-8")
    with pytest.raises(UserError, match="o.jsonl:2"), open_output(path, print):
        pass
    assert path.read_text(encoding="utf-8") == before


def test_second_run_on_one_output_is_refused(tmp_path):
    path = tmp_path / "o.jsonl"
    with open_output(path, print) as output:
        output.append([record("甲")])
        with pytest.raises(UserError, match="另一个运行"), open_output(path, print):
            pass
    with open_output(path, print) as output:
        assert len(output) == 1


def test_empty_output_is_not_left_behind(tmp_path):
    with open_output(tmp_path / "o.jsonl", print):
        pass
    assert not (tmp_path / "o.jsonl").exists()
    with pytest.raises(UserError, match="目录"), open_output(tmp_path, print):
        pass


class FullDisk:
    """A file on which three bytes fit and no more."""

    def __init__(self, file):
        self.file, self.left = file, 3

    def write(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, self.left = self.file.write(data[: self.left]), 0
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_full_disk_leaves_whole_lines_and_names_the_file(tmp_path):
    path = tmp_path / "o.jsonl"
    with open_output(path, print) as output:
        output.append([record("甲")])
        output._file = FullDisk(output._file)
        with pytest.raises(OSError, match="No space") as error:
            output.append([record("乙")])
        assert error.value.filename == str(path)
    assert lines(path) == [record("甲")]


@pytest.mark.parametrize("text", ["主题一\n主题二没有换行", '[\n{"instruction": "a"}\n]', '{"messages": []}'])
def test_a_file_of_someone_else_is_not_touched_before_it_is_refused(tmp_path, text):
    """Not even its last line, which looks as if a kill had cut it."""
    path = tmp_path / "topics.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="topics.txt:1"), open_output(path, print):
        pass
    assert path.read_text(encoding="utf-8") == text


def test_what_is_no_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UserError, match="不是普通文件"), open_output(path, print):
        pass
    assert path.exists()


def test_a_first_line_cut_by_a_kill_is_ours(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_bytes(json.dumps(record("甲"), ensure_ascii=False, separators=(",", ":")).encode()[:30])
    with open_output(path, print) as output:
        output.append([record("乙")])
    assert lines(path) == [record("乙")]
