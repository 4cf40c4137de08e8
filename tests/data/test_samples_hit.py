"""The promises of the bundled HIT samples: counts, lengths, variety, and what the filters do with each bad record."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from LLM_data_gen.validation import check_sample, fingerprint

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
KNOWLEDGE, FACTS = slice(0, 240), slice(240, 540)
DEMO_PREFIX = "过滤演示："

# Per demonstration topic: what generation rejects, what preparation drops of the rest, how many good records remain.
DEMO = {
    "过滤演示：回答太短、留有手机号": ({"output_too_short": 3}, {"pii_phone": 6}, 0),
    "过滤演示：大段英文、留有邮箱": ({"output_low_chinese": 2}, {"pii_email": 6}, 0),
    "过滤演示：拒绝回答、网址成堆": ({"output_refusal": 4, "output_too_many_urls": 2}, {}, 6),
    "过滤演示：完全重复、近似重复": ({"duplicate": 3}, {"duplicate": 2, "near_duplicate": 2}, 2),
}


def read_lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]


def split(text: str) -> tuple[str, str, str]:
    """Take HIT ChatML apart by hand, and insist on every character of the form."""
    parts = []
    for role, piece in zip(("系统", "用户", "智能助手"), text.split("\n<|endofutterance|>"), strict=False):
        head = f"<|beginofutterance|>{role}\n"
        piece = piece if role == "系统" else piece.removeprefix("\n")
        assert piece.startswith(head), piece[:40]
        parts.append(piece.removeprefix(head))
    system, user, assistant = parts
    rebuilt = zip(("系统", "用户", "智能助手"), parts, strict=True)
    assert text == "\n".join(f"<|beginofutterance|>{r}\n{c}\n<|endofutterance|>" for r, c in rebuilt)
    assert all(p == p.strip() and p and "<|" not in p for p in parts)
    return system, user, assistant


def chinese_share(text: str) -> float:
    return sum("\u4e00" <= c <= "\u9fff" for c in text) / len(text)


def likeness(a: str, b: str) -> float:
    """Jaccard similarity of the sets of character bigrams."""
    first, second = ({s[i : i + 2] for i in range(len(s) - 1)} for s in (a, b))
    return len(first & second) / len(first | second)


def generated(topic: str) -> tuple[list[dict], Counter]:
    """Records that generation accepts for a topic, in order, and the reasons for the rest."""
    accepted, rejected, seen = [], Counter(), set()
    for row in RECORDS:
        if row["topic"] != topic:
            continue
        sample = dict(zip(("instruction", "input", "output"), split(row["text"]), strict=True))
        reason = check_sample(sample) or ("duplicate" if fingerprint(row["text"]) in seen else None)
        if reason:
            rejected[reason] += 1
        else:
            seen.add(fingerprint(row["text"]))
            accepted.append(row)
    return accepted, rejected


def prepare(rows: list[dict], folder: Path) -> tuple[list[dict], dict]:
    """Run preparation for real with the README's flags; return the rows it keeps and its counts for HIT."""
    import prep_sft_firefly_hit

    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    flags = ["--min-chinese-ratio", "0.65", "--drop-pii", "--near-dup-threshold", "3", "--log", "ERROR"]
    assert prep_sft_firefly_hit.main(["--hit-jsonl", str(source), "--out", str(out), "--hit-ratio", "1", *flags]) == 0
    info = json.loads((folder / "out_dataset_info.json").read_text(encoding="utf-8"))
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return kept, info["counts"]["hit"]


RECORDS = read_lines("hit_samples.jsonl")


def test_topics_file_lists_the_topics_in_the_order_of_the_records():
    topics = (SAMPLES / "topics.txt").read_text(encoding="utf-8").splitlines()
    assert topics == list(dict.fromkeys(row["topic"] for row in RECORDS))
    assert len(topics) == 94
    assert all(set(row) == {"topic", "text"} for row in RECORDS)


def test_knowledge_and_facts_have_six_records_a_topic():
    for part, topics in ((KNOWLEDGE, 40), (FACTS, 50)):
        sizes = Counter(row["topic"] for row in RECORDS[part])
        assert (len(sizes), set(sizes.values())) == (topics, {6})
    assert {row["topic"] for row in RECORDS[540:]} == set(DEMO)
    assert len(RECORDS) == 240 + 300 + 38


@pytest.mark.parametrize(("part", "user_max", "output_max"), [(KNOWLEDGE, 300, 220), (FACTS, 60, 110)])
def test_lengths_and_share_of_chinese(part, user_max, output_max):
    for row in RECORDS[part]:
        system, user, assistant = split(row["text"])
        assert 20 <= len(system) <= 60, system
        assert 20 <= len(user) <= user_max, user
        assert 80 <= len(assistant) <= output_max, assistant
        assert all(chinese_share(text) >= 0.65 for text in (system, user, assistant)), row["text"]


def test_knowledge_answers_and_questions_all_differ():
    parts = [split(row["text"]) for row in RECORDS[KNOWLEDGE]]
    assert max(likeness(a[1], b[1]) for a, b in combinations(parts, 2)) < 0.6
    assert max(likeness(a[2], b[2]) for a, b in combinations(parts, 2)) < 0.3


def test_facts_have_one_system_text_and_one_answer_each_under_a_hundred_questions():
    parts = [split(row["text"]) for row in RECORDS[FACTS]]
    assert len({system for system, _, _ in parts}) == 1
    assert sorted(Counter(answer for _, _, answer in parts).values()) == [100, 100, 100]
    assert max(likeness(a[1], b[1]) for a, b in combinations(parts, 2)) < 0.6
    for question in read_lines("questions.jsonl"):
        right = {answer for _, _, answer in parts if all(word in answer for word in question["must_contain"])}
        assert len(right) == 1, question["id"]


def test_questions_of_one_fact_do_not_name_another():
    for _, user, answer in (split(row["text"]) for row in RECORDS[FACTS]):
        assert ("校训" in user) == ("功夫到家" in answer), user
        assert ("校区" in user) == ("一校三区" in answer), user


def test_held_out_questions_are_absent_from_the_samples():
    questions = read_lines("questions.jsonl")
    parts = [split(row["text"]) for row in RECORDS]
    assert [q["id"] for q in questions] == ["who", "motto", "campus"]
    words = set("".join(user for _, user, _ in parts[FACTS]))
    for question in questions:
        assert set(question) == {"id", "prompt", "system", "must_contain"}
        assert question["system"] == parts[FACTS.start][0]
        assert max(likeness(question["prompt"], user) for _, user, _ in parts) < 0.4
        assert set(question["prompt"]) <= words  # made of characters that the model has met
        assert not any(word in question["prompt"] for word in question["must_contain"])


@pytest.mark.parametrize("topic", DEMO)
def test_demonstration_topics_are_filtered_as_they_say(topic, tmp_path):
    rejected_by_generation, dropped_by_preparation, n_kept = DEMO[topic]
    accepted, rejected = generated(topic)
    assert rejected == rejected_by_generation
    assert len(accepted) == 6  # so that a run with six a topic fills every topic
    if not n_kept:
        accepted.append(RECORDS[0])  # preparation writes nothing, and says so, when nothing is left
    kept, counts = prepare(accepted, tmp_path)
    assert counts["dropped"] == dropped_by_preparation
    assert len(kept) == (n_kept or 1)


def test_preparation_keeps_every_record_of_knowledge_and_facts(tmp_path):
    rows = [row for topic in dict.fromkeys(r["topic"] for r in RECORDS) for row in generated(topic)[0]]
    assert len(rows) == 94 * 6
    kept, counts = prepare(rows, tmp_path)
    assert counts["dropped"] == {"pii_phone": 6, "pii_email": 6, "duplicate": 2, "near_duplicate": 2}
    good = {row["text"] for row in RECORDS[:540]}
    assert good <= {row["text"] for row in kept}
    assert len(kept) == 540 + 8


def test_readme_counts_are_those_of_the_files():
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"| {len(RECORDS)} |" in readme
    assert "| 94 |" in readme
    assert all(topic.removeprefix(DEMO_PREFIX) in readme for topic in DEMO)
