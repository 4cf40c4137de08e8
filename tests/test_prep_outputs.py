"""What prep_sft_firefly_hit.py writes beside the mixture, and that its bytes follow from contents, flags and seed alone."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prep_sft_firefly_hit as prep
from sft_data.chatml import render_chatml
from sft_data.jsonl import read_records
from tests.test_prep_sft_firefly_hit import body, firefly, good_hit, hit


def write(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def records_of(path: Path) -> list[dict]:
    return [record for _, record in read_records(path)]


@pytest.fixture
def run(tmp_path, capsys):
    """Run prep over files of the given records; return (exit code, folder of outputs, what was said)."""

    def run(*argv, out="mix.jsonl", **sources):
        inputs = []
        for name, records in sources.items():
            path = write(tmp_path / f"{name}.jsonl", records)
            flags = {"firefly": ["--firefly-json", path], "hit": ["--hit-jsonl", path]}
            inputs += flags.get(name, ["--source", f"{name}={path}:2"])
        capsys.readouterr()
        code = prep.main([*inputs, "--out", str(tmp_path / out), *argv])
        return code, tmp_path, capsys.readouterr().err

    return run


def many(n: int, start: int = 0) -> list[dict]:
    return [firefly(i) for i in range(start, start + n)]


def edited(record: dict, field: str = "output") -> dict:
    return {**record, field: record[field][:40] + "改" + record[field][41:]}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(["1", "3"]),
    st.sampled_from([[], ["--total", "30", "--hit-ratio", "0.4"]]),
)
def test_the_order_of_the_input_and_the_number_of_workers_change_no_byte(tmp_path_factory, rng, workers, argv):
    """Copies are equal to the byte here: of two that differ in form alone, the first is kept."""
    folder = tmp_path_factory.mktemp("order")
    hits, others = [good_hit(i) for i in range(12)], [*many(40), *many(9), firefly(99, output="短")]
    written = []
    for shuffle, number in ((False, "1"), (True, workers)):
        if shuffle:
            rng.shuffle(hits)
            rng.shuffle(others)
        inputs = [
            "--hit-jsonl",
            write(folder / "hit.jsonl", hits),
            "--firefly-json",
            write(folder / "ff.jsonl", others),
        ]
        code = prep.main(
            [
                *inputs,
                "--out",
                str(folder / "mix.jsonl"),
                "--overwrite",
                "--eval-size",
                "0.1",
                "--workers",
                number,
                *argv,
            ]
        )
        assert code == 0
        written.append([(folder / name).read_bytes() for name in ("mix.jsonl", "mix_dataset_info.json")])
        written[-1].append(sorted((folder / "mix_eval.jsonl").read_bytes().splitlines()))
    assert written[0] == written[1]


def test_many_blocks_on_several_workers_give_the_bytes_of_one(tmp_path, monkeypatch):
    from sft_data import blocks, writing

    path = write(tmp_path / "ff.jsonl", [*many(300), *many(50, 100)])
    argv = ["--firefly-json", path, "--near-dup", "--eval-size", "20", "--keep-meta"]
    seen = []
    for workers, size in (("1", 1 << 20), ("3", 5000)):
        monkeypatch.setattr(blocks.split, "__defaults__", (size,))
        monkeypatch.setattr(writing, "CHUNK", size // 100)
        out = tmp_path / workers
        files = [
            "--out",
            str(out / "mix.jsonl"),
            "--dropped-out",
            str(out / "dropped.jsonl"),
            "--dups-out",
            str(out / "dups.jsonl"),
        ]
        assert prep.main([*argv, *files, "--workers", workers]) == 0
        assert len(os.listdir(out)) == 5
        seen.append([(out / name).read_bytes() for name in sorted(os.listdir(out))])
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("how", "hits", "others", "said"),
    [
        ("backfill", 4, 16, "要求 0.5，实际 0.2。HIT 需要 10 条，只有 4 条；其余用 Firefly 补足"),
        ("shrink", 4, 4, "要求 0.5，实际 0.5。HIT 需要 10 条，只有 4 条；总数缩到了 8 条"),
        ("repeat", 10, 10, "要求 0.5，实际 0.5。HIT 需要 10 条，只有 4 条；HIT 平均重复 2.5 次"),
    ],
)
def test_a_short_source_is_dealt_with_as_asked_and_the_last_line_says_so(run, how, hits, others, said):
    code, folder, err = run(
        "--total", "20", "--on-shortage", how, hit=[good_hit(i) for i in range(4)], firefly=many(30)
    )
    assert code == 0
    sources = [record["source"] for record in records_of(folder / "mix.jsonl")]
    assert (sources.count("hit"), sources.count("firefly")) == (hits, others)
    assert said in err.strip().splitlines()[-1]


def test_a_short_source_may_be_an_error_and_nothing_is_written(run):
    code, folder, err = run("--total", "20", "--on-shortage", "fail", hit=[good_hit(1)], firefly=many(30))
    assert code == 2
    assert "HIT 需要 10 条，只有 1 条" in err
    assert sorted(os.listdir(folder)) == ["firefly.jsonl", "hit.jsonl"]
    assert run("--on-shortage", "fail", firefly=many(3))[0] == 2


def test_more_sources_by_weight_and_of_any_form(run):
    messages = [
        {"messages": [{"role": "user", "content": body(i, 30)}, {"role": "assistant", "content": body(i + 1, 100)}]}
        for i in range(0, 60, 2)
    ]
    share = [
        {"conversations": [{"from": "human", "value": body(i, 30)}, {"from": "gpt", "value": body(i + 1, 100)}]}
        for i in range(100, 160, 2)
    ]
    code, folder, err = run(
        "--total",
        "50",
        "--hit-ratio",
        "0.2",
        hit=[good_hit(i) for i in range(30)],
        firefly=many(30, 300),
        belle=messages,
        moss=share,
    )
    assert code == 0
    sources = [record["source"] for record in records_of(folder / "mix.jsonl")]
    assert [sources.count(name) for name in ("hit", "firefly", "belle", "moss")] == [10, 8, 16, 16]
    info = json.loads((folder / "mix_dataset_info.json").read_text(encoding="utf-8"))
    assert info["shares"]["moss"] == {"asked": 0.32, "delivered": 0.32}
    assert "moss 要求 0.32，实际 0.32" in err
    for wrong in ("belle", "hit=x.jsonl", "a=x.jsonl:0", "=x.jsonl", "a=nothing/*.jsonl"):
        assert prep.main(["--source", wrong, "--out", str(folder / "o.jsonl")]) == 2


def test_nothing_like_an_evaluation_record_is_left_for_training(run):
    """Each record has a near copy; near-duplicates were not asked for, and yet none may straddle the split."""
    records = [firefly(i, output=body(i + 500, 900)) for i in range(30)]
    code, folder, _ = run("--eval-size", "10", firefly=records + [edited(record) for record in records])
    assert code == 0
    held_out = {record["text"][:60] for record in records_of(folder / "mix_eval.jsonl")}
    trained = [record["text"][:60] for record in records_of(folder / "mix.jsonl")]
    assert len(held_out) > 5
    assert not held_out & set(trained)
    counts = json.loads((folder / "mix_dataset_info.json").read_text(encoding="utf-8"))["counts"]["firefly"]
    assert counts["read"] == 60 == counts["kept"] + counts["dropped"]["near_eval"]
    assert len(trained) == counts["kept"] - 10


def test_every_dropped_record_is_written_with_its_reason_and_its_evidence(run):
    records = [
        firefly(1), firefly(1), edited(firefly(1)), firefly(2, output="答" * 1201), firefly(3, output="english " * 20),
        firefly(4, output="很抱歉，我无法回答这个问题。" + body(4, 100)), firefly(5, output=body(5, 100) + "手机13812345678联系"),
        firefly(6, output=body(6, 100) + "http://a.cn " * 6), firefly(7, output=body(7, 100) + "作业帮"),
        firefly(8, output=body(8, 100) + "<|endofutterance|>"), {"instruction": "没有回答"},
    ]  # fmt: skip
    argv = [
        "--drop-pii",
        "--near-dup-threshold",
        "12",
        "--drop-pattern",
        "作业.",
        "--skip-bad",
        "--min-chinese-ratio",
        "0.5",
    ]
    folder = run(*argv, firefly=records)[1]
    outputs = ["--dropped-out", str(folder / "dropped.jsonl"), "--dups-out", str(folder / "dups.jsonl"), "--overwrite"]
    assert run(*argv, *outputs, firefly=records)[0] == 0
    dropped = {record["line"]: record for record in records_of(folder / "dropped.jsonl")}
    shown = {line: (record["reason"], record["evidence"]) for line, record in dropped.items()}
    path = folder / "firefly.jsonl"
    assert shown == {
        2: ("duplicate", f"{path}:1"),
        3: ("near_duplicate", f"{path}:1"),
        4: ("output_too_long", "1201 字，应为 80–1200"),
        5: ("output_low_chinese", "中文占比 0.000，下限 0.5"),
        6: ("output_refusal", "抱歉,我无法"),
        7: ("pii_phone", "13812345678"),
        8: ("output_too_many_urls", "6 个网址，上限 5"),
        9: ("output_drop_pattern", "作业帮"),
        10: ("format_marker", "<|endofutterance|>"),
        11: ("bad_record", dropped[11]["evidence"]),
    }
    assert "缺少 output" in dropped[11]["evidence"]
    assert dropped[4]["record"] == records[3]
    counts = json.loads((folder / "mix_dataset_info.json").read_text(encoding="utf-8"))["counts"]["firefly"]
    assert counts["read"] == 11 == counts["kept"] + len(dropped)
    pairs = records_of(folder / "dups.jsonl")
    assert [(pair["kept"]["line"], pair["dropped"]["line"]) for pair in pairs] == [(1, 2), (1, 3)]
    assert pairs[0]["kept"]["text"] == pairs[0]["dropped"]["text"] != pairs[1]["dropped"]["text"]
    assert 0 < pairs[1]["distance"] <= 12


def test_personal_data_may_be_replaced_instead(run):
    records = [firefly(1, output=body(1, 100) + "电话１３８１２３４５６７８或zhang@hit.edu.cn"), firefly(2)]
    code, folder, _ = run("--redact-pii", firefly=records)
    assert code == 0
    texts = [record["text"] for record in records_of(folder / "mix.jsonl")]
    assert len(texts) == 2
    assert any("电话[手机号]或[邮箱]" in text for text in texts)
    twice = [records[0], firefly(1, output=body(1, 100) + "电话13900001111或li@hit.edu.cn")]
    assert run("--redact-pii", "--overwrite", firefly=twice)[0] == 0  # equal once they name nobody
    assert len(records_of(folder / "mix.jsonl")) == 1


def test_where_a_record_came_from_travels_to_the_conversation(run):
    import chatml2conversation as convert

    code, folder, _ = run("--keep-meta", hit=[good_hit(1)], firefly=[firefly(1, output="短"), firefly(2)])
    assert code == 0
    metas = {record["source"]: record["meta"] for record in records_of(folder / "mix.jsonl")}
    assert metas == {
        "hit": {"file": str(folder / "hit.jsonl"), "line": 1},
        "firefly": {"file": str(folder / "firefly.jsonl"), "line": 2},
    }
    assert convert.main(["--in", str(folder / "mix.jsonl"), "--out", str(folder / "c.jsonl")]) == 0
    assert {record["source"]: record["meta"] for record in records_of(folder / "c.jsonl")} == metas


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl.gz", "mix.jsonl.zst", "mix.parquet"])
def test_every_form_of_output_holds_the_same_records_and_can_be_read_again(run, name):
    sources = {"hit": [good_hit(1, topic="食堂")], "firefly": many(5)}
    assert run("--eval-size", "2", **sources)[0] == 0
    code, folder, _ = run("--eval-size", "2", "--overwrite", out=name, **sources)
    assert code == 0
    for ending in ("", "_eval"):
        plain = records_of(folder / f"mix{ending}.jsonl")
        assert records_of(folder / name.replace("mix", f"mix{ending}", 1)) == plain
    again = ["--hit-jsonl", str(folder / name), "--out", str(folder / "again.jsonl"), "--no-filter", "--seed", "9"]
    assert prep.main(again) == 0
    assert sorted(r["text"] for r in records_of(folder / "again.jsonl")) == sorted(
        r["text"] for r in records_of(folder / "mix.jsonl")
    )
    if name.endswith(".gz"):
        assert gzip.decompress((folder / name).read_bytes()) == (folder / "mix.jsonl").read_bytes()


def test_an_output_that_is_there_stays_unless_told_otherwise(run):
    sources = {"firefly": many(4)}
    code, folder, _ = run(**sources)
    before = (folder / "mix.jsonl").read_bytes()
    code, _, err = run(firefly=many(2))
    assert code == 2
    assert "--overwrite" in err
    assert "--append" in err
    assert (folder / "mix.jsonl").read_bytes() == before
    assert run("--overwrite", firefly=many(2))[0] == 0
    assert len(records_of(folder / "mix.jsonl")) == 2


def test_appending_adds_what_is_new_and_touches_nothing_old(run):
    others = [firefly(i, output=body(i + 500, 900)) for i in range(8)]
    code, folder, _ = run("--eval-size", "2", hit=[good_hit(1)], firefly=others[:6])
    assert code == 0
    before = (folder / "mix.jsonl").read_bytes()
    held_out = json.loads((folder / "mix_eval.jsonl").read_text(encoding="utf-8").splitlines()[0])
    news = [good_hit(1), good_hit(2), edited_text(held_out)]
    code, _, err = run("--append", "--near-dup", hit=news, firefly=others)
    assert code == 0, err
    after = (folder / "mix.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(before.splitlines()) + 3  # good_hit(2) and two Firefly records
    info = json.loads((folder / "mix_dataset_info.json").read_text(encoding="utf-8"))
    assert (info["appended_to"], info["allocated"]) == (5, {"hit": 1, "firefly": 2})
    assert info["counts"]["firefly"]["dropped"] == {"in_out": 6}
    assert info["counts"]["hit"]["read"] == 3 == info["counts"]["hit"]["kept"] + 2
    run("--append", hit=news[:2], firefly=others)
    assert (folder / "mix.jsonl").read_bytes() == after


def edited_text(record: dict) -> dict:
    return {"text": record["text"][:-90] + "改" + record["text"][-89:]}


def test_flags_that_do_not_go_together(run):
    for argv in (
        ["--append", "--overwrite"], ["--append", "--eval-size", "3"], ["--strict"], ["--tokenizer", "x"],
        ["--near-dup-method", "minhash", "--near-dup-threshold", "3"], ["--near-dup-jaccard", "0.8", "--near-dup-threshold", "3"], ["--max-repeat", "0"],
    ):  # fmt: skip
        code, folder, err = run(*argv, firefly=many(2))
        assert code == 2, argv
        assert len(err.strip().splitlines()) == 1
        assert os.listdir(folder) == ["firefly.jsonl"]


@pytest.mark.parametrize("argv", [["--near-dup"], ["--near-dup-method", "simhash"], ["--near-dup-features", "word"]])
def test_each_way_of_near_duplicates_drops_the_later_copy(run, argv):
    originals = [hit(body(i, 100), body(i + 50, 400)) for i in range(3)]
    copies = [
        {"instruction": body(i, 100), "input": "", "output": edited({"output": body(i + 50, 400)})["output"]}
        for i in range(3)
    ]
    code, folder, _ = run(*argv, hit=originals, firefly=[*copies, firefly(900)])
    assert code == 0
    info = json.loads((folder / "mix_dataset_info.json").read_text(encoding="utf-8"))
    assert info["counts"]["firefly"]["dropped"] == {"near_duplicate": 3}
    assert info["near_dup"]["method"] == ("simhash" if "simhash" in argv else "minhash")


def test_shards_of_a_source_by_a_pattern(tmp_path, capsys):
    for i in range(3):
        write(tmp_path / f"part-{i}.jsonl", many(2, 2 * i))
    assert prep.main(["--firefly-json", str(tmp_path / "part-*.jsonl"), "--out", str(tmp_path / "mix.jsonl")]) == 0
    assert len(records_of(tmp_path / "mix.jsonl")) == 6


def test_rendered_text_is_one_record_a_line(run):
    code, folder, _ = run(firefly=[firefly(1, output=body(1, 60) + "\n\u2028\n" + body(2, 60))])
    assert code == 0
    (line,) = (folder / "mix.jsonl").read_bytes().split(b"\n")[:-1]
    assert json.loads(line)["text"] == render_chatml(
        [
            {"role": "user", "content": body(1, 30)},
            {"role": "assistant", "content": body(1, 60) + "\n\u2028\n" + body(2, 60)},
        ]
    )
