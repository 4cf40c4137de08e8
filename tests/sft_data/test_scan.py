"""Pass one says of each record what the plain functions say of it alone; the table keeps every record accounted for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sft_data.blocks import Text, split
from sft_data.chatml import render_chatml
from sft_data.dedup import fingerprint
from sft_data.engine import run
from sft_data.errors import UserError
from sft_data.jsonl import read_records
from sft_data.pii import redact_pii
from sft_data.quality import Gates, normalise
from sft_data.reasons import BAD, MARKER, REASONS
from sft_data.scan import Job, Near, Rules, read_fields, scan
from sft_data.screen import judge
from sft_data.simhash import simhash
from sft_data.table import File, Table, exact_twins

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data" / "samples"
ASK, ANSWER = (
    "请介绍一下图书馆的开放时间和借书的办法，谢谢你了。",
    "图书馆早上八点开门，晚上十点关门，凭校园卡可以借书十本，借期一个月，到期可以续借一次。" * 3,
)
NEAR = Near("simhash", "bigram", 6)


def record(**fields):
    return {"instruction": ASK, "input": "", "output": ANSWER, **fields}


AWKWARD = [
    record(),
    record(input=None),
    record(input=" \u200b"),
    record(input="短"),
    record(output=ANSWER + "手机１３８１２３４５６７８联系"),
    record(output=ANSWER + "<|beginofutterance|>"),
    record(output=ANSWER + "<|endof\u200butterance|>"),
    record(output=ANSWER + "\u200b👨\u200d👩\u200d👧"),
    record(output="ｅ\u200b\u0301" + ANSWER),
    record(output=" \n" + ANSWER + "\u3000"),
    record(output=""),
    record(output=7),
    {"kind": "作诗", "input": ASK, "target": ANSWER},
    record(history=[[ASK, ANSWER]]),
    record(history="不是列表"),
    record(system=ASK),
    {"text": render_chatml([{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}])},
    {"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]},
    {"messages": [{"role": "tool", "content": ASK}]},
    {"instruction": "没有回答"},
]


def scanned(tmp_path, records, kind, rules):
    path = tmp_path / "r.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records))
    with open(path, "rb") as file:
        (block,) = split(file, path)
    return scan(Job(path, kind, rules, block.base, len(block.data), block.starts, block.ends))


def plainly(obj, kind, rules):
    """Return (reason, body) by the functions that do one record at a time."""
    try:
        fields, messages = read_fields(obj, kind)
    except (ValueError, AttributeError):
        return "bad_record", ""
    if rules.redact:
        fields = [(name, redact_pii(text)) for name, text in fields]
    plain = [(name, normalise(text)) for name, text in fields]
    reason = judge(plain, rules.gates)
    if reason is None:
        try:
            render_chatml(messages)
        except ValueError:
            reason = "format_marker"
    return reason, " ".join(text for _, text in plain)


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("kind", ["firefly", "any", "hit"])
def test_a_block_is_judged_like_its_records_one_by_one(tmp_path, kind, redact):
    records = AWKWARD * 2
    for name in ("general_samples.json", "general_samples_kind.jsonl"):
        records += [obj for _, obj in read_records(SAMPLES / name)][:60]
    with open(SAMPLES / "hit_samples.jsonl", encoding="utf-8") as lines:
        records += [json.loads(line) for line in list(lines)[:60]]
    rules = Rules(Gates(drop_pii=not redact), (NEAR,), redact)
    found = scanned(tmp_path, records, kind, rules)
    plain = [plainly(obj, kind, rules) for obj in records]
    assert [REASONS[code] or None for code in found.codes] == [reason for reason, _ in plain]
    bodies = [body for reason, body in plain if reason is None]
    assert bodies
    assert [row.tobytes() for row in found.prints] == [fingerprint(body.encode()) for body in bodies]
    assert found.marks[0].tolist() == [simhash(body) for body in bodies]


def test_what_is_no_record_is_counted_as_such(tmp_path):
    found = scanned(tmp_path, ["3", "[]", "{", '"text"', record()], "firefly", Rules(None, (), False))
    assert found.codes.tolist() == [BAD] * 4 + [0]
    assert found.lengths.tolist()[:4] == [[0, 0, 0]] * 4
    assert found.lengths.tolist()[4] == [len(ASK), 0, len(ANSWER)]


def slow_twins(prints):
    seen, twin = {}, []
    for i, print_ in enumerate(map(tuple, prints.tolist())):
        twin.append(seen.get(print_, -1))
        seen.setdefault(print_, i)
    return twin


@pytest.mark.parametrize("values", [1, 3, 1000])
def test_exact_twins_are_those_of_a_dictionary(values):
    prints = np.random.default_rng(values).integers(0, values, (500, 2)).astype(np.uint64)
    assert exact_twins(prints).tolist() == slow_twins(prints)
    assert exact_twins(prints[:0]).tolist() == []


def test_halves_that_are_equal_make_no_twins():
    prints = np.array([[1, 1], [1, 2], [1, 1], [2, 1]], np.uint64)
    assert exact_twins(prints).tolist() == [-1, -1, 0, -1]


def test_a_table_accounts_for_every_record(tmp_path):
    rules = Rules(Gates(), (NEAR,), False)
    found = scanned(tmp_path, AWKWARD, "firefly", rules)
    text = Text(tmp_path / "r.jsonl", False)
    job = Job(text.path, "firefly", rules, 0, 0, np.zeros(20, np.int64), np.ones(20, np.int64))
    table = Table()
    table.files = [File("firefly", "firefly", "r.jsonl", text), File("hit", "hit", "r.jsonl", text)]
    table.add(0, job, np.arange(1, 21), found)
    table.add(1, job, np.arange(1, 21), found)
    table.close()
    old = np.zeros(len(table.passed), bool)
    table.drop_twins(np.arange(len(table.passed)), exact_twins(table.prints), old.astype(np.float32), 31, old)
    for source in ("firefly", "hit"):
        counts = table.counts(source)
        assert counts["read"] == 20 == counts["kept"] + sum(counts["dropped"].values())
    assert table.counts("hit")["kept"] == 0
    assert MARKER in table.codes
    assert table.where(21) == "r.jsonl:2"


def double(x):
    return 2 * x


def test_results_come_in_order_and_an_error_after_those_before_it():
    def jobs():
        yield from range(9)
        raise UserError("断了")

    for workers in (1, 3):
        got = []
        with pytest.raises(UserError, match="断了"):
            got += run(double, jobs(), workers)
        got = []
        try:
            for pair in run(double, jobs(), workers):
                got.append(pair)
        except UserError:
            pass
        assert got == [(i, 2 * i) for i in range(9)]


def kill(_):
    os._exit(9)


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(UserError, match="内存不够"):
        list(run(kill, iter(range(9)), 2))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, time\nfrom sft_data.engine import run\n"
        'def slow(_):\n    os.write(1, b"%d\\n" % os.getpid())\n    time.sleep(600)\n'
        "list(run(slow, iter(range(9)), 2))\n"
    )
    (tmp_path / "slow.py").write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, tmp_path / "slow.py"], env=env, stdout=subprocess.PIPE)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)
