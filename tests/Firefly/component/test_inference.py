"""Requests, results and the chat loop, with an engine that answers by hand: no model is needed here."""

import argparse
import io
import json

import pytest

from Firefly.component.errors import UserError, exit_cleanly
from Firefly.component.inference import (
    Completion,
    Engine,
    Request,
    add_inference_flags,
    build_messages,
    check_flags,
    read_requests,
)
from Firefly.component.results import answer_all, chat
from Firefly.component.session import choose_sampling, parse_adapters


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_requests(count: int) -> list[Request]:
    return [
        Request(i, [{"role": "user", "content": f"问{i}"}], {"prompt": f"问{i}"}, f"x:{i + 1}") for i in range(count)
    ]


def backwards_engine(asked: list, window: int = 4, stop_after: int | None = None, **fingerprint) -> Engine:
    """Answers each window from its end, and is cut off after ``stop_after`` answers."""

    def generate(requests):
        for request in reversed(requests):
            if stop_after is not None and len(asked) >= stop_after:
                raise KeyboardInterrupt
            asked.append(request.index)
            yield request, Completion(f"答{request.index}", "stop", 3, 2)

    return Engine(generate, stream=None, window=window, fingerprint=fingerprint)


def test_all_three_forms_become_the_same_messages():
    asked = [{"role": "system", "content": "系统"}, {"role": "user", "content": "问"}]
    assert build_messages({"prompt": "问"}, "系统", "x:1") == (asked, False)
    assert build_messages({"messages": asked}, "别的系统", "x:1") == (asked, False)
    record = {"system": "系统", "conversation": [{"human": "问", "assistant": "参考答案"}]}
    assert build_messages(record, None, "x:1") == (asked, True)


def test_history_stays_and_only_the_last_answer_is_a_reference():
    turns = [{"human": "一", "assistant": "甲"}, {"human": "二", "assistant": "乙"}]
    messages, had_reference = build_messages({"conversation": turns}, None, "x:1")
    assert [m["content"] for m in messages] == ["一", "甲", "二"]
    assert had_reference


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": "a"', "不是完整的 JSON"),
        (b'["a"]', "应是 JSON 对象"),
        ('{"prompt": "问"}'.encode("gbk"), "不是 UTF-8"),
        (b'{"question": "a"}', "没有 prompt、messages 或 conversation"),
        (b'{"prompt": "  "}', "内容是空的"),
        (b'{"prompt": 3}', "不是文本"),
        (b'{"prompt": "\\ud800"}', "不成对的代理字符"),
        (b'{"messages": []}', "最后一条消息应是 user"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "'tool'"),
        (b'{"conversation": [{"assistant": "a"}]}', "conversation 应是"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, says):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "ok"}\n\n' + line + b"\n")
    with pytest.raises(UserError) as error:
        read_requests(path)
    assert f"{path}:3：" in str(error.value)
    assert says in str(error.value)


def test_empty_and_missing_input_are_said(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="没有一行问题"):
        read_requests(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="找不到输入文件"):
        read_requests(tmp_path / "none.jsonl")


def test_rows_come_in_input_order_whatever_the_engine_does(tmp_path):
    out, asked = tmp_path / "out.jsonl", []
    answer_all(backwards_engine(asked), make_requests(6), str(out))
    assert asked == [3, 2, 1, 0, 5, 4]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["response"] for row in rows] == [f"答{i}" for i in range(6)]
    assert rows[0] == {
        "prompt": "问0",
        "response": "答0",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }


def test_a_cut_run_goes_on_where_it_stopped(tmp_path):
    """Cut after six answers, two of which wait for their turn: they are kept, and only four rows are asked again."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    requests = make_requests(10)
    answer_all(backwards_engine([]), requests, str(whole))
    with pytest.raises(KeyboardInterrupt):
        answer_all(backwards_engine([], stop_after=6), requests, str(cut))
    assert len(cut.read_text().splitlines()) == 4
    pending = tmp_path / "cut.jsonl.pending.jsonl"
    assert pending.exists()
    for path in (cut, pending):  # both torn in the middle of a line
        with path.open("a") as file:
            file.write('4\t{"prompt": "问4", "resp')
    asked: list[int] = []
    assert answer_all(backwards_engine(asked), requests, str(cut)) == 4
    assert sorted(asked) == [4, 5, 8, 9]
    assert cut.read_bytes() == whole.read_bytes()
    assert answer_all(backwards_engine(asked := []), requests, str(cut)) == 0
    assert asked == []
    assert sorted(path.name for path in tmp_path.iterdir() if "cut" in path.name) == [
        "cut.jsonl",
        "cut.jsonl.meta.json",
    ]


def test_an_output_of_another_input_or_model_is_refused_and_kept(tmp_path):
    out = tmp_path / "out.jsonl"
    answer_all(backwards_engine([], model="a"), make_requests(3), str(out))
    before = out.read_bytes()
    other = [Request(0, [], {"prompt": "别的"}, "y.jsonl:1"), *make_requests(3)[1:]]
    with pytest.raises(UserError, match=r"out.jsonl:1：不是 y.jsonl:1 的回答"):
        answer_all(backwards_engine([], model="a"), other, str(out))
    with pytest.raises(UserError, match="有 3 行，输入只有 2 行"):
        answer_all(backwards_engine([], model="a"), make_requests(2), str(out))
    with pytest.raises(UserError, match="model=a 生成的，这次是 b"):
        answer_all(backwards_engine([], model="b"), make_requests(3), str(out))
    assert out.read_bytes() == before
    assert answer_all(backwards_engine([], model="b"), make_requests(3), str(out), overwrite=True) == 3


def test_a_full_disk_is_one_sentence(capsys):
    @exit_cleanly
    def main(argv=None):
        answer_all(backwards_engine([]), make_requests(3), "/dev/full")

    assert main() == 2
    assert "磁盘空间不足" in capsys.readouterr().err


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_inference_flags(parser, batch_size=8)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "没有要问的内容"),
        (["--prompt", "a", "--input", "x"], "只能给一个"),
        (["--input", "x", "--stream"], "--stream"),
        (["--interactive", "--output", "y"], "--output"),
        (["--prompt", "a", "--top-p", "0"], "--top-p 是 0.0，应大于 0、不大于 1"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature 是 -1.0，应不小于 0"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature 是 nan，应不小于 0"),
        (["--prompt", "a", "--temperature", "inf"], "--temperature 是 inf，应不小于 0"),
        (["--prompt", "a", "--seed", "9" * 30], "--seed 是 9999"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_contradicting_flags_are_refused(argv, says):
    with pytest.raises(UserError, match=says):
        check_flags(parse(*argv))


def test_sampling_takes_flags_first_then_the_model_then_greedy():
    model = {"do_sample": True, "temperature": 0.8, "top_p": 0.7}
    assert choose_sampling(parse(), model).temperature == 0.8
    assert choose_sampling(parse("--temperature", "0"), model).temperature == 0
    assert choose_sampling(parse("--top-p", "0.9"), model).top_p == 0.9
    assert choose_sampling(parse(), {"temperature": 0.8}).temperature == 0  # the model does not ask to sample
    assert choose_sampling(parse("--temperature", "0.5"), {}).temperature == 0.5
    assert choose_sampling(parse(), {}).max_new_tokens == 512


def test_chat_keeps_history_clears_it_and_leaves_out_the_oldest_turn(monkeypatch, capsys):
    seen = []

    def stream(request, emit):
        seen.append([m["content"] for m in request.messages])
        emit("答")
        return Completion("答案", "stop", 1, 1)

    def check(requests):
        if len(requests[0].messages) > 4:
            raise UserError("太长")

    monkeypatch.setattr("sys.stdin", io.StringIO("一\n\n二\n三\n/clear\n四\n/exit\n五\n"))
    chat(Engine(None, stream, window=1, check=check), "系统")
    assert seen == [["系统", "一"], ["系统", "一", "答案", "二"], ["系统", "二", "答案", "三"], ["系统", "四"]]
    out = capsys.readouterr()
    assert out.out == "答案\n" * 4  # what was streamed, then the rest of the text
    assert out.err.count("略去最早的一轮") == 1


def test_adapters_are_named_and_checked(tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    with pytest.raises(UserError, match="没有 adapter_config.json"):
        parse_adapters([str(folder)])
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../gone"}')
    with pytest.raises(UserError, match="没有权重"):
        parse_adapters([str(folder)])
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert parse_adapters([str(folder), f"style={folder}"]) == {"lora": folder, "style": folder}
    with pytest.raises(UserError, match="用了两次"):
        parse_adapters([str(folder), str(folder)])
