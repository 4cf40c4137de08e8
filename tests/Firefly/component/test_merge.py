"""Adapters and their bases: where a base is found, what a run left beside its adapter."""

import json

from Firefly.component import merge


def test_relative_base_is_looked_for_from_firefly_too(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "Firefly").mkdir()
    monkeypatch.setattr(merge, "FIREFLY", tmp_path / "Firefly")
    found = merge.find_base(tmp_path, {"base_model_name_or_path": "../models/base"})
    assert (tmp_path / "models" / "base").samefile(found)
    assert merge.find_base(tmp_path, {"base_model_name_or_path": "owner/name"}) == "owner/name"


def test_training_arguments_are_found_beside_the_adapter_or_above_its_checkpoint(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    assert merge.read_training(checkpoint) == {}
    (tmp_path / "run" / "train_args.json").write_text(json.dumps({"train_mode": "qlora"}))
    assert merge.read_training(checkpoint) == {"train_mode": "qlora"}
    (checkpoint / "train_args.json").write_text(json.dumps({"train_mode": "lora"}))
    assert merge.read_training(checkpoint) == {"train_mode": "lora"}
    (checkpoint / "train_args.json").write_text("cut off {")
    assert merge.read_training(checkpoint) == {"train_mode": "qlora"}
