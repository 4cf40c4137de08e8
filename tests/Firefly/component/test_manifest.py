import json

import pytest
import torch
from safetensors.torch import save_file

from Firefly.component.manifest import MANIFEST_NAME, read_manifest, seal, why_damaged


@pytest.fixture
def checkpoint(tmp_path):
    """What train.py writes, in small: weights, optimizer, state, and a folder inside."""
    folder = tmp_path / "checkpoint-5"
    (folder / "global_step5").mkdir(parents=True)
    save_file({"w": torch.arange(1000.0)}, folder / "model.safetensors")
    torch.save({"step": torch.tensor(5)}, folder / "optimizer.pt")
    torch.save({"shard": torch.tensor(1)}, folder / "global_step5" / "rank_0.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 5, "log_history": []}))
    return folder


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "missing": (lambda f: (f / "optimizer.pt").unlink(), "缺少 optimizer.pt"),
    "missing in a folder": (lambda f: (f / "global_step5" / "rank_0.pt").unlink(), "缺少 global_step5/rank_0.pt"),
    "cut off": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors 应有"),
    "one bit": (lambda f: flip_a_byte(f / "model.safetensors"), "model.safetensors 的内容"),
    "state": (lambda f: (f / "trainer_state.json").write_text('{"global_step": 5'), "trainer_state.json"),
    "manifest": (lambda f: (f / MANIFEST_NAME).write_text('{"saved_at": 1, "fil'), MANIFEST_NAME),
}


@pytest.mark.parametrize(("harm", "words"), DAMAGE.values(), ids=DAMAGE)
def test_any_damage_is_found_and_named(checkpoint, harm, words):
    seal(checkpoint, run={"seed": 1})
    assert why_damaged(checkpoint) is None
    assert read_manifest(checkpoint)["run"] == {"seed": 1}
    harm(checkpoint)
    assert words in why_damaged(checkpoint)


WITHOUT_MANIFEST = {
    "weights cut off": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]), "model.safetensors"),
    "optimizer cut off": (lambda f: (f / "optimizer.pt").write_bytes((f / "optimizer.pt").read_bytes()[:-30]), "optimizer.pt"),
    "no weights": (lambda f: ((f / "model.safetensors").unlink(), (f / "global_step5" / "rank_0.pt").unlink(), (f / "global_step5").rmdir()), "权重"),
    "state": (lambda f: (f / "trainer_state.json").write_text("{"), "trainer_state.json"),
    "no state": (lambda f: (f / "trainer_state.json").unlink(), "缺少 trainer_state.json"),
    "no shard": (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-2.safetensors"}}'), "model-2.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "words"), WITHOUT_MANIFEST.values(), ids=WITHOUT_MANIFEST)
def test_a_checkpoint_of_an_earlier_version_is_checked_by_its_structure(checkpoint, harm, words):
    assert why_damaged(checkpoint) is None
    assert read_manifest(checkpoint) == {}
    harm(checkpoint)
    assert words in why_damaged(checkpoint)


def test_a_checkpoint_of_the_model_alone_can_not_be_resumed(checkpoint):
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "global_step5" / "rank_0.pt").unlink()
    (checkpoint / "global_step5").rmdir()
    seal(checkpoint)
    assert "save_only_model" in why_damaged(checkpoint)
