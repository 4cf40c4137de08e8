"""The same bytes from a real Ray cluster of two nodes on this machine as from one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prep_sft_firefly_hit as prep
from tests.test_prep_sft_firefly_hit import firefly, good_hit

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def run(*argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "prep_sft_firefly_hit.py", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("near", [["--near-dup-threshold", "8"], ["--near-dup"]])
def test_bytes_equal_those_of_one_process(tmp_path, address, near):
    records = [firefly(i) for i in range(400)]
    records += [{**r, "output": r["output"][:50] + "改" + r["output"][51:]} for r in records[:60]] + records[:30]
    shards = []
    for i in range(3):
        shards.append(tmp_path / f"ff-{i}.jsonl")
        lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in records[i::3]]
        shards[-1].write_text("".join(lines), encoding="utf-8")
    hit = tmp_path / "hit.jsonl"
    hit.write_text("".join(json.dumps(good_hit(i), ensure_ascii=False) + "\n" for i in range(40)), encoding="utf-8")
    argv = ["--firefly-json", str(tmp_path / "ff-*.jsonl"), "--hit-jsonl", str(hit), "--eval-size", "30"]
    argv += [*near, "--total", "200", "--hit-ratio", "0.1"]
    written = []
    for name, how in (("one", ["--workers", "1"]), ("ray", ["--engine", "ray", "--address", address])):
        out = tmp_path / name
        files = ["--out", str(out / "mix.jsonl"), "--dropped-out", str(out / "dropped.jsonl")]
        done = run(*argv, *files, *how)
        assert done.returncode == 0, done.stderr
        written.append({file: (out / file).read_bytes() for file in os.listdir(out)})
    assert set(written[0]) == {"mix.jsonl", "mix_eval.jsonl", "mix_dataset_info.json", "dropped.jsonl"}
    assert written[0] == written[1]
    assert json.loads(written[0]["mix_dataset_info.json"])["counts"]["firefly"]["duplicates"] > 30


def test_no_cluster_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "ff.jsonl"
    path.write_text(json.dumps(firefly(1)) + "\n", encoding="utf-8")
    argv = ["--firefly-json", str(path), "--out", str(tmp_path / "o.jsonl"), "--engine", "ray"]
    done = run(*argv, "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "连不上 Ray 集群" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.jsonl").exists()
    assert prep.main([*argv[:4], "--engine", "local"]) == 0
