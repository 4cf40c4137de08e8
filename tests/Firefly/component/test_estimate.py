"""What an estimate advises and reports: every advice fits, the mildest first, and the arithmetic by hand."""

import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from Firefly.component.advice import Setup, advise, predict, worst_batch
from Firefly.component.argument import build_arguments
from Firefly.component.cards import Card, Memory, find_card
from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.report import Measured, Report
from Firefly.component.simulate import simulate

LENGTHS = np.array([10, 200, 40, 120, 200, 80, 30, 60], np.int32)
TARGETS = np.array([5, 20, 20, 60, 90, 40, 15, 30], np.int32)


class Rows(list):
    """A dataset of rows of given lengths, of which the last tokens are targets."""

    n_records, dropped, n_truncated = len(LENGTHS), Counter(empty=2), 1
    lengths, target_counts = LENGTHS, TARGETS

    def __init__(self) -> None:
        super().__init__(
            {"input_ids": np.full(n, 5, np.int32), "labels": np.where(np.arange(n) < n - t, -100, 5).astype(np.int32)}
            for n, t in zip(LENGTHS, TARGETS, strict=True)
        )

    def count_tokens(self) -> tuple[int, int]:
        return int(self.lengths.sum()), int(self.target_counts.sum())


class Packed(Rows):
    """Two rows of records: [200 + 40] and [120 + 80]."""

    lengths, target_counts = np.array([240, 200], np.int32), np.array([40, 100], np.int32)
    n_records = 4

    def __init__(self) -> None:
        self.dataset = Rows()
        list.__init__(self, [[self.dataset[1], self.dataset[2]], [self.dataset[3], self.dataset[5]]])


@pytest.fixture
def setup(tiny_minicpm, tmp_path):
    """Return a function from keys of the file to a Setup over Rows."""

    def build(data=None, **changes) -> Setup:
        values = {"train_file": "x", "model_name_or_path": str(tiny_minicpm), "output_dir": str(tmp_path / "out")}
        values |= {"use_cpu": True, "report_to": "none", "train_mode": "full", "max_seq_length": 256, "lora_rank": 4}
        values |= {"per_device_train_batch_size": 4, "optim": "adamw_torch_fused"}
        custom, args = build_arguments(values | changes, "args.json")
        return Setup(custom, args, load_tokenizer(tiny_minicpm), Rows() if data is None else data)

    return build


def lengths_of(items) -> list:
    return [[len(r["labels"]) for r in item] if isinstance(item, list) else len(item["labels"]) for item in items]


def test_the_worst_batch_is_the_longest_and_of_equals_the_one_with_most_targets():
    batch = worst_batch(Rows(), 3)
    assert lengths_of(batch) == [200, 200, 120]
    assert (batch[0]["labels"] != -100).sum() == 90
    assert lengths_of(worst_batch(Rows(), 3, max_tokens=150)) == [150, 150, 120]
    assert lengths_of(worst_batch(Rows(), 10)) == [200, 200, 120, 80, 60, 40, 30, 10, 200, 200]  # repeated


def test_packed_rows_are_cut_at_their_sum():
    assert lengths_of(worst_batch(Packed(), 2)) == [[200, 40], [120, 80]]
    assert lengths_of(worst_batch(Packed(), 2, max_tokens=210)) == [[200, 10], [120, 80]]
    assert lengths_of(worst_batch(Packed(), 1, max_tokens=150)) == [[150]]


def test_advice_fits_and_the_mildest_comes_first(setup):
    whole = setup()
    half = predict(whole.changed(per_device_train_batch_size=2, gradient_accumulation_steps=2))[0]
    budget = half.needed + 1e-6
    found = advise(whole, budget)
    assert all(advice.memory.needed <= budget for advice in found)
    assert found[0].changes == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    harm = [next(iter(advice.changes)) for advice in found]
    order = [
        "per_device_train_batch_size",
        "gradient_checkpointing",
        "optim",
        "deepspeed",
        "train_mode",
        "max_seq_length",
    ]
    assert harm == sorted(harm, key=order.index)
    assert "gradient_checkpointing" in harm
    for advice in found:  # what is printed for a change is what the changed run takes
        keys = {k: v for k, v in advice.changes.items() if k != "deepspeed"}
        if keys == advice.changes:
            assert predict(setup(**keys))[0] == advice.memory


def test_when_nothing_mild_is_enough_changes_come_together(setup):
    whole = setup(gradient_accumulation_steps=3)
    least = predict(whole.changed(per_device_train_batch_size=1, gradient_checkpointing=True))[0]
    found = advise(whole, least.needed + 1e-6, gpu=False)
    assert found[0].changes == {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 12,
        "gradient_checkpointing": True,
    }
    assert advise(whole, 0.5) == []


def test_zero_is_advised_to_a_gpu_alone(setup):
    whole = setup(bf16=True)
    budget = predict(whole)[0].needed - 1e-4
    paths = [advice.changes.get("deepspeed") for advice in advise(whole, budget)]
    assert "train_args/ds_z2_config.json" in paths
    assert not any("deepspeed" in advice.changes for advice in advise(whole, budget, gpu=False))


def test_ddp_holds_gradients_twice(setup):
    one = setup()
    assert predict(one.changed(cards=2))[0].total == predict(one)[0].total + predict(one)[0].gradients


@pytest.fixture
def report(setup, tmp_path):
    def build(values=None, data=None, **keys) -> Report:
        run = setup(data, num_train_epochs=3, gradient_accumulation_steps=1, **keys)
        memory, model = simulate(run.custom, run.args, run.tokenizer, worst_batch(run.data, 2))
        values = {"output_dir": str(tmp_path / "not" / "yet"), "save_steps": 2, **(values or {})}
        return Report(run, values, find_card("24"), model, memory)

    return build


def test_steps_and_checkpoints_by_hand(report, tmp_path):
    """8 records by 4 are 2 steps, 3 times: 6 steps; a checkpoint every 2 makes 3."""
    whole = report()
    assert (whole.steps, whole.epochs, whole.kept_checkpoints()) == ((2, 6), 3, 3)
    assert report({"save_total_limit": 1}).kept_checkpoints() == 2  # one more while it is written
    assert report({"save_total_limit": 5}).kept_checkpoints() == 3
    assert report({"save_strategy": "epoch"}).kept_checkpoints() == 3
    assert report({"save_strategy": "no"}).kept_checkpoints() == 0
    assert report({"save_steps": 0.5}).kept_checkpoints() == 2
    assert report(max_steps=5).steps == (2, 5)
    model, state = whole.memory.gradients, whole.memory.optimizer  # all is trained, in float32
    assert whole.disk() == (model + 3 * (model + state), shutil.disk_usage(tmp_path).free)
    assert report({"save_only_model": True}).disk()[0] == 4 * model
    adapter = report(train_mode="lora")
    assert adapter.disk()[0] == adapter.memory.gradients * 4 + 3 * adapter.memory.optimizer


def test_the_report_tells_measured_from_computed(report):
    computed = report().text()
    assert "推算" in computed
    assert "实测" not in computed
    assert "每轮 2 步，3 轮共 6 步" in computed
    assert "740 个 token（目标 38%）" in computed
    assert "4 行共 600 个 token" in computed
    assert "剔除 2 条" in computed
    measured = report()
    measured.measured = Measured(measured.memory, 3 << 30, 4 << 30, seconds=2.0, tokens=200.0, mfu=0.4)
    text = measured.text()
    assert "已分配 3.00 GiB、已预留 4.00 GiB" in text
    assert "100 token/s，1.08 条/s，MFU 40.0%" in text
    assert "22 秒" in text  # 740 x 3 / 100


def test_hours_of_a_named_card_by_hand(report):
    whole = report()
    whole.card = Card("X", 24.0, 1e-6)  # a million operations a second
    whole.meter = SimpleNamespace(flops=1e9)
    assert "1.9 小时 到 2.8 小时" in whole.text()  # 3e9 / 1e6 / 0.45 and / 0.30, in seconds
    whole.setup.args.gradient_checkpointing = True
    assert "2.5 小时 到 3.7 小时" in whole.text()


def test_a_full_disk_does_not_fit(report, monkeypatch):
    whole = report()
    assert whole.fits
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert not whole.fits
    assert "save_total_limit" in whole.text()
    assert "磁盘不够" in whole.text()


def test_memory_adds_up():
    assert Memory(1, 2, 3, 4, 0).total == 10
