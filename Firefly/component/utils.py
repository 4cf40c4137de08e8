"""Logging and small things that belong to no other file."""

import logging
import os
import resource
import sys
from pathlib import Path

logger = logging.getLogger("firefly")


def setup_logging(output_dir: str | Path, is_main: bool = True) -> logging.Logger:
    """Send messages to stderr and to ``output_dir``/train.log; ranks other than 0 say errors only."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    stamp = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_main:
        handlers.append(logging.FileHandler(Path(output_dir) / "train.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(stamp)
        logger.addHandler(handler)
    return logger


def quiet_libraries() -> None:
    """Keep libraries' progress bars quiet where stderr is no terminal."""
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def peak_memory_gib() -> dict[str, float]:
    """Return peak memory in GiB: of the process, and on a GPU allocated and reserved."""
    import torch

    peak = {"peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    if torch.cuda.is_available():
        peak["peak_gpu_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        peak["peak_gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
    return peak


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
