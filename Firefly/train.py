"""Fine-tune a causal language model from a JSON of training arguments: full, LoRA or QLoRA.

    cd Firefly && python train.py --train_args_file train_args/sft/qlora/minicpm4-0.5b-sft-qlora.json

Any key of the JSON can be overridden: ``--learning_rate 1e-4 --output_dir output/trial``. Writes to output_dir: the
model or adapter, its tokenizer with the chat template, train.log, train_args.json, train_results.json,
trainer_state.json, and TensorBoard runs.
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from component.errors import UserError, exit_cleanly
from component.machine import rank_0_first
from component.utils import explain_out_of_memory


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="按 JSON 或 YAML 里的训练参数微调模型（全参、LoRA、QLoRA）。",
        epilog="文件里的任何键都可以在命令行改：--键 值，例如 --learning_rate 1e-4 --output_dir output/trial",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--train_args_file",
        required=True,
        help="训练参数 JSON 或 YAML，例如 train_args/sft/qlora/minicpm4-0.5b-sft-qlora.json",
    )
    parser.add_argument(
        "--print-config", "--print_config", action="store_true", help="只打印生效的配置（JSON），不加载模型"
    )
    parser.add_argument(
        "--estimate",
        nargs="?",
        const="",
        metavar="显存或型号",
        help="只估算显存、速度、时间和磁盘，不训练，不写 output_dir：不带值时在本机实跑几步；带显存 GiB 或型号时"
        "（24、4090、A100-40）为那张卡推算。放得下返回 0，放不下返回 3 并列出改法",
    )
    parser.add_argument("--local_rank", type=int, default=-1, help="由 deepspeed 启动器填写，不必手写")
    return parser


def prepare_output(custom: Any, args: Any) -> Any:
    """Make output_dir and lock it for this run; remove what a killed run left half-written. Returns the lock: hold it.

    A folder with files in it is left alone unless the run resumes or overwriting was asked for.
    """
    from component.lock import LOCK_NAME, take_lock
    from component.resume import wants_newest
    from component.saving import PART_NAME, checkpoint_steps, clear_parts

    folder = Path(args.output_dir)
    lock = take_lock(folder) if (folder / LOCK_NAME).exists() else None  # before the rest: a run may be going on
    # What a run that failed before its first step leaves.
    trial_files = {"runs", "train.log", "train_args.json", "loss.png", "eval_samples.md", "eval_samples.jsonl"}
    trial_files |= {LOCK_NAME, PART_NAME}
    used = folder.is_dir() and any(p.name not in trial_files for p in folder.iterdir())
    resumes = bool(custom.resume_from_checkpoint_path)
    if resumes and wants_newest(custom):  # it may start afresh, but not over a model that is done
        resumes = bool(checkpoint_steps(folder)) or not any(folder.glob("*.safetensors"))
    if used and not custom.overwrite_output_dir and not resumes:
        raise UserError(
            f"output_dir={folder}：目录里已有文件，为免覆盖没有开始训练。续训请加 --resume_from_checkpoint_path {folder}，"
            "重新训练请换一个 output_dir，确要覆盖请加 --overwrite_output_dir true。"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock or take_lock(folder)
    clear_parts(folder)
    return lock


def load_data(custom: Any, args: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Return (train, eval or None) token datasets; refuses when training and inference would see different prompts."""
    from component.dataset import load_datasets
    from component.packing import PackedDataset, packing_notice
    from component.utils import logger

    with args.main_process_first(desc="tokenise"):  # one process of each machine tokenises, the others find its cache
        train, held_out = load_datasets(custom, args.seed, tokenizer, logger.info, logger.warning)
    for name, data in (("训练集", train), ("评测集", held_out)):
        if data:
            all_tokens, target_tokens = data.count_tokens()
            logger.info(f"{name} {len(data)} 条，{all_tokens} 个 token，其中有损失的 {target_tokens} 个")
    if custom.packing or custom.task_type == "pretrain":
        train = PackedDataset(train, custom.max_seq_length, args.seed)
        logger.info(packing_notice(train, args))
    return train, held_out


def prepare_tokenizer(custom: Any) -> tuple[Any, str | None]:
    """Return the tokenizer, with added tokens and the chat template on it, and the template's stop word."""
    from component.checkpoint import load_tokenizer
    from component.template import use_template
    from component.vocabulary import add_tokens, tokenizer_folder

    folder = tokenizer_folder(custom.model_name_or_path, custom.adapter_name_or_path)
    tokenizer = load_tokenizer(folder, trust_remote_code=custom.trust_remote_code)
    add_tokens(tokenizer, custom.add_tokens)
    if custom.task_type == "pretrain" and custom.template_name == "auto":
        return tokenizer, None  # documents need no template
    return tokenizer, use_template(tokenizer, custom.template_name)


def prepare_data(custom: Any, args: Any) -> tuple[Any, Any]:
    """Return the tokenizer and the training rows, without the model, for an estimate that is worked out."""
    if custom.task_type == "dpo":
        raise UserError("task_type=dpo：只能实测，不能推算；请在要用的机器上运行 --estimate，不带显存或型号。")
    tokenizer, _ = prepare_tokenizer(custom)
    return tokenizer, load_data(custom, args, tokenizer)[0]


def build_trainer(custom: Any, args: Any) -> Any:
    """Load tokenizer, data and model, cheapest first, so that bad input is answered before the model loads."""
    from component.attention import use_flat_rows
    from component.callbacks import SaveOnInterrupt
    from component.collator import flatten_batch, pad_batch
    from component.loss import install_target_loss
    from component.model import load_for_training
    from component.resolve import resolve_model
    from component.template import stop_token_ids
    from component.trainer import SFTTrainer
    from component.utils import logger
    from transformers import set_seed

    resolve_model(custom.model_name_or_path)  # a folder without weights is known before the data is read
    tokenizer, stop_word = prepare_tokenizer(custom)
    if custom.task_type == "dpo":
        from component.dpo import build_preference_trainer

        return build_preference_trainer(custom, args, tokenizer, stop_word)
    train_data, eval_data = load_data(custom, args, tokenizer)
    set_seed(args.seed)
    model = load_for_training(custom, args, tokenizer)
    plain = not getattr(model, "uses_unsloth", False)  # unsloth brings its own loss, for padded batches
    if plain and not install_target_loss(model):
        logger.warning(
            f"{model.config.model_type}：没有只算目标 token 的快速损失，改算完整 logits，结果相同但更占内存。"
        )
    flat = plain and use_flat_rows(model, custom.attn_implementation, custom.padding_free)
    if not flat and custom.packing:
        raise UserError(
            f"packing=true：{model.config.model_type} 模型在现在的 attn_implementation、padding_free 设置下不能在一行里"
            "隔开几条记录；请去掉这两个键，仍不行就去掉 packing。"
        )
    if not flat and custom.task_type == "pretrain":
        train_data = train_data.dataset  # a piece a row, padded
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=flatten_batch if flat else functools.partial(pad_batch, pad_token_id=tokenizer.pad_token_id),
        callbacks=[SaveOnInterrupt()],
        tokenizer=tokenizer,
        stop_ids=stop_token_ids(tokenizer, model, stop_word),
        loraplus_lr_ratio=custom.loraplus_lr_ratio,
    )


def run(trainer: Any, custom: Any, args: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Train, save, evaluate. Returns what goes to train_results.json."""
    from component.callbacks import SaveOnInterrupt
    from component.evaluation import final_evaluation
    from component.monitor import monitor
    from component.reshard import fit_checkpoint
    from component.resume import compare, nothing_left, run_facts, wants_newest
    from component.utils import logger, peak_memory_gib

    trainer.run_facts = run_facts(custom, args, trainer.train_dataset)
    if checkpoint:
        compare(checkpoint, trainer.run_facts)
        max_steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
        newest, patience = wants_newest(custom), custom.early_stopping_patience
        results = nothing_left(checkpoint, max_steps, Path(args.output_dir), newest, patience)
        if results is not None:
            return results
        logger.info(f"从 {checkpoint} 继续训练")
        checkpoint = fit_checkpoint(trainer, checkpoint)
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SaveOnInterrupt))
    curves = monitor(trainer, custom)
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        interrupt.restore()
        curves.draw(args, trainer.state)
    if interrupt.interrupted:
        raise KeyboardInterrupt
    data = trainer.train_dataset
    metrics = {
        **result.metrics,
        "global_step": result.global_step,
        "train_records": data.n_records,
        "dropped": dict(data.dropped),
        "truncated": data.n_truncated,
        **trainer.meter.figures(args.world_size),
        **peak_memory_gib(),
    }
    trainer.save_model(args.output_dir)
    trainer.save_state()
    if trainer.eval_dataset:
        metrics |= final_evaluation(trainer)
        curves.draw(args, trainer.state)
    return metrics


@exit_cleanly
@rank_0_first
@explain_out_of_memory
def main(argv: list[str] | None = None) -> int:
    known, overrides = build_parser().parse_known_args(argv)
    from component.utils import is_main_process, quiet_libraries, setup_logging

    quiet_libraries()
    from component.argument import build_arguments
    from component.config import effective_config, read_train_args
    from component.machine import fit_to_machine, leave_processes
    from component.resume import agree
    from component.saving import write_json

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    values, notices = read_train_args(known.train_args_file, overrides)
    if known.print_config:
        print(json.dumps(effective_config(values), ensure_ascii=False, indent=2))
        print("\n".join(notices), end="\n" if notices else "", file=sys.stderr)
        return 0
    if known.estimate is not None:
        from component.estimate import estimate

        return estimate(known.estimate, values, known.train_args_file, prepare_data, build_trainer)
    notices += fit_to_machine(values)
    custom, args = build_arguments(values, known.train_args_file)
    lock = prepare_output(custom, args) if is_main_process() else None
    logger = setup_logging(args.output_dir, is_main_process())
    for notice in notices:
        logger.warning(notice)
    checkpoint = agree(custom, args) if custom.resume_from_checkpoint_path else None
    trainer = build_trainer(custom, args)
    if is_main_process():
        write_json(Path(args.output_dir) / "train_args.json", values)
    metrics = run(trainer, custom, args, checkpoint)
    if is_main_process():
        write_json(Path(args.output_dir) / "train_results.json", metrics)
        logger.info(f"完成：{json.dumps(metrics, ensure_ascii=False)}")
    leave_processes()
    del lock  # another run may have the folder now
    return 0


if __name__ == "__main__":
    sys.exit(main())
