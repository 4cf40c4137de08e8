"""``train.py --estimate``: will the run fit, and how long will it take? Real steps where the card is here, else computed.

Real steps go through the run's own trainer (transformers' training loop: accumulation, clipping, optimizer, DDP,
DeepSpeed): first on the longest rows, for memory, then on steps out of the middle of an epoch, for speed. For a card
that is not here, and for what to change, memory is worked out by simulate.py.
"""

import contextlib
import copy
import gc
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from transformers import DefaultFlowCallback, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from .advice import Setup, advise, predict, worst_rows
from .argument import build_arguments
from .cards import CONTEXT_GIB, GIB, Card, Memory, find_card, read_zero
from .errors import UserError
from .machine import fit_to_machine, leave_processes
from .report import Measured, Report
from .simulate import state_bytes, stored_tensors
from .speed import Meter
from .utils import is_main_process, logger, setup_logging

LONG_STEPS, USUAL_STEPS = 2, 3
EXIT_TOO_LARGE = 3

# What an estimate does not do: save, evaluate, report, resume, look for a batch size.
QUIET = {
    "save_strategy": "no", "eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False,
    "logging_strategy": "no", "report_to": "none", "resume_from_checkpoint_path": None, "push_to_hub": False,
    "early_stopping_patience": None, "auto_find_batch_size": False, "disable_tqdm": True,
}  # fmt: skip


def estimate(
    wanted: str, values: dict[str, Any], path: str, prepare: Callable[..., Any], build_trainer: Callable[..., Any]
) -> int:
    """Print the report; return 0 when the run fits, 3 when it doesn't. Nothing is written to output_dir.

    wanted: a card's size in GiB or its name; "" for this machine. values: of the train_args file. prepare and
    build_trainer: train.py's own; prepare(custom, args) gives the tokenizer and the training data.
    """
    card = find_card(wanted) if wanted else None
    here = _this_machine()
    with tempfile.TemporaryDirectory() as folder:
        quiet = values | QUIET | {"output_dir": folder}
        setup_logging(folder, is_main_process())
        try:
            if card and card.gib > here.gib or card and not torch.cuda.is_available():
                report = _computed(card, _elsewhere(quiet, path, prepare), values)
            else:
                report = _tried(card, here, quiet, values, path, prepare, build_trainer)
        finally:
            while logger.handlers:
                handler = logger.handlers[0]
                logger.removeHandler(handler)
                handler.close()
    if is_main_process():
        print(report.text())
    if not report.ran_out:  # a process that ran out of memory may be the only one: then the launcher ends the others
        leave_processes()
    return 0 if report.fits else EXIT_TOO_LARGE


def _this_machine() -> Card:
    """The GPU, or without one this process's share of the memory that is free."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", 0)))
        return Card(properties.name, properties.total_memory / GIB, None)
    return Card("可用内存", psutil.virtual_memory().available / GIB / int(os.environ.get("LOCAL_WORLD_SIZE", 1)), None)


def _elsewhere(quiet: dict[str, Any], path: str, prepare: Callable[..., Any]) -> Setup:
    """The run as it would be on a card that takes all its settings, built without touching one."""
    plain = {**quiet, "deepspeed": None, "use_cpu": True}
    if plain.get("fp16"):  # of the same size, and a CPU knows it
        plain |= {"fp16": False, "bf16": True}
    custom, args = build_arguments(plain, path)
    setup = Setup(custom, args, *prepare(custom, args), cards=args.world_size)
    return setup.changed(zero=read_zero(quiet.get("deepspeed")))


def _computed(card: Card, setup: Setup, values: dict[str, Any], **more: Any) -> Report:
    """Memory from the structure, time from the card's data sheet."""
    memory, host, model = predict(setup)
    report = Report(setup, values, card, model, memory, host_bytes=host, meter=_count_all(setup, model), **more)
    report.fits_memory = memory.needed <= card.gib and not report.ran_out
    if not report.fits_memory and is_main_process():
        report.advice = advise(setup, card.gib, report.gpu)
    return report


def _count_all(setup: Setup, model: torch.nn.Module) -> Meter:
    """Operations of an epoch, from the lengths alone."""
    meter = Meter(model, 1.0)
    data = getattr(setup.data, "dataset", setup.data)
    lengths = np.asarray(data.lengths, np.float64)
    meter.tokens, meter.targets = lengths.sum(), float(np.sum(data.target_counts, dtype=np.float64))
    pairs = (lengths**2).sum() / 2
    meter.flops = meter.per_token * meter.tokens + meter.per_target * meter.targets + meter.per_pair * pairs
    return meter


def _tried(
    card: Card | None, here: Card, quiet: dict, values: dict, path: str, prepare: Callable, build_trainer: Callable
) -> Report:
    """On this machine, whose GPU may stand in for a smaller card."""
    cuda = torch.cuda.is_available()
    quiet = dict(quiet)
    for notice in fit_to_machine(quiet):
        logger.warning(notice)
    if not cuda and not quiet.get("deepspeed"):  # out of memory, a process is killed without a word: work it out first
        with contextlib.suppress(UserError):  # what can't be worked out is tried
            report = _computed(here, _elsewhere(quiet, path, prepare), values, gpu=False)
            if not report.fits_memory:
                return report
    if cuda and card:
        torch.cuda.set_per_process_memory_fraction(min(1.0, (card.gib - CONTEXT_GIB) / here.gib))
    custom, args = build_arguments(quiet, path)
    settings = copy.copy(args)  # measuring changes some
    trainer = None
    with contextlib.suppress(torch.OutOfMemoryError):
        trainer = build_trainer(custom, args)
        measured = measure(trainer)
        setup = Setup(custom, settings, trainer.tokenizer, trainer.train_dataset, cards=args.world_size)
        return Report(setup, values, card or here, trainer.model, measured.memory, gpu=cuda, measured=measured)
    trainer = None
    gc.collect()
    torch.cuda.empty_cache()
    unset_hf_deepspeed_config()  # else the fake model's weights would be divided too
    setup = Setup(custom, settings, *prepare(custom, settings), cards=args.world_size)
    setup = setup.changed(zero=read_zero(quiet.get("deepspeed")))
    try:
        return _computed(card or here, setup, values, gpu=cuda, ran_out=True)
    except UserError as error:
        raise UserError(f"实跑几步：放不下。怎样改才放得下推算不出来：{error}") from None


class _Watch(TrainerCallback):
    """Notes the time of the usual steps, and the peak of all."""

    def __init__(self, trainer: Any):
        self.trainer, self.peak, self.reserved = trainer, 0, 0
        self.started = self.seconds = self.tokens = self.flops = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        meter = self.trainer.meter
        if state.global_step == LONG_STEPS:
            self.tokens, self.flops, self.started = float(meter.tokens), float(meter.flops), time.perf_counter()
        elif state.global_step == LONG_STEPS + USUAL_STEPS:
            self.seconds = time.perf_counter() - self.started
            self.tokens, self.flops = float(meter.tokens) - self.tokens, float(meter.flops) - self.flops
            self.peak, self.reserved = peak_bytes()


def measure(trainer: Any) -> Measured:
    """Take LONG_STEPS on the longest rows and USUAL_STEPS out of an epoch, through the trainer's own loop."""
    args, data = trainer.args, trainer.train_dataset
    batch = args.per_device_train_batch_size
    batches = args.gradient_accumulation_steps * args.world_size  # of a step
    longest = np.tile(worst_rows(data, batch), LONG_STEPS * batches)
    epoch = np.resize(list(trainer._get_train_sampler(data)), max(len(data), batch * batches * USUAL_STEPS))
    starts = (len(epoch) - batch * batches) * (2 * np.arange(USUAL_STEPS) + 1) // (2 * USUAL_STEPS)
    usual = np.concatenate([epoch[start : start + batch * batches] for start in starts])
    watch = _Watch(trainer)
    trainer.callback_handler.callbacks = [DefaultFlowCallback(), watch]
    trainer.train_dataset = torch.utils.data.Subset(data, np.concatenate([longest, usual]).tolist())
    args.train_sampling_strategy, args.max_steps = "sequential", LONG_STEPS + USUAL_STEPS
    reset_peak()
    trainer.train()
    trainer.train_dataset = data
    meter, world = trainer.meter, args.world_size
    return Measured(
        memory=None if args.deepspeed else parts_of(trainer, watch.peak),
        peak=watch.peak,
        reserved=watch.reserved,
        seconds=watch.seconds,
        tokens=watch.tokens * world,
        mfu=watch.flops / watch.seconds / meter.peak_flops,
    )


def parts_of(trainer: Any, peak: int) -> Memory:
    """Divide a measured peak: weights, gradients and optimizer state from the tensors there are, the rest is the rest."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    models = [trainer.model, *filter(None, [getattr(trainer, "ref_model", None)])]  # DPO's frozen copy
    stored = [tensor for model in models for tensor in stored_tensors(model)]
    weights = sum({t.untyped_storage()._cdata: t.nbytes for t in stored}.values())
    gradients, optimizer = sum(p.nbytes for p in trained), state_bytes(trainer.optimizer)
    rest = max(peak - weights - gradients - optimizer, 0)
    return Memory(weights, gradients, optimizer, rest, sum(p.numel() for p in trained))


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # proc(5): the peak of resident memory starts anew


def peak_bytes() -> tuple[int, int]:
    """Return peak memory: allocated and reserved on a GPU, else that of the process, twice."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return (int(line.split()[1]) << 10,) * 2
    return (psutil.Process().memory_info().rss,) * 2
