import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from Firefly.component.argument import CustomizedArguments
from Firefly.component.errors import UserError
from Firefly.component.manifest import MANIFEST_NAME, seal
from Firefly.component.resume import choose_checkpoint, compare, fingerprint, newest_first, nothing_left, run_facts


@pytest.fixture
def warned(caplog):
    """Return a function that gives what was logged; the project's logger does not propagate once a run set it up."""
    logger = logging.getLogger("firefly")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "firefly")
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def make(output, step: int, saved_at: float | None = None, run: dict | None = None):
    """A checkpoint; with ``saved_at`` sealed, else as an earlier version wrote it."""
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"w": torch.ones(10)}, folder / "model.safetensors")
    torch.save({}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    if saved_at is not None:
        seal(folder, run=run or {})
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest | {"saved_at": saved_at}))
    return folder


def asking(path) -> CustomizedArguments:
    return CustomizedArguments("data", "model", resume_from_checkpoint_path=path)


def test_the_newest_whole_one_is_taken_and_each_damaged_one_named(tmp_path, warned):
    for step in (9, 10, 11):
        make(tmp_path, step, saved_at=step)
    assert choose_checkpoint(asking(str(tmp_path)), tmp_path).name == "checkpoint-11"
    (tmp_path / "checkpoint-11" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    assert choose_checkpoint(asking(str(tmp_path)), tmp_path).name == "checkpoint-9"
    said = warned()
    assert "checkpoint-11 已损坏（缺少 optimizer.pt）" in said
    assert "checkpoint-10 已损坏（model.safetensors 应有" in said
    assert choose_checkpoint(asking(True), tmp_path).name == "checkpoint-9"


def test_a_damaged_one_that_was_asked_for_is_refused_and_the_whole_ones_named(tmp_path):
    for step in (1, 2, 3):
        make(tmp_path, step)
    for step in (2, 3):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{")
    with pytest.raises(UserError, match="已损坏.*trainer_state.json.*checkpoint-1") as caught:
        choose_checkpoint(asking(str(tmp_path / "checkpoint-2")), tmp_path)
    assert "checkpoint-3" not in str(caught.value)
    assert choose_checkpoint(asking(str(tmp_path / "checkpoint-1")), tmp_path) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("word", [True, "true", "auto"])
def test_auto_starts_afresh_only_where_there_is_nothing(tmp_path, word, warned):
    assert choose_checkpoint(asking(word), tmp_path) is None
    assert "从头训练" in warned()
    with pytest.raises(UserError, match="没有 checkpoint-N"):
        choose_checkpoint(asking(str(tmp_path)), tmp_path)
    with pytest.raises(UserError, match="不存在"):
        choose_checkpoint(asking(str(tmp_path / "nowhere")), tmp_path)
    make(tmp_path, 4)
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="都已损坏"):
        choose_checkpoint(asking(word), tmp_path)


def test_newest_is_by_time_where_all_tell_it_else_by_step(tmp_path):
    """A run that went back from 30 to 10 and wrote 20 anew goes on from 20."""
    for step, saved_at in ((10, 1.0), (20, 5.0), (30, 3.0)):
        make(tmp_path, step, saved_at)
    assert [c.name for c in newest_first(tmp_path)] == ["checkpoint-20", "checkpoint-30", "checkpoint-10"]
    make(tmp_path, 7)
    assert [c.name for c in newest_first(tmp_path)] == [f"checkpoint-{n}" for n in (30, 20, 10, 7)]


def facts(**changes):
    args = SimpleNamespace(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, world_size=1, seed=1, optim="adamw"
    )
    for key in list(changes):
        if hasattr(args, key):
            setattr(args, key, changes.pop(key))
    custom = CustomizedArguments("data", "model", **{"train_mode": "lora"} | changes)
    return run_facts(custom, args, [{"input_ids": [1, 2]}])


def test_what_changed_is_named_old_and_new(tmp_path, warned):
    checkpoint = make(tmp_path, 1, 1.0, facts())
    compare(checkpoint, facts())
    assert warned() == ""
    compare(checkpoint, facts(seed=2, max_seq_length=512, per_device_train_batch_size=8))
    for words in ("seed 1 -> 2", "max_seq_length 1024 -> 512", "一步的条数 8 -> 16", "漏学"):
        assert words in warned(), words
    with pytest.raises(UserError, match="lora_rank 64 -> 8"):
        compare(checkpoint, facts(lora_rank=8))
    with pytest.raises(UserError, match="optim adamw -> adamw_8bit"):
        compare(checkpoint, facts(optim="adamw_8bit"))
    said = warned()
    compare(checkpoint, facts(optim="adamw_fused"))  # the same algorithm, the same states
    assert warned() == said
    compare(make(tmp_path, 2), facts(lora_rank=8))  # an earlier version told nothing


def test_other_processes_with_the_same_step_keep_the_order(tmp_path, warned):
    compare(make(tmp_path, 1, 1.0, facts()), facts(world_size=2, per_device_train_batch_size=2))
    assert "进程数 1 -> 2：数据顺序不变" in warned()
    assert "漏学" not in warned()


def test_adapter_keys_do_not_matter_to_full_training(tmp_path):
    checkpoint = make(tmp_path, 1, 1.0, facts(train_mode="full"))
    compare(checkpoint, facts(train_mode="full", lora_rank=8))
    with pytest.raises(UserError, match="train_mode full -> lora"):
        compare(checkpoint, facts())


def test_fingerprint_sees_every_row():
    rows = [{"input_ids": [i, i + 1], "labels": [i, i + 1]} for i in range(50)]
    before = fingerprint(rows)
    assert fingerprint([dict(row) for row in rows]) == before
    rows[31] = {"input_ids": [31, 99], "labels": [31, 32]}
    assert len({before, fingerprint(rows), fingerprint(rows[:-1])}) == 3


def test_a_finished_run_is_told_apart_from_one_without_its_final_model(tmp_path, warned):
    checkpoint = make(tmp_path, 8)
    assert nothing_left(checkpoint, 9, tmp_path, False) is None
    assert nothing_left(checkpoint, 8, tmp_path, False) is None
    assert "补上" in warned()
    (tmp_path / "train_results.json").write_text(json.dumps({"global_step": 4}))  # of an earlier, shorter run
    assert nothing_left(checkpoint, 8, tmp_path, True) is None
    (tmp_path / "train_results.json").write_text(json.dumps({"global_step": 8}))
    assert nothing_left(checkpoint, 8, tmp_path, True) == {"global_step": 8}
    with pytest.raises(UserError, match="共 8 步.*merge_lora"):
        nothing_left(checkpoint, 8, tmp_path, False)
    with pytest.raises(UserError, match="共 8 步"):  # into another folder: no second stage of zero steps
        nothing_left(checkpoint, 8, tmp_path / "other", False)


def test_a_run_that_stopped_early_is_finished(tmp_path):
    checkpoint = make(tmp_path, 3)
    history = [{"step": step, "eval_loss": loss} for step, loss in ((1, 2.0), (2, 2.5), (3, 2.6))]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": history}))
    assert nothing_left(checkpoint, 8, tmp_path, False, patience=2) is None
    (tmp_path / "train_results.json").write_text("{}")
    with pytest.raises(UserError, match="第 1 步的评测损失 2.0000"):
        nothing_left(checkpoint, 8, tmp_path, False, patience=2)
    assert nothing_left(checkpoint, 8, tmp_path, False, patience=3) is None
