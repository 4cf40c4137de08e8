"""Load a tiny model as train.py would, from values of a train_args file."""

import pytest

from Firefly.component.argument import build_arguments
from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.model import load_for_training
from Firefly.component.vocabulary import add_tokens


@pytest.fixture
def load_model(tiny_minicpm, tmp_path):
    """Return a function: keyword arguments are keys of the file; gives (model in training mode, tokenizer, args)."""
    from transformers import set_seed

    def load(**changes):
        values = {"train_file": "x", "model_name_or_path": str(tiny_minicpm), "output_dir": str(tmp_path / "out")}
        values |= {"train_mode": "lora", "lora_rank": 4, "lora_dropout": 0.0, "use_cpu": True, "report_to": "none"}
        custom, args = build_arguments(values | changes, "args.json")
        tokenizer = load_tokenizer(custom.model_name_or_path)
        add_tokens(tokenizer, custom.add_tokens)
        set_seed(1)
        return load_for_training(custom, args, tokenizer).train(), tokenizer, args

    return load
