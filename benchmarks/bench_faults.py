"""Kill a training with -9 again and again, at random moments, and compare it with one that was left alone.

    python benchmarks/bench_faults.py --kills 30

A tiny model on the sample data, through train.py as people start it. Every run after a kill is the same command; what
it logs (loss, gradient norm, learning rate, all to the last bit) and its final weights must equal the uncut run's. Then
the other faults: a disk that fills up while a checkpoint is saved, a NaN, a corrupt record, a damaged checkpoint, two
runs on one folder. Prints Markdown tables; exits 1 when anything differs.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CLOCK = ("runtime", "per_second")  # the endings of what no two runs share


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="随机 kill -9 多次并续训，与没有中断的训练逐位比较；再试其他故障。")
    parser.add_argument("--kills", type=int, default=30, help="杀几次，默认 30")
    parser.add_argument("--seed", type=int, default=0, help="杀的时刻的随机种子，默认 0")
    parser.add_argument("--steps", type=int, default=0, help="训练多少步，默认 kills 的 20 倍")
    parser.add_argument("--train-mode", choices=["full", "lora", "qlora"], default="lora")
    parser.add_argument("--window", type=float, default=3.0, help="开始训练后几秒之内杀，默认 3")
    parser.add_argument("--set", nargs="*", default=[], metavar="键=值", help="再改几个训练参数，例如 packing=true")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        arguments = prepare(Path(work), options)
        uncut, cut = Path(work) / "uncut", Path(work) / "cut"
        print("不中断的训练 …", file=sys.stderr)
        started = time.monotonic()
        status, talk = train(arguments, uncut)
        if status:
            sys.exit(talk)
        alone_s = time.monotonic() - started
        kills = kill_until_done(arguments, cut, options)
        same = report_kills(kills, uncut, cut, alone_s)
        same &= report_faults(arguments, Path(work), uncut)
    return 0 if same else 1


def prepare(work: Path, options: argparse.Namespace) -> list[str]:
    """Write model, data and train_args into ``work``; return the command line that all runs share."""
    from scripts.make_tiny_model import build_tiny_model

    os.environ |= {"FIREFLY_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    records = json.loads((ROOT / "data" / "samples" / "general_samples.json").read_text(encoding="utf-8"))
    build_tiny_model(work / "model", [r["output"] for r in records], vocab_size=1500, hidden_size=128, num_layers=3)
    turns = [{"human": r["instruction"] + r.get("input", ""), "assistant": r["output"]} for r in records]
    lines = [json.dumps({"conversation": [turn]}, ensure_ascii=False) for turn in turns]
    (work / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {
        "train_file": str(work / "train.jsonl"), "model_name_or_path": str(work / "model"), "template_name": "minicpm4",
        "output_dir": str(work / "out"), "train_mode": options.train_mode, "lora_rank": 8, "lora_dropout": 0.05,
        "max_steps": options.steps or 20 * options.kills, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 20,
        "logging_steps": 3, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2, "eval_ratio": 0.05,
        "eval_strategy": "epoch", "train_sampling_strategy": "group_by_length", "report_to": "none",
        "resume_from_checkpoint_path": "auto",
    }  # fmt: skip
    (work / "args.json").write_text(json.dumps(values))
    changes = [word for pair in options.set for word in ("--" + pair.split("=")[0], pair.split("=", 1)[1])]
    return ["--train_args_file", str(work / "args.json"), *changes]


def start(arguments: list[str], output: Path, **popen: Any) -> subprocess.Popen:
    command = [sys.executable, "train.py", *arguments, "--output_dir", str(output)]
    return subprocess.Popen(
        command, cwd=ROOT / "Firefly", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **popen
    )


def train(arguments: list[str], output: Path, **popen: Any) -> tuple[int, str]:
    """Run to the end. Returns exit code and stderr."""
    process = start(arguments, output, **popen)
    talk = process.communicate()[1]
    return process.returncode, talk


def kill_until_done(arguments: list[str], output: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start the command, kill it, start it again; once the kills are used up, or before, it finishes.

    One kill in five falls into the start (imports, data, model, loading the checkpoint); the others within
    ``window`` seconds of the first logged step, or of the end where that comes first.
    """
    rng, kills = random.Random(options.seed), []
    while True:
        process = start(arguments, output)
        began, lines = threading.Event(), []
        reader = threading.Thread(target=listen, args=(process, lines, began))
        reader.start()
        if len(kills) < options.kills:
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0.5, 8.0))
            else:
                wait_for(began, process)
                time.sleep(rng.uniform(0.0, options.window))
        else:
            process.wait()
        alive = process.poll() is None
        process.kill()
        process.wait()
        reader.join()
        text = "".join(lines)
        if not alive:
            if process.returncode:
                sys.exit(text)
            return kills
        if any(word in text for word in ("Traceback", "已损坏")):
            sys.exit(text)
        step = max(map(int, re.findall(r"INFO 步 (\d+)/", text)), default=0)
        kills.append({"step": step, "while": moment(output, step)})
        print(f"第 {len(kills)} 次 kill -9：{kills[-1]}", file=sys.stderr)


def listen(process: subprocess.Popen, lines: list[str], began: threading.Event) -> None:
    for line in process.stderr:
        lines.append(line)
        if "INFO 步 " in line:
            began.set()


def wait_for(event: threading.Event, process: subprocess.Popen) -> None:
    while not event.wait(0.05) and process.poll() is None:
        pass


def moment(output: Path, step: int) -> str:
    """What the killed process was doing, as far as its folder tells."""
    if (output / ".part").exists():
        return "saving a checkpoint"
    return "training" if step else "starting"


def history(output: Path) -> list[dict[str, Any]]:
    entries = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [{k: v for k, v in entry.items() if not k.endswith(CLOCK)} for entry in entries]


def same_weights(one: Path, two: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    (name,) = (path.name for path in one.glob("*model.safetensors"))
    a, b = load_file(one / name), load_file(two / name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def report_kills(kills: list[dict[str, Any]], uncut: Path, cut: Path, alone_s: float) -> bool:
    one, two = history(uncut), history(cut)
    values = sum(len(entry) for entry in one)
    differ = sum(a.get(key) != b.get(key) for a, b in zip(one, two, strict=False) for key in a | b)
    differ += abs(len(one) - len(two))
    weights = same_weights(uncut, cut)
    when = Counter(kill["while"] for kill in kills)
    print("| kill -9 | while | logged values | differ from the uncut run | final weights equal |")
    print("| ---: | --- | ---: | ---: | --- |")
    print(
        f"| {len(kills)} | {', '.join(f'{n} {what}' for what, n in when.items())} | {values} | {differ} | {'yes' if weights else 'NO'} |"
    )
    print(f"\nThe uncut run took {alone_s:.0f} s, start included; {one[-1]['step']} steps.\n")
    return not differ and weights


def report_faults(arguments: list[str], work: Path, whole: Path) -> bool:
    print("| fault | exit code | one sentence | what is left |")
    print("| --- | ---: | --- | --- |")
    good = True
    for name, fault in (
        ("disk full while saving", full_disk), ("NaN", not_a_number), ("corrupt record", corrupt_record),
        ("newest checkpoint damaged", damaged), ("second run in the folder", second_run),
    ):  # fmt: skip
        status, talk, wanted, left = fault(arguments, work)
        told = [line for line in talk.splitlines() if wanted in line]
        fine = len(told) == 1 and "Traceback" not in talk
        good &= fine
        sentence = told[0].replace(str(work), "…").replace("|", "/") if told else talk[-500:]
        print(f"| {name} | {status} | {'' if fine else 'WRONG: '}{sentence} | {left} |", flush=True)
    return good


def left_in(output: Path) -> str:
    return ", ".join(sorted(path.name for path in output.glob("checkpoint-*"))) or "no checkpoint"


def full_disk(arguments: list[str], work: Path) -> tuple[int, str, str, str]:
    """A limit on the size of files stands for the disk."""
    output = work / "full"
    train([*arguments, "--max_steps", "6"], output)
    for path in output.glob("train_results.json"):
        path.unlink()
    few = (100_000, 100_000)
    status, talk = train(
        [*arguments, "--max_steps", "12"], output, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, few)
    )
    return status, talk, "磁盘空间不足", left_in(output)


def not_a_number(arguments: list[str], work: Path) -> tuple[int, str, str, str]:
    change = ["--learning_rate", "1e30", "--max_grad_norm", "0", "--warmup_steps", "0", "--logging_steps", "500", "--save_steps", "1"]  # fmt: skip
    status, talk = train([*arguments, *change], work / "nan")
    return status, talk, "错误", left_in(work / "nan")


def corrupt_record(arguments: list[str], work: Path) -> tuple[int, str, str, str]:
    lines = (work / "train.jsonl").read_text(encoding="utf-8").splitlines()
    lines[200] = lines[200][:40]
    (work / "corrupt.jsonl").write_text("\n".join(lines), encoding="utf-8")
    status, talk = train([*arguments, "--train_file", str(work / "corrupt.jsonl")], work / "corrupt")
    return status, talk, "corrupt.jsonl:201", left_in(work / "corrupt")


def damaged(arguments: list[str], work: Path) -> tuple[int, str, str, str]:
    output = work / "damaged"
    train([*arguments, "--max_steps", "8"], output)
    weights = next((output / "checkpoint-8").glob("*model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    status, talk = train([*arguments, "--max_steps", "9"], output)
    return status, talk, "已损坏", left_in(output)


def second_run(arguments: list[str], work: Path) -> tuple[int, str, str, str]:
    output = work / "two"
    first, began = start(arguments, output), threading.Event()
    threading.Thread(target=listen, args=(first, [], began), daemon=True).start()
    wait_for(began, first)
    status, talk = train(arguments, output)
    alive = first.poll() is None
    first.kill()
    first.wait()
    return status, talk, f"进程 {first.pid}", "the first goes on" if alive else "the first is gone"


if __name__ == "__main__":
    sys.exit(main())
