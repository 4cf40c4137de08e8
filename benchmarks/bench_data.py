"""What every contender of bench_train.py and gpu_train.py gets: one model, one file of conversations, one tokenisation."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SYSTEM = "You are a helpful assistant."  # the default of our template minicpm4, written out for LLaMA-Factory's cpm4


def build_model(folder: Path, tokenizer: Any, shape: dict[str, Any], dtype: str = "float32", std: float = 0.05) -> Path:
    """Write a MiniCPM folder with random weights; ``shape`` changes the config.json of scripts/make_tiny_model.py.

    The vocabulary may be larger than the tokenizer's: its size is what logits cost, whatever the tokens are.
    """
    import torch
    from transformers import GraniteForCausalLM

    from Firefly.component.checkpoint import load_config, save_checkpoint
    from scripts.make_tiny_model import minicpm_config

    config = minicpm_config(len(tokenizer), 192, 4, dtype)
    config |= {"intermediate_size": shape["hidden_size"] * 8 // 3 // 64 * 64, "dim_model_base": 256} | shape
    half_head = config["hidden_size"] // config["num_attention_heads"] // 2
    config["rope_scaling"] |= {"long_factor": [1.0] * half_head, "short_factor": [1.0] * half_head}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(42)
    model = GraniteForCausalLM(load_config(folder))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.1 if "embed_tokens" in name else std, generator=generator)
    save_checkpoint(model.to(getattr(torch, dtype)), folder, tokenizer)
    return folder


def write_data(folder: Path, conversations: Path, tokenizer: Any, max_length: int, need: int) -> dict[str, Any]:
    """Write the first ``need`` records, shuffled, in the form that each contender reads, and return their paths.

    Records without a target within ``max_length`` tokens are left out, as the trainer would, so that every contender
    has the same records in the same order. The file is repeated when it has too few.
    """
    import random

    from Firefly.component.prompt import encode_conversation, record_to_messages

    lines = conversations.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    random.Random(42).shuffle(records)
    kept, rows = [], []
    for record in records:
        messages = record_to_messages(record)
        if messages[0]["role"] != "system":
            record["system"] = SYSTEM
            messages = record_to_messages(record)
        ids, labels = (list(map(int, column[:max_length])) for column in encode_conversation(tokenizer, messages))
        if any(label != -100 for label in labels[1:]):
            kept.append((record, messages))
            rows.append({"input_ids": ids, "labels": labels})
        if len(rows) == need:
            break
    kept, rows = ((column * -(-need // len(column)))[:need] for column in (kept, rows))
    theirs = folder / "llamafactory-data"
    theirs.mkdir()
    _write_lines(folder / "conversation.jsonl", [record for record, _ in kept])
    _write_lines(folder / "rows.jsonl", rows)
    _write_lines(theirs / "conversations.jsonl", [{"messages": messages} for _, messages in kept])
    names = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {
        "file_name": "conversations.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": names | {"system_tag": "system"},
    }
    (theirs / "dataset_info.json").write_text(json.dumps({"conversations": info}))
    return {
        "train_file": str(folder / "conversation.jsonl"),
        "rows": str(folder / "rows.jsonl"),
        "dataset_dir": str(theirs),
        "mean_tokens": sum(len(row["input_ids"]) for row in rows) / len(rows),
        "target_share": sum(sum(x != -100 for x in row["labels"]) for row in rows)
        / sum(len(row["labels"]) for row in rows),
    }


def _write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
