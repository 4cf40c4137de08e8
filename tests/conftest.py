"""Shared fixtures: a real MiniCPM, tiny, with a real tokenizer, built once a session."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent

CORPUS = [
    "请介绍一下哈尔滨工业大学的校训。规格严格，功夫到家，是学校代代相传的校训。",
    "哈尔滨工业大学有几个校区？学校有哈尔滨、威海和深圳三个校区，各有自己的特色。",
    "你是谁？我是一个中文智能助手，可以回答学习和生活中的问题。",
    "怎样写好一篇作文？先想清楚要说什么，再把句子写得简单明白，最后读一遍改一遍。",
    "The quick brown fox jumps over 13 lazy dogs, and then rests.",
    "一年有十二个月，春夏秋冬四个季节；夏天炎热，冬天寒冷，春天和秋天比较舒服。",
]


def load_script(path: str):
    """Import a script by its path from the repository root, for scripts that lie in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_minicpm(tmp_path_factory) -> Path:
    """Two layers of 64, own tokenizer, random weights (layers at std 0.2, so that the whole prompt matters)."""
    folder = tmp_path_factory.mktemp("models") / "tiny-minicpm"
    build = load_script("scripts/make_tiny_model.py").build_tiny_model
    return build(folder, CORPUS * 4, vocab_size=600, hidden_size=64, num_layers=2, layer_std=0.2)
