"""Contender (c): LLaMA-Factory, by the function behind `llamafactory-cli train`. Argument: bench_train.py's settings.

It renders and tokenises the conversations itself, with its template for MiniCPM4.
"""

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")


def stand_in_for_torchaudio() -> None:
    """LLaMA-Factory imports it for audio models; beside a CPU torch there may be none, and text needs none."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    stand_in_for_torchaudio()
    from llamafactory.extras.env import VERSION
    from llamafactory.train.tuner import run_exp
    from step_timer import StepTimer

    training = {key: value for key, value in settings["training"].items() if key != "train_sampling_strategy"}
    timer = StepTimer(settings["warm_up"], settings["pad_token_id"])
    run_exp(
        {
            "model_name_or_path": settings["view"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "conversations",
            "dataset_dir": settings["dataset_dir"],
            "template": "cpm4",
            "cutoff_len": settings["max_length"],
            "packing": settings["packed"],
            "neat_packing": settings["packed"],
            "disable_shuffling": True,
            "disable_gradient_checkpointing": not training.get("gradient_checkpointing", False),
            "overwrite_cache": True,
            "preprocessing_num_workers": 1,
            "output_dir": settings["out"],
            "overwrite_output_dir": True,
            **training,
        },
        callbacks=[timer],
    )
    timer.report(llamafactory=VERSION)


if __name__ == "__main__":
    main(sys.argv[1])
