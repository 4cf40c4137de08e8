"""C-Eval, CMMLU and MMLU from a folder on disk, as tasks of lm-eval-harness that never ask the network.

lm-eval's own task files say where a question comes from and how it is asked. For a folder they are overridden by small
files of the same names that include the originals and change the source alone, so the prompts stay lm-eval's.

The three layouts in which these sets are passed around are all read; SPLIT is dev (the examples) and val or test:
    SPLIT/SUBJECT_SPLIT.csv   the C-Eval and MMLU archives     SPLIT/SUBJECT.csv   the CMMLU archive
    SUBJECT/SPLIT-*.parquet   a copy of the hub's repository   (.jsonl in the place of .csv is read too)
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .script_io import write_text

LETTERS = "ABCD"


@dataclass(frozen=True)
class Benchmark:
    """``template`` is lm-eval's file for all subjects; ``subjects`` how many there are in the whole set."""

    folders: tuple[str, ...]
    prefix: str
    split: str
    subjects: int
    template: str
    description: str


BENCHMARKS = {
    "ceval-valid": Benchmark(
        folders=("ceval", "ceval-exam", "ceval/ceval-exam"),
        prefix="ceval-valid_",
        split="val",
        subjects=52,
        template="ceval/_default_ceval_yaml",
        description="以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n",
    ),
    "cmmlu": Benchmark(
        folders=("cmmlu", "haonan-li/cmmlu"),
        prefix="cmmlu_",
        split="test",
        subjects=67,
        template="cmmlu/_default_template_yaml",
        description="以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n",
    ),
    "mmlu": Benchmark(
        folders=("mmlu", "cais/mmlu"),
        prefix="mmlu_",
        split="test",
        subjects=57,
        template="mmlu/default/_default_template_yaml",
        description="The following are multiple choice questions (with answers) about {}.\n\n",
    ),
}


def benchmark_of(task: str) -> str | None:
    """The benchmark that a task name (the whole set, or PREFIX + subject) belongs to."""
    return next((name for name, b in BENCHMARKS.items() if task == name or task.startswith(b.prefix)), None)


def write_tasks(data_dir: Path, tasks: list[str], num_fewshot: int, work: Path) -> dict[str, list[str]]:
    """Write task files for ``tasks`` into ``work``; return {benchmark: subjects found}.

    A subject that the set does not have (a test of your own) is asked by the set's template, under its file's name.

    Raises:
        UserError: a set or a subject is not in the folder, or a file there is no set of questions.
    """
    if not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir}：没有这个文件夹，请检查路径。")
    found = {}
    for name in dict.fromkeys(filter(None, map(benchmark_of, tasks))):
        bench = BENCHMARKS[name]
        folder = next((data_dir / f for f in bench.folders if (data_dir / f).is_dir()), None)
        if folder is None:
            raise UserError(f"--data-dir {data_dir}：没有 {bench.folders[0]} 文件夹，请把 {name} 的数据解压到那里。")
        dev, asked = find_subjects(folder, "dev"), find_subjects(folder, bench.split)
        if name not in tasks:
            wanted = [task.removeprefix(bench.prefix) for task in tasks if benchmark_of(task) == name]
            if missing := [subject for subject in wanted if subject not in asked]:
                raise UserError(f"{folder}：没有科目 {'、'.join(missing)} 的 {bench.split} 题目，请检查文件名。")
            asked = {subject: asked[subject] for subject in wanted}
        if not asked:
            raise UserError(
                f"{folder}：找不到题目；应有 {bench.split}/科目_{bench.split}.csv、{bench.split}/科目.csv "
                f"或 科目/{bench.split}-*.parquet，请检查解压后的目录。"
            )
        for subject, path in asked.items():
            _write_task(bench, subject, path, dev.get(subject), num_fewshot, work)
        members = {"task": [bench.prefix + subject for subject in asked]}
        metric = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
        _dump(work / f"{name}.yaml", {"group": name, **members, "aggregate_metric_list": [metric]})
        found[name] = sorted(asked)
    return found


def _write_task(bench: Benchmark, subject: str, path: Path, dev: Path | None, num_fewshot: int, work: Path) -> None:
    task, files = bench.prefix + subject, {}
    if num_fewshot and dev is None:
        raise UserError(f"{path}：科目 {subject} 没有 dev 例题，请补上，或用 --num-fewshot 0。")
    for split, source in (("dev", dev), (bench.split, path)):
        rows = [_fields(bench, *question) for question in read_questions(source)] if source else []
        if split == "dev" and len(rows) < num_fewshot:
            raise UserError(f"{source}：只有 {len(rows)} 道例题，不够 --num-fewshot {num_fewshot}，请改小。")
        if split != "dev" and not rows:
            raise UserError(f"{source}：文件里没有一道题，请检查或删去。")
        files[split] = str(work / f"{task}.{split}.jsonl")
        write_text(Path(files[split]), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if dev is None:
        files.pop("dev")
    kwargs = {"data_files": files, "cache_dir": str(work / "cache")}
    source = {"task": task, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}
    official = is_official(bench, subject)
    source["include"] = str(official or _lm_eval_file(bench))
    if not official:
        source["description"] = bench.description.format(subject.replace("_", " "))
    _dump(work / f"{task}.yaml", source)


def is_official(bench: Benchmark, subject: str) -> Path | None:
    """lm-eval's own file for that subject, None when the set has no such subject."""
    path = _lm_eval_file(bench).with_name(f"{bench.prefix}{subject}.yaml")
    return path if path.exists() else None


def _lm_eval_file(bench: Benchmark) -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / bench.template


def _dump(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")  # JSON is YAML


def find_subjects(folder: Path, split: str) -> dict[str, Path]:
    """{subject: file} of one split, in any of the layouts above, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix in (".csv", ".jsonl") and path.parent.name == split:
            found[path.stem.removesuffix(f"_{split}")] = path
        elif path.suffix == ".parquet" and path.name.startswith(f"{split}-") and path.parent.name != "all":
            found[path.parent.name] = path
    return found


def read_questions(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """Yield (question, four choices, index of the right one); UserError names the row that is no such question."""
    for number, row in enumerate(_read_rows(path), 1):
        row = {str(key).lower(): value for key, value in row.items()}
        choices = row.get("choices")
        choices = choices if isinstance(choices, list) else [row.get(letter.lower()) for letter in LETTERS]
        answer = row.get("answer")
        if isinstance(answer, str) and answer.strip() in tuple(LETTERS):
            answer = LETTERS.index(answer.strip())
        good = isinstance(row.get("question"), str) and len(choices) == 4 and None not in choices
        if not good or type(answer) is not int or not 0 <= answer < 4:
            raise UserError(f"{path}：第 {number} 题不完整，应有 question、A、B、C、D 和 answer（A 到 D），请改正。")
        yield row["question"], [str(choice) for choice in choices], answer


def _read_rows(path: Path) -> list[dict]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            return [row if isinstance(row, dict) else {} for row in rows]
        table = [row for row in csv.reader(text.splitlines(keepends=True)) if row]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}：读不懂这个文件（{str(error)[:120]}），请重新下载。") from None
    head = [cell.strip().lower() for cell in table[0]] if table else []
    if "question" in head and "answer" in head:
        return [dict(zip(head, row, strict=False)) for row in table[1:]]
    return [dict(zip(("question", *LETTERS, "answer"), row, strict=False)) for row in table]  # MMLU has no header


def _fields(bench: Benchmark, question: str, choices: list[str], answer: int) -> dict:
    """The row as the hub's dataset has it, which lm-eval's prompts are written for."""
    if bench.prefix == "mmlu_":
        return {"question": question, "choices": choices, "answer": answer}
    row = {"question": question, **dict(zip(LETTERS, choices, strict=True)), "answer": LETTERS[answer]}
    return {key.capitalize(): value for key, value in row.items()} if bench.prefix == "cmmlu_" else row
