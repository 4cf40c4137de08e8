"""Run Firefly/train.py in this process, as `cd Firefly && python train.py` would, but without importing torch anew."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

QUESTIONS = [
    "校训是什么？",
    "学校有几个校区？",
    "你是谁？",
    "图书馆几点开门？",
    "怎么申请助学金？",
    "冬天怎么保暖？",
    "怎样选课？",
    "食堂好吃吗？",
]


def conversation(i: int, turns: int = 1, system: str | None = "你是校园助手。") -> dict:
    pairs = [
        {
            "human": QUESTIONS[(i + t) % 8],
            "assistant": f"这是第{i}条第{t}轮的回答，" + "规格严格，功夫到家。" * (1 + (i + t) % 3),
        }
        for t in range(turns)
    ]
    return {"conversation_id": i, "category": "HIT", "conversation": pairs} | ({"system": system} if system else {})


@pytest.fixture(autouse=True)
def token_cache(tmp_path_factory, monkeypatch):
    """Return where token caches go in tests: never to the home directory."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FIREFLY_CACHE", str(folder))
    return folder / "tokens"


@pytest.fixture(scope="session")
def train_main():
    sys.path.insert(0, str(ROOT / "Firefly"))
    return importlib.import_module("train").main


@pytest.fixture
def write_args(tmp_path, tiny_minicpm):
    """Return a function that writes data and a train_args JSON; keyword arguments change the JSON's values."""

    def write(records=None, **changes):
        data = tmp_path / "train.jsonl"
        records = [conversation(i) for i in range(16)] if records is None else records
        data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        values = {
            "train_file": str(data),
            "model_name_or_path": str(tiny_minicpm),
            "output_dir": str(tmp_path / "out"),
            "template_name": "minicpm4",
            "train_mode": "lora",
            "lora_rank": 4,
            "max_seq_length": 256,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
        }
        path = tmp_path / "args.json"
        path.write_text(json.dumps(values | changes, ensure_ascii=False), encoding="utf-8")
        return str(path)

    return write
