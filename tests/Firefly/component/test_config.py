import json

import pytest

from Firefly.component.argument import build_arguments
from Firefly.component.config import check_keys, parse_overrides, read_train_args, translate_old_keys
from Firefly.component.errors import UserError
from Firefly.component.machine import fit_to_machine

MINIMAL = {"train_file": "d.jsonl", "model_name_or_path": "m", "output_dir": "o"}


def write(tmp_path, text):
    path = tmp_path / "args.json"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_overrides_win_over_the_file_and_keep_their_types(tmp_path):
    path = write(tmp_path, json.dumps(MINIMAL | {"learning_rate": 2e-4, "bf16": True}))
    values, notices = read_train_args(path, ["--learning_rate", "1e-3", "--bf16", "false", "--output_dir", "out/a"])
    assert values["learning_rate"] == 1e-3
    assert values["bf16"] is False
    assert values["output_dir"] == "out/a"
    assert notices == []


@pytest.mark.parametrize("words", [["--learning_rate"], ["learning_rate", "1"]])
def test_overrides_that_are_no_pairs(words):
    with pytest.raises(UserError, match="--键 值"):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"warmup_ratio": 0.03}, {"warmup_steps": 0.03}),
        ({"warmup_ratio": 0.03, "warmup_steps": 200}, {"warmup_steps": 200}),
        ({"logging_dir": "x"}, {}),
        ({"save_safetensors": False}, {}),
        ({"no_cuda": True}, {"use_cpu": True}),
        ({"optim": "adamw_hf"}, {"optim": "adamw_torch"}),
    ],
)
def test_old_keys_are_translated_with_a_notice(old, new):
    values, notices = translate_old_keys(old)
    assert values == new
    assert len(notices) == 1
    assert next(iter(old)) in notices[0]


def test_new_key_beats_its_old_name():
    assert translate_old_keys({"evaluation_strategy": "no", "eval_strategy": "steps"})[0] == {"eval_strategy": "steps"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rat": 1}, ["learning_rat", "learning_rate"]),
        ({"train_mode": "lorra"}, ["train_mode", "lorra", "qlora"]),
        ({"train_file": ""}, ["train_file"]),
        ({"eval_ratio": 1.5}, ["eval_ratio", "1.5"]),
        ({"eval_strategy": "steps"}, ["eval_file"]),
    ],
)
def test_bad_keys_and_values_name_key_value_and_remedy(change, words):
    with pytest.raises(UserError) as error:
        check_keys(MINIMAL | change, "a.json")
    assert all(word in str(error.value) for word in ["a.json", *words])


@pytest.mark.parametrize(("text", "word"), [('{"a": 1,}', "a.json"), ("[1]", "JSON 对象"), ("{", "1")])
def test_unreadable_json(tmp_path, text, word):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        read_train_args(str(path))


def test_gbk_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"output_dir": "输出"}'.encode("gbk"))
    with pytest.raises(UserError, match="UTF-8"):
        read_train_args(str(path))


def test_what_transformers_refuses_is_a_sentence():
    with pytest.raises(UserError, match="transformers"):
        build_arguments(MINIMAL | {"lr_scheduler_type": "nonsense", "use_cpu": True}, "a.json")


def test_cpu_falls_back_with_a_sentence_for_each_change():
    values = MINIMAL | {"fp16": True, "deepspeed": "ds.json"}
    notices = fit_to_machine(values)
    assert values["use_cpu"] is True
    assert values["fp16"] is False
    assert "deepspeed" not in values
    assert len(notices) == 2
