"""Checkpoints and the final model, written beside and renamed: whole or not there at all."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .manifest import MANIFEST_NAME, STATE_NAME, flush, flush_folder, seal

PART_NAME = ".part"  # inside output_dir; what a killed run leaves there is removed at the next start
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors, tokenizers and torch say it in errors of their own.
_NO_ROOM_WORDS = (
    "No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed", "unexpected pos",
)  # fmt: skip


class SafeCheckpoints:
    """For a Trainer: every checkpoint appears with one rename, and only then is an older one removed.

    ``run_facts`` goes into each checkpoint's manifest, for resume.py to compare.
    """

    run_facts: dict[str, Any] | None = None
    _part: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._part) if self._part else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers', but into output_dir/.part; then sealed by a manifest and renamed, then older ones rotated out."""
        output, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with _room_for(output / name, output), self._parts(output) as part:
            super()._save_checkpoint(model, trial)
            self._name_best(output, name)
            self.accelerator.wait_for_everyone()  # each process has written its files
            if self.state.is_world_process_zero:
                self.state.save_to_json(str(part / name / STATE_NAME))
                self._seal_and_rename(part / name, output / name)
            self.accelerator.wait_for_everyone()
            if self.args.local_process_index == 0 and (part / name).is_dir():  # a machine with a disk of its own
                self._seal_and_rename(part / name, output / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            rotate(output, self.state.global_step, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(output / name))

    def _seal_and_rename(self, part: Path, final: Path) -> None:
        seal(part, run=self.run_facts or {})
        if final.exists():  # a damaged one, or one of an earlier run that is being overwritten
            os.replace(final, part.with_name(f"{final.name}-old"))
        os.replace(part, final)
        flush_folder(final.parent)

    def _name_best(self, output: Path, current: str) -> None:
        """Name the best checkpoint where it will be: transformers looks for it in the unfinished folder."""
        best = f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == current or (output / best).is_dir()):
            self.state.best_model_checkpoint = str(output / best)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not from the unfinished folder: _save_checkpoint does it after the rename."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; what is in output_dir is replaced when all of the new one is on the disk."""
        output = Path(output_dir or self.args.output_dir)
        if _internal_call or output != Path(self.args.output_dir):
            return super().save_model(str(output), _internal_call)
        with _room_for(output, output), self._parts(output) as part:
            super().save_model(str(part / "model"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and (part / "model").is_dir():
                flush(part / "model")
                move_model(part / "model", output)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_state(self) -> None:
        if self.state.is_world_process_zero:
            path = Path(self.args.output_dir) / STATE_NAME
            with _room_for(path, path.parent):
                write_json(path, dataclasses.asdict(self.state))

    @contextlib.contextmanager
    def _parts(self, output: Path) -> Iterator[Path]:
        self._part = output / PART_NAME
        try:
            self._part.mkdir(parents=True, exist_ok=True)
            yield self._part
        finally:
            part, self._part = self._part, None
            if self.args.local_process_index == 0:
                shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def clear_parts(output: Path) -> None:
    """Remove what a killed run left unfinished; a checkpoint that only lacks its rename gets it."""
    for path in (output / PART_NAME).glob("checkpoint-*"):
        if (path / MANIFEST_NAME).exists() and not (output / path.name).exists() and not path.name.endswith("-old"):
            os.replace(path, output / path.name)
    shutil.rmtree(output / PART_NAME, ignore_errors=True)


def move_model(part: Path, output: Path) -> None:
    """Move a whole model into ``output``, file by file: first what describes the weights, then the weights, then their index.

    Weights of an earlier model that the new one would not replace are removed: a loader might take them instead.
    """
    new = {path.name for path in part.iterdir()}
    for old in [*output.glob("*.safetensors"), *output.glob("*.safetensors.index.json")]:
        if old.name not in new:
            old.unlink()
    for path in sorted(part.iterdir(), key=lambda p: (p.name.endswith(".index.json"), ".safetensors" in p.name)):
        if path.is_dir() and (output / path.name).is_dir():
            shutil.rmtree(output / path.name)
        os.replace(path, output / path.name)
    flush_folder(output)


def rotate(output: Path, current: int, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints up to step ``current`` beyond ``limit``, but neither the current nor the best one.

    Those of later steps are of an earlier run, which the user may still want: they stay until they are written anew.
    """
    if not limit or limit < 1:
        return
    steps = [step for step in checkpoint_steps(output) if step <= current]
    kept = {current} | ({int(best.rpartition("-")[2])} if best else set())
    surplus = len(steps) - max(limit, len(kept))
    for step in [s for s in steps if s not in kept][: max(surplus, 0)]:
        shutil.rmtree(output / f"checkpoint-{step}", ignore_errors=True)


def checkpoint_steps(output: Path) -> list[int]:
    """The N of every checkpoint-N in a folder, ascending."""
    ends = (path.name.removeprefix("checkpoint-") for path in output.glob("checkpoint-*") if path.is_dir())
    return sorted(int(end) for end in ends if end.isdecimal())


@contextlib.contextmanager
def _room_for(what: Path, output: Path) -> Iterator[None]:
    """Turn every library's way of saying "disk full" into one sentence."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        whole = checkpoint_steps(output)
        kept = f"checkpoint-{whole[-1]} 完好" if whole else "还没有存下 checkpoint"
        raise UserError(
            f"{what}：磁盘空间不足（或超出配额），没有存成，训练已停止；{kept}。"
            f"请清理后在原命令加 --resume_from_checkpoint_path {output if whole else 'auto'} 继续，"
            "也可设 save_total_limit 少留几个。"
        ) from None


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in _NO_ROOM or any(words in str(error) for words in _NO_ROOM_WORDS):
            return True
        error = error.__context__
    return False
