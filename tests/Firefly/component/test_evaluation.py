from types import SimpleNamespace

import numpy as np

from Firefly.component.collator import flatten_batch
from Firefly.component.evaluation import REST, final_evaluation, group_sources, source_keys
from Firefly.component.trainer import SFTTrainer


def test_rows_by_source_in_the_order_of_the_file():
    assert group_sources(["b", "a", "b", "c"]) == {"b": [0, 2], "a": [1], "c": [3]}
    assert group_sources([]) == {}


def test_many_sources_the_small_ones_together():
    groups = group_sources(["a", "x", "b", "y", "a", "b", "z"], limit=3)
    assert groups == {"a": [0, 4], REST: [1, 3, 6], "b": [2, 5]}


def test_keys_can_stand_in_a_metric_and_differ():
    keys = source_keys(["HIT", "开放问答 A/B", "a b", "a/b", "???", "x" * 99])
    assert list(keys.values()) == ["HIT", "开放问答_A_B", "a_b", "a_b_2", "source", "x" * 40]


def trainer(history, step, best=None):
    state = SimpleNamespace(
        log_history=history,
        global_step=step,
        best_global_step=best,
        best_model_checkpoint=best and f"checkpoint-{best}",
    )
    args = SimpleNamespace(load_best_model_at_end=best is not None)
    return SimpleNamespace(state=state, args=args, evaluate=lambda: {"eval_loss": "new"})


def test_the_last_evaluation_is_of_the_weights_that_are_left():
    history = [{"step": 10, "eval_loss": 2.0, "epoch": 1.0}, {"step": 20, "eval_loss": 3.0}, {"step": 20, "loss": 1.0}]
    assert final_evaluation(trainer(history, 20)) == {"eval_loss": 3.0}
    assert final_evaluation(trainer(history, 25)) == {"eval_loss": "new"}
    assert final_evaluation(trainer(history, 25, best=10)) == {"eval_loss": 2.0}


class Rows(list):
    category = ("a", "b", "a", "a", "b", "a", "a")  # 5 and 2: one source divides by two processes, the other doesn't


def test_processes_share_the_records_and_make_as_many_calls():
    rows = Rows({"input_ids": np.array([1, 10 + i]), "labels": np.array([-100, 10 + i])} for i in range(7))
    seen, calls = [], []
    for rank in (0, 1):
        args = SimpleNamespace(process_index=rank, world_size=2, eval_batch_size=2)
        trainer = SimpleNamespace(args=args, eval_dataset=rows, data_collator=flatten_batch)
        batches = list(SFTTrainer.get_eval_dataloader(trainer))
        assert trainer.eval_sources == ["a", "b"]
        for batch in batches:
            targets = batch["labels"][batch["labels"] != -100].tolist()
            assert {Rows.category[t - 10] for t in targets} <= {trainer.eval_sources[batch["source"]]}
            seen += targets
        calls.append([batch["source"] for batch in batches])
    assert sorted(seen) == list(range(10, 17))
    assert calls[0] == calls[1] == [0, 0, 1]
