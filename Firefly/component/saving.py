"""Checkpoints: found, checked, written whole or not at all, and resumed exactly."""

from pathlib import Path

from transformers import Trainer

from .errors import UserError


def find_checkpoint(path: str) -> Path:
    """Return the checkpoint-N folder that ``path`` is, or the newest one in it."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint_path={path}：目录不存在，请检查路径。")
    if (folder / "trainer_state.json").exists() and folder.name.startswith("checkpoint-"):
        return folder
    found = [f for f in folder.glob("checkpoint-*") if (f / "trainer_state.json").exists()]
    if not found:
        raise UserError(
            f"resume_from_checkpoint_path={path}：里面没有 checkpoint-N（要有 trainer_state.json），无法续训；"
            "要从头训练请删去这个键，要在训好的模型上做第二阶段请改 model_name_or_path 或 adapter_name_or_path。"
        )
    return max(found, key=lambda f: int(f.name.rpartition("-")[2]))


def refuse_finished(trainer: Trainer, checkpoint: Path) -> None:
    """Resuming a finished run would train zero steps and report a loss of 0.0: say what to do instead."""
    from transformers.trainer_callback import TrainerState

    done = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
    max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    if done >= max_steps:
        raise UserError(
            f"{checkpoint}：这次训练共 {max_steps} 步，checkpoint 已到第 {done} 步，没有剩下的步数可续。"
            "要继续训练更久，请调大 num_train_epochs 或 max_steps；要做第二阶段，请先用 script/merge_lora.py 合并，"
            "再把 model_name_or_path 指向合并后的目录（或用 adapter_name_or_path 接着训练这个适配器）。"
        )
