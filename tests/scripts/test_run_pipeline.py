"""run_pipeline.sh: what was named wrongly is said before anything is asked of a paid service. Whole runs are the CI's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """Run the script with some variables set, in an environment that counts as installed."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    wanted = subprocess.run("cat requirements.txt | cksum", shell=True, cwd=ROOT, capture_output=True, text=True)
    (venv / ".installed").write_text(wanted.stdout)
    named = ("MODEL", "FIREFLY_JSON", "TOPICS", "TRAIN_MODE", "TRAIN_ARGS", "GPUS", "OPENAI_BASE_URL")
    env = {k: v for k, v in os.environ.items() if k not in named}
    env |= {"VENV": str(venv), "RUN_DIR": str(tmp_path / "run"), "OPENAI_API_KEY": "sk-test"}

    def call(*args, **more):
        command = ["bash", "scripts/run_pipeline.sh", *args]
        return subprocess.run(command, cwd=ROOT, env=env | more, capture_output=True, text=True, timeout=60)

    return call


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"FIREFLY_JSON": "no/such.json"}, "FIREFLY_JSON=no/such.json"),
        ({"FIREFLY_JSON": "data/samples/*.nothing"}, "FIREFLY_JSON=data/samples/*.nothing"),
        ({"TOPICS": "no/topics.txt"}, "TOPICS=no/topics.txt"),
        ({"MODEL": "models/not-there"}, "MODEL=models/not-there"),
        ({"MODEL": "/no/such/model"}, "MODEL=/no/such/model"),
        ({"TRAIN_MODE": "qlra"}, "qlra"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_paid_for(run, tmp_path, more, says):
    done = run(**more)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("错误：") == 1
    assert not (tmp_path / "run/hit").exists()


def test_a_stage_that_does_not_exist(run):
    done = run("--from", "train3")
    assert done.returncode == 2
    assert "没有 train3 这个阶段" in done.stderr
