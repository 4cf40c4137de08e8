"""Read a train_args file, JSON or YAML: our keys, every key of transformers' TrainingArguments, and other names for them.

The command line lays its own values over the file's. Every value is held to the type that the key declares, so that a
wrong one is a sentence here and no traceback an hour later.
"""

import difflib
import json
import math
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from .argument import CustomizedArguments
from .errors import UserError
from .keys import check_type, from_text, key_kinds
from .resolve import FIREFLY
from .translate import REFUSED, translate_llamafactory, translate_old_keys

CHOICES = {f.name: f.metadata["choices"] for f in fields(CustomizedArguments) if "choices" in f.metadata}
REQUIRED = ("train_file", "model_name_or_path", "output_dir")
POSITIVE = (
    "max_seq_length", "max_prompt_length", "lora_rank", "lora_alpha", "beta", "tokenize_num_workers",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs",
)  # fmt: skip


def read_train_args(path: str, overrides: list[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Read the file and lay ``--key value`` pairs from the command line over it.

    Returns:
        The values with other names translated, and one Chinese sentence per translation.

    Raises:
        UserError: no file, no JSON or YAML mapping (file:line), an unknown key (with the nearest known one), a value
            of the wrong type or one that can't be.
    """
    values = load_file(path)
    values.update(parse_overrides(overrides))
    values, notices = translate_llamafactory(values, path)
    values, more = translate_old_keys(values)
    return check_keys(values, path), notices + more


def load_file(path: str) -> dict[str, Any]:
    """Return the mapping in a .json, .yaml or .yml file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        hint = "训练要在 Firefly/ 里执行，请先 cd Firefly" if (FIREFLY / path).is_file() else "请检查路径"
        raise UserError(f"{path}：找不到这个文件，{hint}。") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: 不是 UTF-8 文本，请另存为 UTF-8 编码。") from None
    is_yaml = Path(path).suffix.lower() in (".yaml", ".yml")
    values = _parse_yaml(text, path) if is_yaml else _parse_json(text, path)
    if not isinstance(values, dict):
        shape = "“键: 值”的 YAML" if is_yaml else "JSON 对象 {...}"
        raise UserError(f"{path}: 应是一个 {shape}，实际是 {type(values).__name__}。")
    return values


def _parse_json(text: str, path: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{path}: 键 {name!r} 写了 {names.count(name)} 次，请只留一个。")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: 不是合法的 JSON（{error.msg}，第 {error.colno} 列），请检查逗号与引号。"
        ) from None


def _parse_yaml(text: str, path: str) -> Any:
    """YAML with numbers as people write them: YAML 1.1, which PyYAML reads, takes 2e-4 for a string."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise UserError(f"{path}:{key.start_mark.line + 1}: 键 {key.value!r} 写了两次，请只留一个。")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            f"{path}:{mark.line + 1}: 不是合法的 YAML（{error.problem}，第 {mark.column + 1} 列），请检查缩进与冒号。"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: 不是合法的 YAML（{' '.join(str(error).split())}）。") from None


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Turn ``["--learning_rate", "1e-3", "--seed=7", "--bf16"]`` into values, each read as its key's type.

    A key of yes or no may stand alone; a list may be JSON, joined by commas, or several words.
    """
    kinds, values, rest = key_kinds(), {}, list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or not word.strip("-"):
            raise UserError(f"命令行 {word!r} 前面没有键：要改文件里的值，请写成 --键 值，例如 --learning_rate 1e-4。")
        key, equals, text = word[2:].partition("=")
        key, texts = key.replace("-", "_"), [text] if equals else []
        while rest and not rest[0].startswith("--") and not equals:
            texts.append(rest.pop(0))
        kind = kinds.get(key, frozenset())
        if len(texts) > 1 and list in kind:
            values[key] = texts
        elif len(texts) == 1:
            values[key] = from_text(key, texts[0], kind)
        elif not texts and (bool in kind or not kind):  # a key nobody knows is named by check_keys
            values[key] = True
        else:
            what = f"后面有 {len(texts)} 个值 {texts}，值里有空格请加引号" if texts else "后面没有值"
            raise UserError(f"命令行 --{key} {what}：请写成 --键 值，例如 --learning_rate 1e-4。")
    return values


def check_keys(values: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the values, each of its key's type.

    Raises:
        UserError: a key nobody knows, a value of another type or outside its range, a choice nobody offers, or a
            required key that is missing.
    """
    kinds = key_kinds()
    for key in values:
        if key not in kinds:
            near = difflib.get_close_matches(str(key), kinds, n=1)
            hint = REFUSED.get(key) or (f"是不是想写 {near[0]}？" if near else "请删去它，或查 README 的参数表。")
            raise UserError(f"{path}: 不认识的键 {key!r}，{hint}")
    values = {key: check_type(key, value, kinds[key], path) for key, value in values.items()}
    for key, choices in CHOICES.items():
        if values.get(key, choices[0]) not in choices:
            raise UserError(f"{path}: {key}={values[key]!r} 不可用，请用 {'、'.join(choices)} 之一。")
    for key in REQUIRED:
        if not values.get(key):
            raise UserError(f"{path}: 缺少 {key}，请在文件里写上，或在命令行加 --{key} ...。")
    for key in POSITIVE:
        if key in values and not 0 < values[key] < math.inf:
            raise UserError(f"{path}: {key}={values[key]!r} 应大于 0。")
    if not 0 <= values.get("eval_ratio", 0) < 1:
        raise UserError(f"{path}: eval_ratio={values['eval_ratio']!r} 应在 0 与 1 之间，例如 0.05。")
    if values.get("eval_strategy", "no") != "no" and not values.get("eval_file") and not values.get("eval_ratio"):
        raise UserError(
            f"{path}: eval_strategy={values['eval_strategy']!r}，但没有评测数据：请给 eval_file 或 eval_ratio。"
        )
    _check_watching(values, path)
    return values


def _check_watching(values: dict[str, Any], path: str) -> None:
    """The keys that only evaluations give a meaning."""
    patience = values.get("early_stopping_patience")
    if patience is not None and patience < 1:
        raise UserError(f"{path}: early_stopping_patience={patience} 应不小于 1；不要早停请删去它。")
    if patience is not None and values.get("eval_strategy", "no") == "no":
        raise UserError(
            f"{path}: early_stopping_patience={patience} 要在训练中评测才有用：请加 eval_strategy=steps 和 eval_steps"
            "（例如 100），以及 eval_file 或 eval_ratio。"
        )
    if values.get("eval_questions") and not values.get("eval_file") and not values.get("eval_ratio"):
        raise UserError(f"{path}: eval_questions 的问题在评测时回答，但没有评测数据：请给 eval_file 或 eval_ratio。")


def effective_config(values: dict[str, Any]) -> dict[str, Any]:
    """The values over our keys' defaults, in the order of the table of keys; itself a train_args file."""
    required = {
        f.name: values[f.name] for f in fields(CustomizedArguments) if f.default is f.default_factory is MISSING
    }
    return asdict(CustomizedArguments(**required)) | values
