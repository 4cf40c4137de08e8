"""What this machine can do: precision, devices, and several processes under torchrun or DeepSpeed's launcher."""

import functools
import importlib.util
import json
import os
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError

INSTALL_DEEPSPEED = "pip install wheel setuptools && pip install --no-build-isolation deepspeed==0.19.8"
_ON_A_GPU_ONLY = ("paged_adamw", "paged_adamw_32bit")


def fit_to_machine(values: dict[str, Any]) -> list[str]:
    """Change in place what this machine can't do (precision, DeepSpeed), and return a sentence for each change."""
    import torch

    notices, cards = [], torch.cuda.device_count()
    if not torch.cuda.is_available():
        values["use_cpu"] = True
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns that it found no GPU
        if values.get("fp16"):
            values["fp16"] = False
            notices.append("没有 GPU，fp16 在 CPU 上不可用，改用 float32。")
        if values.get("deepspeed") and not launched():
            del values["deepspeed"]
            notices.append("没有 GPU，忽略 deepspeed 配置，用普通方式训练。")
    elif values.get("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        values.update(bf16=False, fp16=True)
        notices.append(f"{torch.cuda.get_device_name()} 不支持 bf16，改用 fp16。")
    if values.get("optim") == "adamw_torch":
        values["optim"] = "adamw_torch_fused"  # the same AdamW in one kernel: faster, 4 bytes a trained weight less
    if values.get("use_liger_kernel"):
        if not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
            del values["use_liger_kernel"]
            notices.append("use_liger_kernel：需要 GPU 和 pip install liger-kernel，这里没有，按普通方式训练。")
        else:  # its layers but not its loss, which would replace ours of target tokens only
            values.setdefault("liger_kernel_config", {"cross_entropy": False, "fused_linear_cross_entropy": False})
    if cards > 1 and not launched():
        notices.append(
            f"这台机器有 {cards} 张卡，这样启动只用第一张；要都用上，请改用 deepspeed --num_gpus={cards} train.py …"
            f" 或 torchrun --nproc_per_node={cards} train.py …"
        )
    if values.get("deepspeed"):
        notices += check_deepspeed(values)
        if not launched():
            be_launched_alone()
    return notices


def launched() -> bool:
    """True when torchrun or DeepSpeed's launcher started this process (perhaps as the only one)."""
    return "LOCAL_RANK" in os.environ


def be_launched_alone() -> None:
    """Say what a launcher would to a process that is the only one: DeepSpeed would look for MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def check_deepspeed(values: dict[str, Any]) -> list[str]:
    """Raise UserError when DeepSpeed can't run; change in place what it can't do, with a sentence for each change."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"deepspeed 没有安装：请先 {INSTALL_DEEPSPEED}；单卡不需要它，可在命令行加 --deepspeed null。")
    zero = zero_config(values["deepspeed"])
    if zero.get("offload_optimizer", {}).get("device", "none") != "none" and values.get("optim") in _ON_A_GPU_ONLY:
        notices = [f"优化器状态放在内存里，不需要分页：optim={values['optim']} 改用同样的 adamw_torch。"]
        values["optim"] = "adamw_torch"
        return notices
    return []


def zero_config(deepspeed: str | dict[str, Any]) -> dict[str, Any]:
    """Return "zero_optimization" of DeepSpeed's configuration, given as a path (relative to Firefly/) or itself."""
    if not isinstance(deepspeed, dict):
        try:
            deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"deepspeed={deepspeed}：读不出 DeepSpeed 配置（{error}），请检查路径（相对 Firefly/）与 JSON 语法。"
            ) from None
    return deepspeed.get("zero_optimization", {})


def launch_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Return what TrainingArguments need beside ``values`` for a DeepSpeed or FSDP run; on a CPU, join its processes."""
    more: dict[str, Any] = {}
    if values.get("deepspeed"):
        warnings.filterwarnings("ignore", r".*torch\.distributed\..* is deprecated", FutureWarning)  # DeepSpeed's calls
        offloaded = zero_config(values["deepspeed"]).get("offload_optimizer", {}).get("device", "none") != "none"
        if offloaded and values.get("optim") == "adamw_torch":
            more["optim"] = "adamw_torch_fused"  # the same AdamW, on a CPU ten times as fast
    if values.get("fsdp"):  # whole weights in every checkpoint: else none are saved at the end
        more["fsdp_config"] = {**(values.get("fsdp_config") or {}), "state_dict_type": "FULL_STATE_DICT"}
    if values.get("use_cpu") and (values.get("deepspeed") or values.get("fsdp")):
        join_on_cpu(bool(values.get("deepspeed")))
        more["accelerator_config"] = {**(values.get("accelerator_config") or {}), "use_configured_state": True}
    return more


def join_on_cpu(deepspeed: bool) -> None:
    """Make accelerate's state over gloo: on a CPU it would itself not, with DeepSpeed, and leave FSDP out."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if deepspeed:
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a kernel to compile, and for one machine only
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        try:
            PartialState(backend="gloo")
        finally:
            del os.environ["ACCELERATE_USE_DEEPSPEED"]
    else:
        torch.distributed.init_process_group("gloo")
        state = PartialState(backend="gloo")
        state.distributed_type = DistributedType.MULTI_GPU  # FSDP is laid over this kind alone, and works on a CPU


def agree_to_stop(after: int | None) -> int | None:
    """Tell all processes to stop after step ``after``, or only hear whether one has. Returns the step agreed on.

    Others may have finished that step already, but not the next, which takes all of them: so several stop one later.
    Costs a message to the first process, 0.1 ms.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return after
    store, key = dist.distributed_c10d._get_default_store(), "firefly/stop"
    if after is not None:
        return int(store.compare_set(key, "", str(after + 1)))
    return int(store.get(key)) if store.check([key]) else None


def leave_processes() -> None:
    """Leave the group at the end of a run, all processes together: one that just exits may abort in gloo's threads."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank_0_first(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """Wrap train.py's ``main``: what fails in every process is said once.

    The others wait before they fail; meanwhile the launcher, which has seen the first process end, stops them.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except Exception:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                time.sleep(10)
            raise

    return wrapped
