"""Run tasks of lm-eval-harness on a model loaded the project's way: Granite view, adapters, the session's tokenizer."""

import difflib
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from .errors import UserError

SEED = 1234


def check_lm_eval() -> str:
    """Return lm-eval's version; UserError when it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from importlib.metadata import version

        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(f"还没有安装 lm-eval（{error}），请先 pip install -r requirements-eval.txt。") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every task that --data-dir overrides
    warnings.filterwarnings("ignore", module="lm_eval")
    return version("lm_eval")


def open_tasks(include: list[Path], with_defaults: bool = True) -> Any:
    """lm-eval's TaskManager: its own tasks (ten seconds to list), overridden by the YAML files in ``include``."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[str(path) for path in include] or None, include_defaults=with_defaults)


def check_tasks(manager: Any, tasks: list[str]) -> None:
    """Load every task's data once, before any model: UserError for unknown names and data that cannot be had."""
    for task in tasks:
        if task not in manager.task_index:
            near = difflib.get_close_matches(task, manager.all_tasks, 3)
            raise UserError(
                f"--tasks {task}：lm-eval 没有这个任务" + (f"，相近的有 {'、'.join(near)}。" if near else "。")
            )
        try:
            manager.load([task])
        except Exception as error:  # datasets and huggingface_hub have many words for "not there"
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"--tasks {task}：取不到数据（{type(error).__name__}：{reason[:160]}）；请联网，设 HF_ENDPOINT 用镜像，"
                "或在别处下载后用 --data-dir 给出文件夹。"
            ) from None


def run_tasks(session: Any, model: Any, manager: Any, tasks: list[str], args: Any) -> dict:
    """Return lm-eval's results for a loaded model; its few-shot examples and order are fixed by SEED."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=session.tokenizer, backend="causal", batch_size=args.batch_size)
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=list(tasks),
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        task_manager=manager,
        apply_chat_template=args.apply_chat_template,
        log_samples=True,
        bootstrap_iters=1000,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )


def summarize(results: dict, tasks: list[str]) -> dict:
    """{task: {"metric", "value", "stderr", "questions", "subjects": {leaf: value}, "scores": {leaf: {question: score}}}}.

    A task of several subjects counts every question once, as lm-eval's own total does. ``scores`` is keyed by the
    question's hash, so that two models are compared on the same questions only.
    """
    summary = {}
    for task in tasks:
        leaves = sorted(_leaves(results, task))
        metric, filter_name = _main_metric(results["results"][leaves[0]])
        key = f"{metric},{filter_name}"
        scores = {leaf: _scores(results["samples"][leaf], metric, filter_name) for leaf in leaves}
        flat = [score for each in scores.values() for score in each.values()]
        total = results["results"].get(task, {})
        value = total.get(key, sum(flat) / len(flat))
        stderr = total.get(f"{metric}_stderr,{filter_name}")
        summary[task] = {
            "metric": metric,
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, float) else None,
            "questions": len(flat),
            "subjects": {leaf: results["results"][leaf][key] for leaf in leaves},
            "scores": scores,
        }
    return summary


def _leaves(results: dict, task: str) -> list[str]:
    children = results.get("group_subtasks", {}).get(task, [])
    return [leaf for child in children for leaf in _leaves(results, child)] if children else [task]


def _main_metric(values: dict) -> tuple[str, str]:
    names = [key.split(",") for key, value in values.items() if "," in key and "_stderr" not in key]
    return tuple(next((name for name in names if name[0] in ("acc", "exact_match")), names[0]))


def _scores(samples: list[dict], metric: str, filter_name: str) -> dict[str, float]:
    kept = [sample for sample in samples if sample.get("filter", filter_name) == filter_name]
    return {f"{sample['doc_id']}:{sample['doc_hash'][:12]}": float(sample[metric]) for sample in kept}
