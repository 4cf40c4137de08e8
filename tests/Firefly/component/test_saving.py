import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from Firefly.component.errors import UserError
from Firefly.component.manifest import seal
from Firefly.component.saving import _room_for, checkpoint_steps, clear_parts, move_model, rotate, write_json


def make_checkpoints(output: Path, *steps: int) -> None:
    for step in steps:
        (output / f"checkpoint-{step}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("present", "current", "limit", "best", "left"),
    [
        ([1, 2, 3], 3, 2, None, [2, 3]),
        ([1, 2, 3], 3, 1, None, [3]),
        ([1, 2, 3], 3, 1, 1, [1, 3]),  # the best stays beside the last
        ([1, 2, 3], 3, 2, 1, [1, 3]),
        ([8, 9, 10], 10, 2, None, [9, 10]),  # by number, not by name
        ([1, 2, 3], 3, None, None, [1, 2, 3]),
        ([1, 2, 3, 7, 9], 3, 1, None, [3, 7, 9]),  # later ones are another run's
        ([1], 1, 1, 1, [1]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, present, current, limit, best, left):
    make_checkpoints(tmp_path, *present)
    (tmp_path / "checkpoint-notes").mkdir()
    rotate(tmp_path, current, limit, best and str(tmp_path / f"checkpoint-{best}"))
    assert checkpoint_steps(tmp_path) == left
    assert (tmp_path / "checkpoint-notes").is_dir()


def test_what_a_killed_run_left_is_removed_and_a_sealed_checkpoint_is_kept(tmp_path):
    """Killed at three places: while writing 6, after sealing 4 and before its rename, after moving an old 2 aside."""
    make_checkpoints(tmp_path / ".part", 6, 4, 2)
    make_checkpoints(tmp_path, 2)
    (tmp_path / ".part" / "checkpoint-2").rename(tmp_path / ".part" / "checkpoint-2-old")
    (tmp_path / ".part" / "checkpoint-4" / "w").write_text("w")
    for name in ("checkpoint-4", "checkpoint-2-old"):
        seal(tmp_path / ".part" / name)
    clear_parts(tmp_path)
    assert not (tmp_path / ".part").exists()
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert (tmp_path / "checkpoint-4" / "w").read_text() == "w"
    clear_parts(tmp_path / "nowhere")


def test_a_model_is_moved_in_whole_and_old_weights_do_not_shadow_it(tmp_path):
    part, output = tmp_path / ".part" / "model", tmp_path
    part.mkdir(parents=True)
    for name in ("config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        (part / name).write_text("new")
    (part / "global_step1").mkdir()
    for name in ("model.safetensors", "config.json", "mine.txt"):
        (output / name).write_text("old")
    (output / "global_step1").mkdir()
    (output / "global_step1" / "old").write_text("old")
    move_model(part, output)
    texts = {path.name: path.read_text() for path in output.iterdir() if path.is_file()}
    assert texts == {
        "config.json": "new",
        "model-00001-of-00001.safetensors": "new",
        "model.safetensors.index.json": "new",
        "mine.txt": "old",
    }
    assert list((output / "global_step1").iterdir()) == []


def test_json_is_replaced_and_not_half_written(tmp_path):
    path = tmp_path / "train_results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def full_disk(folder: Path):
    """Every library's own error, made by a disk that takes nothing."""
    yield lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    if Path("/dev/full").exists():
        yield lambda: torch.save({"w": torch.ones(100_000)}, "/dev/full")
        yield lambda: Path("/dev/full").write_text("x")


def test_a_full_disk_is_one_sentence_in_every_library(tmp_path):
    make_checkpoints(tmp_path, 2, 10)
    for write in full_disk(tmp_path):
        with pytest.raises(UserError, match="checkpoint-12.*磁盘空间不足.*checkpoint-10 完好.*resume_from_checkpoint_path"), _room_for(
            tmp_path / "checkpoint-12", tmp_path
        ):  # fmt: skip
            write()
    with pytest.raises(ValueError, match="other"), _room_for(tmp_path, tmp_path):
        raise ValueError("other")
    with _room_for(tmp_path, tmp_path):
        save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
