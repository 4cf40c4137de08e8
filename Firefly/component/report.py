"""What an estimate says, in Chinese: what was measured and what was worked out are told apart."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .advice import Advice, Setup, worst_rows
from .cards import CONTEXT_GIB, FRAGMENTS, GIB, Card, Memory
from .packing import steps_per_epoch
from .speed import Meter, weights_in

MFU_RANGE = (0.30, 0.45)  # of the data sheet, what training of small models usually reaches


@dataclasses.dataclass
class Measured:
    """What real steps took on this machine. Bytes, seconds; tokens of the usual steps, of all processes."""

    memory: Memory | None  # None under DeepSpeed, where the parts lie over several cards
    peak: int
    reserved: int
    seconds: float = 0.0
    tokens: float = 0.0
    mfu: float = 0.0


@dataclasses.dataclass
class Report:
    """An estimate. values: of the train_args file; model: real or fake; memory: predicted, or as ``measured`` divides it."""

    setup: Setup
    values: dict[str, Any]
    card: Card
    model: Any
    memory: Memory | None
    gpu: bool = True
    measured: Measured | None = None
    meter: Meter | None = None  # of an epoch, when nothing was measured
    host_bytes: int = 0
    ran_out: bool = False
    fits_memory: bool = True
    advice: list[Advice] = dataclasses.field(default_factory=list)

    @property
    def fits(self) -> bool:
        needed, free = self.disk()
        return self.fits_memory and needed <= free

    @property
    def steps(self) -> tuple[int, int]:
        """Return (steps of an epoch, of the run), as transformers counts them."""
        args = self.setup.args
        rows = args.per_device_train_batch_size * self.setup.cards
        epoch = steps_per_epoch(len(self.setup.data), rows, args.gradient_accumulation_steps)
        return epoch, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)

    @property
    def epochs(self) -> float:
        epoch, total = self.steps
        return total / epoch

    def disk(self) -> tuple[int, int]:
        """Return the bytes that checkpoints and the final model take, and the bytes free where output_dir will be."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        full = self.setup.custom.train_mode == "full"
        model = sum(_stored_bytes(p) for p in (self.model.parameters() if full else trained))
        state = 0 if self.values.get("save_only_model") else self.optimizer_bytes()
        needed = model + self.kept_checkpoints() * (model + state)
        folder = Path(self.values["output_dir"]).absolute()
        while not folder.exists():
            folder = folder.parent
        return needed, shutil.disk_usage(folder).free

    def optimizer_bytes(self) -> int:
        """On disk, from all cards: under ZeRO with the float32 copy of what is trained."""
        if self.memory is None or self.setup.zero:
            return 12 * sum(weights_in(p) for p in self.model.parameters() if p.requires_grad)
        return self.memory.optimizer

    def kept_checkpoints(self) -> int:
        """How many lie there at once: save_total_limit, and one more while it is written beside them."""
        strategy, every = self.values.get("save_strategy", "steps"), self.values.get("save_steps", 500)
        if strategy == "no":
            return 0
        total = self.steps[1]
        if strategy == "epoch":
            made = math.ceil(self.epochs)
        else:
            made = math.ceil(total / max(every if every >= 1 else every * total, 1))
        limit = self.values.get("save_total_limit")
        return min(made, limit + 1 if limit else made)

    def text(self) -> str:
        parts = [
            *self._what(), *self._memory(), *self._time(), *self._disk(), *self._verdict(),
        ]  # fmt: skip
        return "\n".join(parts)

    def _what(self) -> list[str]:
        custom, args, data = self.setup.custom, self.setup.args, self.setup.data
        total = sum(weights_in(p) for p in self.model.parameters())
        trained = sum(weights_in(p) for p in self.model.parameters() if p.requires_grad)
        lengths = np.asarray(getattr(data, "dataset", data).lengths)
        tokens, targets = data.count_tokens()
        epoch, steps = self.steps
        micro, times, cards = args.per_device_train_batch_size, args.gradient_accumulation_steps, self.setup.cards
        half = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
        middle, most = np.percentile(lengths, [50, 95]).astype(int)
        unit = "行" if data is not getattr(data, "dataset", data) else "条"
        return [
            f"模型  {custom.model_name_or_path}：{total / 1e6:.1f}M 参数，训练 {trained / 1e6:.2f}M（{trained / total:.2%}），"
            f"{custom.train_mode}，{half}{'，梯度检查点' if args.gradient_checkpointing else ''}",
            f"数据  {data.n_records} 条，{tokens} 个 token（目标 {targets / tokens:.0%}），每条平均 {lengths.mean():.0f}、中位 {middle}、"
            f"95% 不超过 {most}、最长 {lengths.max()}；截短 {data.n_truncated} 条，剔除 {sum(data.dropped.values())} 条",
            f"步数  每步 {micro * times * cards} {unit}（每个进程 {micro} × 累积 {times} × {cards} 个进程），"
            f"每轮 {epoch} 步，{self.epochs:.4g} 轮共 {steps} 步",
        ]

    def _memory(self) -> list[str]:
        data, rows = self.setup.data, self.setup.args.per_device_train_batch_size
        worst = worst_rows(data, rows)
        tokens, targets = int(np.asarray(data.lengths)[worst].sum()), int(np.asarray(data.target_counts)[worst].sum())
        name = "显存" if self.gpu else "内存"
        lines = [f"{name}  最长的一批：{rows} 行共 {tokens} 个 token（目标 {targets / tokens:.0%}）"]
        if self.ran_out:
            lines.append(f"      实测：跑这一批时{name}不足。以下为推算。")
        if self.memory:
            m = self.memory
            lines.append(
                f"      权重 {_size(m.weights)}，梯度 {_size(m.gradients)}，优化器状态 {_size(m.optimizer)}，"
                f"{'激活与 logits' if self.gpu else '激活、logits 与程序本身'} {_size(m.activations)}"
                + (
                    "（前三项按张量计算，末项是实测峰值减去前三项）"
                    if self.measured
                    else "（推算：用假张量走一遍前向与反向）"
                )
            )
        if self.measured:
            peak, reserved = self.measured.peak, self.measured.reserved
            more = f"已分配 {_size(peak)}、已预留 {_size(reserved)}" if self.gpu else f"进程 {_size(peak)}"
            lines.append(f"      峰值（实测）：{more}；{self.card.name} {self.card.gib:.1f} GiB")
        else:
            lines.append(
                f"      需要（推算）：{self.memory.needed:.2f} GiB，含碎片 {FRAGMENTS - 1:.0%} 与 {CONTEXT_GIB:g} GiB 的"
                f"{' CUDA 上下文' if self.gpu else '程序本身'}；{self.card.name} {self.card.gib:.1f} GiB"
            )
        if self.host_bytes:
            lines.append(f"      另需内存（推算）：{_size(self.host_bytes)}，DeepSpeed 把优化器状态等放在那里")
        return lines

    def _time(self) -> list[str]:
        tokens, _ = self.setup.data.count_tokens()
        if self.measured:
            rate = self.measured.tokens / self.measured.seconds
            hours = tokens * self.epochs / rate / 3600
            per_record = tokens / self.setup.data.n_records
            return [
                f"速度  {rate:.0f} token/s，{rate / per_record:.2f} 条/s，MFU {self.measured.mfu:.1%}（实测，平常的几步，在本机上）",
                f"时间  {_hours(hours)}（按实测速度；不含评测与保存）",
            ]
        if self.meter is None or not self.card.tflops:
            return ["时间  要在那张卡上才知道（这里只推算显存）；给出型号（例如 4090）可按其峰值算力估一个范围"]
        work = self.meter.flops * self.epochs * (4 / 3 if self.setup.args.gradient_checkpointing else 1)
        slow, fast = (work / (self.card.tflops * 1e12 * share * self.setup.cards) / 3600 for share in MFU_RANGE)
        return [
            f"时间  {_hours(fast)} 到 {_hours(slow)}（推算：{self.card.name} 的 bf16 峰值 {self.card.tflops} TFLOP/s 的 "
            f"{MFU_RANGE[1]:.0%} 到 {MFU_RANGE[0]:.0%}；确切的要在那张卡上跑 --estimate）"
        ]

    def _disk(self) -> list[str]:
        needed, free = self.disk()
        kept = self.kept_checkpoints()
        enough = "够" if needed <= free else "不够：请清理，或调小 save_total_limit，或设 save_only_model"
        return [
            f"磁盘  {kept} 个 checkpoint 与最终模型共约 {_size(needed)}，output_dir 所在磁盘还有 {_size(free)}，{enough}"
        ]

    def _verdict(self) -> list[str]:
        if self.fits_memory:
            return ["结论  放得下。" if self.fits else "结论  显存放得下，磁盘不够。"]
        if not self.advice:
            least = min(memory.needed for memory, _ in self.setup.known.values())
            return [f"结论  放不下，试过的改法里最省的也要 {least:.1f} GiB：请换小一些的模型，或大一些的显卡。"]
        lines = ["结论  放不下。下面每一条单独就够，由轻到重（所需为推算）："]
        return lines + [f"  {i}. {_advice(advice)}" for i, advice in enumerate(self.advice, 1)]


def _advice(advice: Advice) -> str:
    words = " ".join(
        f"--{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in advice.changes.items()
    )
    cards = f"{advice.cards} 张卡（梯度累积相应减少），每张" if advice.cards > 1 else ""
    host = f"，另需内存 {advice.host_gib:.1f} GiB" if advice.host_gib else ""
    return f"{words}：{cards}需要 {advice.memory.needed:.2f} GiB{host}（{advice.cost}）"


def _stored_bytes(parameter: Any) -> int:
    return weights_in(parameter) * parameter.element_size()


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def _hours(hours: float) -> str:
    return (
        f"{hours:.1f} 小时" if hours >= 1 else f"{hours * 60:.1f} 分钟" if hours >= 1 / 60 else f"{hours * 3600:.0f} 秒"
    )
