"""Best-fit packing against a slow obvious one, and what a run is told about it."""

import json

import numpy as np
import pytest
from transformers import TrainingArguments

from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.dataset import cut_records
from Firefly.component.packing import PackedDataset, best_fit_bins, packing_notice, smaller_batch, steps_per_epoch
from Firefly.component.template import use_template
from Firefly.component.tokens import tokenize_once

from ..conftest import conversation


def slow_best_fit(lengths, room, seed):
    """Try every bin for every record, longest first; equal lengths in the seed's order."""
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    bins = []
    for record in sorted(order, key=lambda i: -lengths[i]):
        fitting = [b for b in bins if sum(lengths[i] for i in b) + lengths[record] <= room]
        if fitting:
            max(fitting, key=lambda b: sum(lengths[i] for i in b)).append(record)
        else:
            bins.append([record])
    return sorted(sorted(b) for b in bins)


@pytest.mark.parametrize("seed", range(40))
def test_bins_equal_the_slow_ones(seed):
    rng = np.random.default_rng(seed)
    room = int(rng.integers(1, 60))
    lengths = rng.integers(1, room + 1, rng.integers(1, 80)).astype(np.int32)
    bins = best_fit_bins(lengths, room, seed)
    assert sorted(b.tolist() for b in bins) == slow_best_fit(lengths.tolist(), room, seed)
    assert sorted(np.concatenate(bins)) == list(range(len(lengths)))
    assert max(lengths[b].sum() for b in bins) <= room


def test_bins_worked_by_hand():
    bins = best_fit_bins(np.array([2, 6, 3, 5, 4]), 10, 0)  # 6 + 4, 5 + 3 + 2
    assert sorted(b.tolist() for b in bins) == [[0, 2, 3], [1, 4]]


def test_the_seed_decides_and_neighbours_do_not_share_rows_by_rule():
    lengths = np.full(1000, 10)
    first, again, other = (best_fit_bins(lengths, 20, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert [b.tolist() for b in first] != [b.tolist() for b in other]
    assert sum(b[1] - b[0] == 1 for b in first) < 20
    lengths = np.arange(1, 1001)  # without a shuffle of the bins, the longest records would all come first
    assert abs(np.corrcoef(range(500), [lengths[b].max() for b in best_fit_bins(lengths, 1001, 0)][:500])[0, 1]) < 0.2


def test_large_inputs_are_filled_to_the_brim():
    lengths = np.random.default_rng(0).integers(20, 1024, 50_000)
    bins = best_fit_bins(lengths, 1024, 0)
    assert lengths.sum() / (len(bins) * 1024) > 0.97
    assert max(lengths[b].sum() for b in bins) <= 1024


@pytest.fixture
def packed(tiny_minicpm, tmp_path):
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    path = tmp_path / "a.jsonl"
    records = [conversation(i, turns=1 + i % 4) | {"category": f"类{i % 2}"} for i in range(40)]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    store = tokenize_once([str(path)], tokenizer, say=lambda _: None)
    return PackedDataset(cut_records(store, np.arange(40), 600, lambda _: None), 600, 0)


def test_a_row_is_the_records_that_share_it(packed):
    data = packed.dataset
    assert sorted(np.concatenate(packed.bins)) == list(range(len(data)))
    for row, members, length, targets, category in zip(
        packed, packed.bins, packed.lengths, packed.target_counts, packed.category, strict=True
    ):
        assert [r["input_ids"].tolist() for r in row] == [data[i]["input_ids"].tolist() for i in members]
        assert sum(len(r["labels"]) for r in row) == length <= 600
        assert sum((r["labels"][1:] != -100).sum() for r in row) == targets
        assert category == "+".join(sorted({data.category[i] for i in members}))
    assert packed.count_tokens() == data.count_tokens()
    assert packed.fill == pytest.approx(data.count_tokens()[0] / (600 * len(packed)))
    assert (packed.n_records, packed.dropped, packed.n_truncated) == (len(data), data.dropped, data.n_truncated)


@pytest.mark.parametrize(
    ("micro", "accumulation", "times", "expected"),
    [(16, 1, 4.0, (4, 1)), (4, 8, 3.5, (1, 9)), (8, 4, 2.0, (4, 4)), (1, 8, 4.0, (1, 2)), (1, 1, 4.0, (1, 1))],
)
def test_a_smaller_batch_holds_as_many_records(micro, accumulation, times, expected):
    assert smaller_batch(micro, accumulation, times) == expected


def test_the_notice_gives_the_figures(packed, tmp_path):
    def notice(**values) -> str:
        return packing_notice(packed, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **values))

    each = len(packed.dataset) / len(packed)
    text = notice(per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-4)
    assert f"40 条装进 {len(packed)} 行" in text
    assert f"一步有 8 行，平均 {8 * each:.1f} 条（不打包时 8 条）" in text
    assert f"每轮 {-(-len(packed) // 8)} 步（不打包时 5 步）" in text
    assert f"{packed.fill:.1%}" in text
    assert "max_steps" not in text
    assert "per_device_train_batch_size=" in text
    assert f"{1e-4 * each**0.5:.1e}" in text
    alone = notice(per_device_train_batch_size=1, max_steps=7)
    assert "per_device_train_batch_size=" not in alone
    assert "max_steps=7" in alone


def test_a_packed_run_takes_the_steps_that_were_announced(train_main, write_args, tmp_path, capsys):
    records = [conversation(i, turns=1 + i % 4) for i in range(40)]
    args = write_args(records, packing=True, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=2,
                      gradient_accumulation_steps=3, max_seq_length=600, eval_ratio=0.1, eval_strategy="epoch")  # fmt: skip
    assert train_main(["--train_args_file", args]) == 0
    results = json.loads((tmp_path / "out" / "train_results.json").read_text())
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert results["train_records"] == 36
    text = next(line for line in capsys.readouterr().err.splitlines() if "packing" in line)
    rows = int(text.partition("条装进 ")[2].partition(" 行")[0])
    assert state["global_step"] == steps_per_epoch(rows, 2, 3) < steps_per_epoch(36, 2, 3)
    assert f"每轮 {state['global_step']} 步" in text
    assert 0 < results["eval_loss"] < 20


def test_packing_needs_flat_rows(train_main, write_args, capsys):
    assert train_main(["--train_args_file", write_args(packing=True, padding_free=False)]) == 2
    assert "packing" in capsys.readouterr().err
