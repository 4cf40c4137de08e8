"""Logging and small things that belong to no other file."""

import functools
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import UserError

logger = logging.getLogger("firefly")


class AboveBar(logging.StreamHandler):
    """Writes a line above the progress bar, if one is being drawn, and not into the middle of it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # as every handler: a message that cannot be written must not stop what it tells of
            self.handleError(record)


def setup_logging(output_dir: str | Path, is_main: bool = True) -> logging.Logger:
    """Send messages to stderr and to ``output_dir``/train.log; ranks other than 0 say errors only."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    stamp = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = [AboveBar(sys.stderr)]
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


def explain_out_of_memory(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """Wrap train.py's ``main``: a GPU that runs out of memory is a UserError that says what to change."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported here, so that --help stays instant
                raise
            raise UserError(
                "显存不足，训练停止（已存的 checkpoint 都在）。在同一条命令后加 --estimate，会列出放得下的改法与各自的显存；"
                "常用的有：per_device_train_batch_size 减半而 gradient_accumulation_steps 加倍（结果不变）、"
                "gradient_checkpointing、8 位优化器、减小 max_seq_length、train_mode 改为 lora 或 qlora。"
            ) from None

    return wrapped
