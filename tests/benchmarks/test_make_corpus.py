"""The corpus is what its truth says, the same each time, and nothing but the planted is near to another."""

import json

import pytest

from benchmarks.bench_near_dup import levenshtein
from benchmarks.make_corpus import PII, main
from sft_data.features import jaccard
from sft_data.quality import Gates, check_output, check_pii
from tests.sft_data.test_features import feature_set


def make(folder, name: str, *options: str):
    assert main(["--out", str(folder / name), "--records", "4000", *options]) == 0
    text = (folder / name).read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    truth = json.loads((folder / f"{name.split('.')[0]}.truth.json").read_text(encoding="utf-8"))
    return records, truth


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("corpus"), "one.json")


def body(record: dict[str, str]) -> str:
    return " ".join(record.values())


def test_the_same_arguments_make_the_same_corpus_in_either_format(made, tmp_path):
    assert make(tmp_path, "two.jsonl") == made
    assert make(tmp_path, "three.json", "--seed", "7")[0] != made[0]


def test_what_is_planted_is_what_the_truth_says(made):
    records, truth = made
    assert truth["records"] == len(records) == 4000
    kinds = {kind for _, kind, _ in truth["planted"]}
    assert kinds == set(truth["shares"])
    for index, kind, original in truth["planted"]:
        if kind == "exact":
            assert records[index] == records[original]
        elif kind.startswith("near"):
            assert original < index
            assert 0 < levenshtein(body(records[original]), body(records[index])) <= int(kind[4:])
        elif kind in PII:
            assert check_pii(records[index]["output"]) == f"pii_{kind}"
        elif kind == "spam":
            assert check_output(records[index]["output"], Gates().max_urls) in ("advertisement", "refusal")
        else:
            assert body(records[index]).isascii()


def test_nothing_else_is_near_to_another(made):
    records, truth = made
    planted = {index for index, kind, _ in truth["planted"] if kind != "english"}
    sets = [feature_set(body(record), "bigram") for i, record in enumerate(records) if i not in planted][:700]
    assert max(jaccard(sets[i], sets[j]) for i in range(len(sets)) for j in range(i)) < 0.7


def test_as_is_keeps_the_real_records_once(tmp_path):
    real = [{"instruction": f"说说第{i}件事", "input": "", "output": f"第{i}件事" + "很好" * 40} for i in range(300)]
    (tmp_path / "real.json").write_text(json.dumps(real), encoding="utf-8")
    records, truth = make(tmp_path, "out.json", "--as-is", "--firefly-json", str(tmp_path / "real.json"))
    planted = {index for index, _, _ in truth["planted"]}
    plain = [record for i, record in enumerate(records) if i not in planted]
    assert len(plain) > 250
    assert [record for record in real if record in plain] == plain


def test_levenshtein_is_the_table():
    words = [
        "",
        "a",
        "ab",
        "中文分词",
        "中文的分词",
        "分词中文",
        "abcabc",
        "bcabca",
        "x" * 70,
        "x" * 30 + "y" + "x" * 40,
    ]
    for a in words:
        for b in words:
            row = list(range(len(b) + 1))
            for i, x in enumerate(a, 1):
                diagonal, row[0] = row[0], i
                for j, y in enumerate(b, 1):
                    diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
            assert levenshtein(a, b) == row[-1]
