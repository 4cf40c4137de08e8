"""Adapters and their bases: where a base is found, what a run left beside its adapter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from Firefly.component import adapter
from Firefly.component.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def named(folder, base):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_relative_base_is_looked_for_from_firefly_too(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "Firefly").mkdir()
    monkeypatch.setattr(adapter, "FIREFLY", tmp_path / "Firefly")
    found = adapter.find_base(named(tmp_path, "../models/base"), "--base")
    assert (tmp_path / "models" / "base").samefile(found)
    assert adapter.find_base(named(tmp_path, "owner/name"), "--base") == "owner/name"


@pytest.mark.parametrize(
    ("base", "said"), [("../gone", "底座 ../gone 不在了，请用 --base"), (None, "没有记录底座，请用 --base")]
)
def test_a_base_that_is_gone_is_said_with_the_flag_that_helps(tmp_path, base, said):
    with pytest.raises(UserError, match=said):
        adapter.find_base(named(tmp_path, base), "--base")


def test_a_wrong_path_is_said_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from Firefly.script.merge_lora import main; "
        f"print(main(['--adapter', {str(tmp_path)!r}, '--out', 'x']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "2 False\n"
    assert "没有 adapter_config.json" in done.stderr


def test_training_arguments_are_found_beside_the_adapter_or_above_its_checkpoint(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    assert adapter.read_training(checkpoint) == {}
    (tmp_path / "run" / "train_args.json").write_text(json.dumps({"train_mode": "qlora"}))
    assert adapter.read_training(checkpoint) == {"train_mode": "qlora"}
    (checkpoint / "train_args.json").write_text(json.dumps({"train_mode": "lora"}))
    assert adapter.read_training(checkpoint) == {"train_mode": "lora"}
    (checkpoint / "train_args.json").write_text("cut off {")
    assert adapter.read_training(checkpoint) == {"train_mode": "qlora"}
