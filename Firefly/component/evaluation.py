"""What an evaluation needs: held-out rows by source, and the figures of the weights that are left at the end."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

MAX_SOURCES = 12  # more lines than this nobody reads, and every source costs a batch that isn't full
REST = "其余"


def group_sources(categories: Sequence[str], limit: int = MAX_SOURCES) -> dict[str, list[int]]:
    """Return the rows of each source, in the order in which the sources first appear.

    Of more than ``limit`` sources the largest keep their own group and the others share one, called 其余.
    """
    counts = Counter(categories)
    kept = {name for name, _ in counts.most_common(limit if len(counts) <= limit else limit - 1)}
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(categories):
        groups.setdefault(name if name in kept else REST, []).append(row)
    return groups


def source_keys(names: Sequence[str]) -> dict[str, str]:
    """Map each source's name to what stands for it in a metric's name: letters of any script, digits, _ - and dot."""
    keys: dict[str, str] = {}
    for name in names:
        base = key = re.sub(r"[^\w.-]+", "_", name).strip("_")[:40] or "source"
        number = 2
        while key in keys.values():
            key, number = f"{base}_{number}", number + 1
        keys[name] = key
    return keys


def final_evaluation(trainer: Any) -> dict[str, float]:
    """The evaluation of the weights that are left when training is over: made already and in the log, or made now."""
    state, args = trainer.state, trainer.args
    best = args.load_best_model_at_end and state.best_model_checkpoint
    step = state.best_global_step if best else state.global_step
    for entry in reversed(state.log_history):
        if "eval_loss" in entry and entry["step"] == step:
            return {key: value for key, value in entry.items() if key.startswith("eval_")}
    return trainer.evaluate()
