"""What the tests of gen_SFT_data.py share: a folder, a run of the script in it, and what came of it."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

import gen_SFT_data
from LLM_data_gen.seen import Seen
from sft_data.chatml import parse_chatml

faults = runpy.run_path(str(Path(__file__).with_name("fault_server.py")))
FaultServer, good_samples, completion = faults["FaultServer"], faults["good_samples"], faults["completion"]
KEY = "sk-test-0123456789abcdef"


def array(topic, n, first=0):
    return json.dumps(good_samples(topic, n, first), ensure_ascii=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no .env of the developer's
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path


def arguments(folder, server, topics, n=2, **flags):
    (folder / "topics.txt").write_text("".join(f"{topic}\n" for topic in topics), encoding="utf-8")
    flags = {"n_per_topic": n, "max_concurrency": 10, "retry_wait_s": 0.02, **flags}
    argv = ["--base-url", server.url, "--topics-file", str(folder / "topics.txt"), "--out", str(folder / "o.jsonl")]
    return argv + [str(part) for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)]


def run(folder, server, topics, n=2, **flags):
    return gen_SFT_data.main(arguments(folder, server, topics, n, **flags))


def rows_by_topic(folder):
    """Count whole, distinct, readable rows by topic."""
    records = [json.loads(line) for line in (folder / "o.jsonl").read_bytes().decode().splitlines()]
    assert all([m["role"] for m in parse_chatml(r["text"])] == ["system", "user", "assistant"] for r in records)
    assert len({record["text"] for record in records}) == len(records)
    return Counter(record["topic"] for record in records)


def report(folder):
    return json.loads((folder / "o_gen_report.json").read_text(encoding="utf-8"))


def names(count):
    return [f"哈工大学习生活主题{i}" for i in range(count)]


def seen_of(rows: list[dict], seed: int = 0) -> Seen:
    """What has been gathered when all of them went by."""
    seen = Seen(seed)
    for row in rows:
        seen.add(row, [(message["role"], message["content"]) for message in parse_chatml(row["text"])])
    return seen
