"""Whether a checkpoint fits the way this run is spread over processes, and how DeepSpeed's is cut anew for another number.

torchrun's checkpoints are whole, FSDP's are cut anew by torch; a ZeRO checkpoint has one piece a process. DeepSpeed's
"universal" format (one folder a parameter) fits any number, so it goes through that, in output_dir/.part.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .errors import UserError
from .manifest import read_manifest
from .saving import PART_NAME
from .utils import logger

_NAMES = {"plain": "torchrun（或单卡）", "fsdp": "FSDP", "zero": "DeepSpeed ZeRO-1/2", "zero3": "DeepSpeed ZeRO-3"}


def fit_checkpoint(trainer: Any, checkpoint: Path) -> Path:
    """Return the folder to resume from: ``checkpoint``, or the same cut for this number of processes.

    Raises:
        UserError: it was saved under another kind of sharding, or pieces of it are missing.
    """
    args = trainer.args
    saved, wanted = sharding_of(checkpoint), sharding_wanted(args)
    if saved != wanted:
        key = "adapter_name_or_path" if (checkpoint / "adapter_config.json").exists() else "model_name_or_path"
        raise UserError(
            f"{checkpoint}：存它的是 {_NAMES[saved]}，现在用 {_NAMES[wanted]}，优化器状态读不进来。请照原来的方式启动（只剩一张卡"
            f"也可以：deepspeed --num_gpus=1 或 torchrun --nproc_per_node=1）；或者不续训，以它为起点重新开始：{key}={checkpoint}。"
        )
    if not saved.startswith("zero"):
        return checkpoint
    (pieces,) = checkpoint.glob("global_step*")
    found = len(list(pieces.glob("*_optim_states.pt")))
    before = int(read_manifest(checkpoint).get("run", {}).get("进程数", found))
    if before == args.world_size:
        return checkpoint
    if found != before:
        raise UserError(
            f"{pieces}：存盘时有 {before} 个进程，这里只有 {found} 份优化器状态，换进程数续训要先把各台机器上同名目录里的文件合到一处；"
            f"或者仍用 {before} 个进程续训。"
        )
    folder = Path(args.output_dir) / PART_NAME / "resharded"
    if trainer.is_world_process_zero():
        logger.info(f"{checkpoint} 是 {before} 个进程存的，转成 {args.world_size} 个进程的 …")
        make_universal(checkpoint, folder, pieces.name, args.world_size)
    trainer.accelerator.wait_for_everyone()
    args.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True
    trainer.add_callback(AfterResharding(trainer, folder))
    return folder


def sharding_of(checkpoint: Path) -> str:
    """plain, fsdp, zero (stages 1 and 2) or zero3, from the files that are there."""
    if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")):
        return "zero3"
    if any(checkpoint.glob("global_step*")):
        return "zero"
    return "fsdp" if any(checkpoint.glob("pytorch_model_fsdp*")) else "plain"


def sharding_wanted(args: Any) -> str:
    if args.deepspeed:
        return "zero3" if args.hf_deepspeed_config.is_zero3() else "zero"
    return "fsdp" if args.fsdp else "plain"


def make_universal(checkpoint: Path, folder: Path, pieces: str, world_size: int) -> None:
    """Fill ``folder`` with links to the checkpoint's files and its ``pieces`` in DeepSpeed's universal format."""
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name != "latest":
            os.symlink(path.resolve(), folder / path.name)
    universal = folder / f"{pieces}_universal"
    convert = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
        "--input_folder", str(folder / pieces), "--output_folder", str(universal),
    ]  # fmt: skip
    done = subprocess.run(convert, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{checkpoint}：DeepSpeed 没能转换这个 checkpoint（{done.stderr.strip().splitlines()[-1:]}），请用存它时的进程数续训。"
        )
    ranks = sorted(universal.glob("zero_pp_rank_*_model_states.pt"))  # ZeRO-3: every process asks for one of its own
    for rank in range(len(ranks), world_size if ranks else 0):
        os.symlink(ranks[0].name, universal / ranks[0].name.replace("rank_0", f"rank_{rank}", 1))


class AfterResharding(TrainerCallback):
    """Mends what DeepSpeed's universal loading leaves wrong under ZeRO-3, and removes the copy once training runs."""

    def __init__(self, trainer: Any, folder: Path):
        self.trainer, self.folder = trainer, folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All parameters got one and the same step counter, which each then advances; all groups got the first one's
        weight decay.
        """
        saved = next(self.folder.glob("global_step*_universal/zero/optimizer_state.pt"))
        groups = torch.load(saved, map_location="cpu", weights_only=False)["param_groups"]
        optimizer = self.trainer.model_wrapped.optimizer.optimizer
        for state in optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update({key: value for key, value in values.items() if key != "params"})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 0:  # random states were read from it after on_train_begin
            shutil.rmtree(self.folder, ignore_errors=True)
