"""prep_sft_firefly_hit.py end to end on small files whose counts are worked out by hand."""

import json
import os
from pathlib import Path

import pytest

import prep_sft_firefly_hit as prep
from LLM_data_gen.journal import entry_of
from LLM_data_gen.wire import Answer
from sft_data.chatml import carried, firefly_record, hit_record, parse_chatml, render_chatml

ROOT = Path(__file__).resolve().parents[1]


def body(seed: int, length: int) -> str:
    """Chinese filler that differs from seed to seed."""
    return "".join(chr(0x4E00 + (seed * 7919 + i * 104729) % 20000) for i in range(length))


def firefly(seed: int, **fields) -> dict:
    return {"instruction": body(seed, 30), "input": "", "output": body(seed + 500, 100), **fields}


def hit(*contents: str, system: str | None = None, **extra) -> dict:
    roles = ["user", "assistant"] * (len(contents) // 2)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"text": render_chatml(messages), **extra}


def good_hit(seed: int, **extra) -> dict:
    return hit(body(seed + 2000, 30), body(seed + 3000, 100), system=body(seed + 1000, 30), **extra)


@pytest.fixture
def files(tmp_path):
    """Run prep on the given records; return (exit code, written records, report)."""

    def run(firefly_records, hit_records, *argv, array=False):
        out = tmp_path / "mix.jsonl"
        ff = tmp_path / ("firefly.json" if array else "firefly.jsonl")
        ff.write_text(
            json.dumps(firefly_records, ensure_ascii=False)
            if array
            else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in firefly_records),
            encoding="utf-8",
        )
        hits = tmp_path / "hit.jsonl"
        hits.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in hit_records), encoding="utf-8")
        inputs = ["--firefly-json", str(ff)] if firefly_records else []
        inputs += ["--hit-jsonl", str(hits)] if hit_records else []
        argv = argv if "--append" in argv else ["--overwrite", *argv]
        code = prep.main([*inputs, "--out", str(out), *argv])
        if code:
            return code, None, None
        written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return code, written, json.loads((tmp_path / "mix_dataset_info.json").read_text(encoding="utf-8"))

    return run


@pytest.mark.parametrize("array", [False, True])
def test_counts_worked_by_hand(files, array):
    firefly_records = [
        firefly(1),
        firefly(1),  # duplicate
        firefly(2, instruction="短"),
        firefly(3, output="答" * 1201),
        firefly(4, output="english " * 20),
        firefly(5, input="x" * 20),
        firefly(6, input=body(6, 20)),
        firefly(7, output="很抱歉，我无法回答这个问题。" + body(7, 100)),
        firefly(8, output=body(8, 100) + "手机13812345678联系"),
        firefly(9, output=body(9, 100) + "<|endofutterance|>"),
        firefly(10, output="  "),
        {"kind": "作诗", "input": body(11, 30), "target": body(12, 100)},
    ]
    hit_records = [good_hit(1, topic="食堂"), good_hit(1), hit(body(13, 30), body(14, 100)), good_hit(2)]
    code, written, report = files(firefly_records, hit_records, "--drop-pii", array=array)
    assert code == 0
    assert report["counts"]["hit"] == {
        "read": 4,
        "dropped": {"duplicate": 1},
        "duplicates": 1,
        "kept": 3,
        "bad_records": [],
    }
    assert report["counts"]["firefly"]["dropped"] == {
        "duplicate": 1,
        "format_marker": 1,
        "input_low_chinese": 1,
        "instruction_too_short": 1,
        "output_empty": 1,
        "output_low_chinese": 1,
        "output_refusal": 1,
        "output_too_long": 1,
        "pii_phone": 1,
    }
    assert report["counts"]["firefly"]["read"] == 12
    assert report["sources"] == {"hit_kept": 3, "firefly_kept": 3}
    assert report["final_count"] == len(written) == 6
    by_source = [record["source"] for record in written]
    assert (by_source.count("hit"), by_source.count("firefly")) == (3, 3)
    assert [r["topic"] for r in written if "topic" in r] == ["食堂"]
    assert [r["category"] for r in written if "category" in r] == ["作诗"]


def test_what_is_written_is_the_original_text(files):
    answer = "第一步：打开网站（ＨＩＴ）。\n\n第二步，“登录”！\u200b" + body(1, 80)
    _, written, _ = files([firefly(1, output=f" \n{answer}\n ", input=body(2, 25))], [])
    messages = parse_chatml(written[0]["text"])
    assert messages[1]["content"] == answer.replace("\u200b", "")
    assert messages[0]["content"] == body(1, 30) + "\n" + body(2, 25)
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_a_hit_record_is_preferred_over_an_equal_open_one(files):
    question, answer = body(1, 40), body(2, 100)
    full_width = {"instruction": f" {question}　", "input": "", "output": answer + "\n"}
    _, written, report = files([full_width], [hit(question, answer)])
    assert [record["source"] for record in written] == ["hit"]
    assert report["counts"]["firefly"]["dropped"] == {"duplicate": 1}


def test_several_turns_are_kept_whole_and_every_answer_is_gated(files):
    long = hit(body(1, 30), body(2, 100), "短问", body(3, 100), system=body(4, 30))
    bad = hit(body(5, 30), body(6, 100), "短问", "短答", system=body(7, 30))
    _, written, report = files([], [long, bad])
    assert [record["text"] for record in written] == [long["text"]]
    assert report["counts"]["hit"]["dropped"] == {"output_too_short": 1}


def test_near_duplicates_over_both_sources(files):
    text = body(1, 400)
    edited = text[:200] + "改" + text[201:]
    hits = [hit(body(2, 100), text)]
    others = [{"instruction": body(2, 100), "input": "", "output": edited}, firefly(50)]
    _, _, exact = files(others, hits)
    assert exact["sources"] == {"hit_kept": 1, "firefly_kept": 2}
    _, written, near = files(others, hits, "--near-dup-threshold", "6")
    assert near["counts"]["firefly"]["dropped"] == {"near_duplicate": 1}
    assert near["near_dup_threshold_bits"] == 6
    assert {record["source"] for record in written} == {"hit", "firefly"}
    _, _, off = files(others + others, hits, "--near-dup-threshold", "6", "--no-dedup")
    assert off["final_count"] == 5


def test_no_filter_keeps_all_but_empty_ones(files):
    records = [firefly(1, output="短"), firefly(2, output=""), firefly(3, instruction="x")]
    _, _, report = files(records, [], "--no-filter")
    assert report["counts"]["firefly"]["dropped"] == {"output_empty": 1}
    assert report["counts"]["firefly"]["kept"] == 2


def test_mixing_says_what_was_asked_and_what_was_delivered(files, capsys):
    records, hits = [firefly(i) for i in range(20)], [good_hit(i) for i in range(4)]
    _, written, report = files(records, hits, "--total", "10", "--hit-ratio", "0.4")
    assert [record["source"] for record in written].count("hit") == 4
    assert (report["hit_ratio_target"], report["hit_ratio_delivered"], report["hit_ratio_note"]) == (0.4, 0.4, None)
    _, written, report = files(records, hits, "--total", "15", "--hit-ratio", "0.4")
    assert report["allocated"] == {"hit": 4, "firefly": 11}
    assert report["hit_ratio_delivered"] == round(4 / 15, 6)
    assert "HIT 需要 6 条，只有 4 条" in report["hit_ratio_note"]
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "要求 0.4，实际 0.2667" in last
    assert "--total 10" in last
    _, _, report = files(records, hits, "--hit-ratio", "0.4")
    assert report["hit_ratio_applied"] is False
    assert report["final_count"] == 24


def test_eval_size_splits_off_records_that_training_never_sees(files, tmp_path, capsys):
    code, written, report = files(
        [firefly(i) for i in range(20)], [good_hit(i) for i in range(10)], "--eval-size", "0.2"
    )
    held_out = [json.loads(line) for line in (tmp_path / "mix_eval.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (code, len(written), report["held_out"]) == (0, 24, {"hit": 2, "firefly": 4})
    assert [r["source"] for r in held_out] == ["hit"] * 2 + ["firefly"] * 4
    assert not {r["text"] for r in held_out} & {r["text"] for r in written}
    for wrong in ("-1", "0", "1.5"):
        assert files([firefly(1)], [], "--eval-size", wrong)[0] == 2
        assert "--eval-size" in capsys.readouterr().err


def test_max_firefly_stops_reading(files):
    _, _, report = files([firefly(i) for i in range(9)], [good_hit(1)], "--max-firefly", "3", "--stream-json")
    assert report["counts"]["firefly"]["read"] == report["counts"]["firefly"]["kept"] == 3


def test_a_bad_record_after_the_last_one_wanted_is_not_reached(files):
    records = [*(firefly(i) for i in range(3)), {"instruction": "没有回答"}]
    code, _, report = files(records, [good_hit(1)], "--max-firefly", "3")
    assert code == 0
    assert report["counts"]["firefly"]["read"] == 3
    assert files(records, [good_hit(1)])[0] == 2


def test_equal_input_gives_equal_bytes_and_another_seed_another_order(files, tmp_path):
    records, hits = [firefly(i) for i in range(20)], [good_hit(i) for i in range(9)]
    out, info = tmp_path / "mix.jsonl", tmp_path / "mix_dataset_info.json"
    argv = ["--total", "12", "--near-dup-threshold", "3"]
    seen = []
    for seed in ("42", "42", "43"):
        files(records, hits, *argv, "--seed", seed)
        seen.append((out.read_bytes(), info.read_bytes()))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]


def test_a_line_of_ten_megabytes_is_dropped_by_its_length(files):
    _, _, report = files([firefly(1, output="长" * 3_400_000), firefly(2)], [])
    assert report["counts"]["firefly"]["dropped"] == {"output_too_long": 1}


@pytest.mark.parametrize("array", [False, True])
def test_an_unreadable_record_stops_with_its_place_or_is_counted(files, capsys, array):
    records = [firefly(1), {"instruction": "没有回答"}, firefly(2), {"instruction": body(1, 30), "output": 3}]
    assert files(records, [], array=array)[0] == 2
    err = capsys.readouterr().err
    assert ("firefly.json 第 2 条：缺少 output" if array else "firefly.jsonl:2：缺少 output") in err
    assert "--skip-bad" in err
    _, _, report = files(records, [], "--skip-bad", array=array)
    counts = report["counts"]["firefly"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (4, 2, {"bad_record": 2})
    assert [name in message for name, message in zip(("output", "int"), counts["bad_records"], strict=True)] == [
        True
    ] * 2


def test_a_hit_line_that_is_no_chatml_is_named(files, capsys):
    assert files([], [good_hit(1), {"text": "你好"}])[0] == 2
    assert "hit.jsonl:2：没有 <|beginofutterance|>" in capsys.readouterr().err
    assert files([], [firefly(1)])[0] == 2
    assert "--firefly-json" in capsys.readouterr().err


def test_shrinking_to_nothing_names_the_source_that_is_empty_and_writes_nothing(files, tmp_path, capsys):
    source = f"old={tmp_path / 'firefly.jsonl'}:2"
    code, *_ = files([firefly(1)], [good_hit(1)], "--source", source, "--total", "9", "--on-shortage", "shrink")
    assert code == 2
    assert "一条也取不出：old" in capsys.readouterr().err
    assert not (tmp_path / "mix.jsonl").exists()


def test_nothing_passes_is_an_error_and_writes_nothing(files, tmp_path, capsys):
    assert files([firefly(1, output="短")], [])[0] == 2
    err = capsys.readouterr().err
    assert "回答太短 1" in err
    assert "没有一条记录通过" in err
    assert not (tmp_path / "mix.jsonl").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["mix.jsonl", "mix_dataset_info.json"])
def test_no_disk_space_leaves_both_old_files(files, tmp_path, capsys, name):
    for old in ("mix.jsonl", "mix_dataset_info.json"):
        (tmp_path / old).write_text("old")
    os.symlink("/dev/full", tmp_path / f"{name}.part")
    assert files([firefly(1)], [])[0] == 2
    assert "磁盘空间不足" in capsys.readouterr().err
    for old in ("mix.jsonl", "mix_dataset_info.json"):
        assert (tmp_path / old).read_text() == "old"


def test_the_report_and_the_examples_of_the_format_document_are_true(files):
    document = (ROOT / "docs" / "FORMATS.md").read_text(encoding="utf-8")
    _, _, report = files([firefly(1), firefly(1)], [good_hit(1)])
    names = {*report, *report["params"], *report["counts"]["firefly"], "duplicate", "near_duplicate"} - {"sources"}
    assert [name for name in sorted(names) if f"`{name}`" not in document and f"`{name}." not in document] == []
    examples = [json.loads(block.split("\n```")[0]) for block in document.split("```json\n")[1:]]
    assert len(examples) == 7
    hit_example, stored, alpaca, kind = examples[:4]
    assert set(stored) == set(entry_of("图书馆", 6, [], "m", Answer("[]"))) | {"cost", "currency"}
    assert hit_record(hit_example)[0][0][0] == "instruction"
    assert firefly_record(alpaca)[1][0]["content"].endswith("今天天气很好。")
    assert carried(kind) == {"category": "作诗"}
