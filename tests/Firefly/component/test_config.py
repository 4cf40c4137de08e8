import json

import pytest

from Firefly.component.argument import build_arguments
from Firefly.component.config import check_keys, effective_config, load_file, parse_overrides, read_train_args
from Firefly.component.errors import UserError
from Firefly.component.machine import fit_to_machine

MINIMAL = {"train_file": "d.jsonl", "model_name_or_path": "m", "output_dir": "o"}


def write(tmp_path, text, name="args.json"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_overrides_win_over_the_file_and_keep_their_types(tmp_path):
    path = write(tmp_path, json.dumps(MINIMAL | {"learning_rate": 2e-4, "bf16": True}))
    values, notices = read_train_args(path, ["--learning_rate", "1e-3", "--bf16", "false", "--output_dir", "out/a"])
    assert values["learning_rate"] == 1e-3
    assert values["bf16"] is False
    assert values["output_dir"] == "out/a"
    assert notices == []


def test_a_file_named_as_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="先 cd Firefly"):
        read_train_args("train_args/sft/lora/minicpm4-0.5b-sft-lora.json")
    with pytest.raises(UserError, match="请检查路径"):
        read_train_args("train_args/sft/lora/nothing.json")


def test_yaml_says_what_json_says(tmp_path):
    text = """
    # a comment
    train_file: d.jsonl
    model_name_or_path: m
    output_dir: 输出/a
    learning_rate: 2e-4     # YAML 1.1 alone would read a string
    weight_decay: .5e-1
    max_steps: 1e3
    bf16: yes
    packing: off
    eval_strategy: no       # YAML 1.1 alone would read false
    report_to: none
    deepspeed: null
    add_tokens: [<a>, '<b>']
    gradient_checkpointing_kwargs: {use_reentrant: no}
    """
    values, notices = read_train_args(write(tmp_path, text, "a.yml"))
    assert notices == []
    assert values == MINIMAL | {
        "output_dir": "输出/a",
        "learning_rate": 2e-4,
        "weight_decay": 0.05,
        "max_steps": 1000,
        "bf16": True,
        "packing": False,
        "eval_strategy": "no",
        "report_to": "none",
        "deepspeed": None,
        "add_tokens": ["<a>", "<b>"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [1, 2\nc: 3\n", 3), ("a: 1\n\tb: 2\n", 2), ("a: 1\nb: 2\na: 3\n", 3), ("a: b: c\n", 1)],
)
def test_unreadable_yaml_names_its_line(tmp_path, text, line):
    with pytest.raises(UserError, match=rf"a\.yaml:{line}:"):
        load_file(write(tmp_path, text, "a.yaml"))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--learning_rate=1e-4"], {"learning_rate": 1e-4}),
        (["--learning-rate", "1e-4"], {"learning_rate": 1e-4}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "--max_steps", "3"], {"bf16": True, "max_steps": 3}),
        (["--bf16", "False", "--packing=on"], {"bf16": False, "packing": True}),
        (["--seed", "-1"], {"seed": -1}),
        (["--run_name", "5"], {"run_name": "5"}),
        (["--output_dir", "my runs/a=b"], {"output_dir": "my runs/a=b"}),
        (["--lora_target_modules", '["q_proj"]'], {"lora_target_modules": ["q_proj"]}),
        (["--lora_target_modules", "q_proj,v_proj"], {"lora_target_modules": ["q_proj", "v_proj"]}),
        (["--lora_target_modules", "q_proj", "v_proj"], {"lora_target_modules": ["q_proj", "v_proj"]}),
        (["--lora_target_modules", "all-linear"], {"lora_target_modules": "all-linear"}),
        (["--deepspeed", "null"], {"deepspeed": None}),
        (["--early_stopping_patience", "none"], {"early_stopping_patience": None}),
        (["--report_to", "none"], {"report_to": "none"}),
        (["--gradient_checkpointing_kwargs", '{"use_reentrant": true}'], {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
        (["--eval_strategy", "no"], {"eval_strategy": "no"}),
    ],
)  # fmt: skip
def test_words_of_the_command_line_become_values_of_their_keys_types(words, values):
    assert parse_overrides(words) == values
    checked = check_keys(MINIMAL | values, "a.json")
    assert {key: checked[key] for key in values} == values


@pytest.mark.parametrize(
    "words",
    [["--learning_rate"], ["learning_rate", "1"], ["--output_dir", "a", "b"], ["--"], ["--output_dir", "--bf16"]],
)
def test_overrides_that_are_no_pairs(words):
    with pytest.raises(UserError, match="--键 值"):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rat": 1}, ["learning_rat", "learning_rate"]),
        ({"train_mode": "lorra"}, ["train_mode", "lorra", "qlora"]),
        ({"train_file": ""}, ["train_file"]),
        ({"eval_ratio": 1.5}, ["eval_ratio", "1.5"]),
        ({"eval_strategy": "steps"}, ["eval_file"]),
        ({"learning_rate": "2e-4"}, ["learning_rate", "'2e-4'", "数字", "引号"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"max_seq_length": 0.5}, ["max_seq_length", "0.5", "整数", "1024"]),
        ({"max_seq_length": -1}, ["max_seq_length", "-1"]),
        ({"lora_rank": True}, ["lora_rank", "True", "整数", "64"]),
        ({"packing": "maybe"}, ["packing", "maybe", "true"]),
        ({"output_dir": 5}, ["output_dir", "5", "引号"]),
        ({"add_tokens": 5}, ["add_tokens", "5", "列表"]),
        ({"max_steps": [1]}, ["max_steps", "[1]", "整数"]),
        ({"eval_ratio": None}, ["eval_ratio", "None", "数字"]),
    ],
)
def test_bad_keys_and_values_name_key_value_and_remedy(change, words):
    with pytest.raises(UserError) as error:
        check_keys(MINIMAL | change, "a.json")
    assert all(word in str(error.value) for word in ["a.json", *words]), error.value


@pytest.mark.parametrize(
    ("text", "word"),
    [('{"a": 1,}', "a.json:1"), ("[1]", "JSON 对象"), ("{\n", "a.json:2"), ('{"a": 1, "a": 2}', "2 次")],
)
def test_unreadable_json(tmp_path, text, word):
    with pytest.raises(UserError, match=word):
        read_train_args(write(tmp_path, text, "a.json"))


def test_gbk_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"output_dir": "输出"}'.encode("gbk"))
    with pytest.raises(UserError, match="UTF-8"):
        read_train_args(str(path))


def test_bad_value_on_the_command_line_is_a_sentence(tmp_path):
    path = write(tmp_path, json.dumps(MINIMAL))
    with pytest.raises(UserError, match=r"learning_rate='fast'.*数字"):
        read_train_args(path, ["--learning_rate", "fast"])
    with pytest.raises(UserError, match=r"lora_target_modules.*JSON"):
        read_train_args(path, ["--lora_target_modules", "[q_proj]"])


def test_the_effective_config_is_the_file_over_our_defaults_and_a_train_args_file_itself(tmp_path):
    path = write(tmp_path, json.dumps(MINIMAL | {"warmup_ratio": 0.1}))
    values, _ = read_train_args(path, ["--lora_rank", "8"])
    shown = effective_config(values)
    assert shown["lora_rank"] == 8  # given
    assert shown["lora_alpha"] == 16  # our default
    assert shown["warmup_steps"] == 0.1  # translated
    again, notices = read_train_args(write(tmp_path, json.dumps(shown), "b.json"))
    assert (again, notices) == (shown, [])


def test_print_config_answers_without_model_or_data(train_main, write_args, tmp_path, capsys):
    args = write_args(model_name_or_path="nowhere", train_file="nowhere", evaluation_strategy="no")
    assert train_main(["--train_args_file", args, "--print-config", "--learning_rate", "5e-5"]) == 0
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert (shown["learning_rate"], shown["eval_strategy"], shown["lora_rank"]) == (5e-5, "no", 4)
    assert "evaluation_strategy" in err
    assert not (tmp_path / "out").exists()


def test_what_transformers_refuses_is_a_sentence():
    with pytest.raises(UserError, match="transformers"):
        build_arguments(MINIMAL | {"lr_scheduler_type": "nonsense", "use_cpu": True}, "a.json")


def test_cpu_falls_back_with_a_sentence_for_each_change():
    values = MINIMAL | {"fp16": True, "deepspeed": "ds.json", "use_liger_kernel": True}
    notices = fit_to_machine(values)
    assert values["use_cpu"] is True
    assert values["fp16"] is False
    assert "deepspeed" not in values
    assert "use_liger_kernel" not in values
    assert len(notices) == 3
