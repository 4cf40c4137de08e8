"""Does an engine answer as transformers does on this machine? Base, adapters and merged, offline and from its server.

    python benchmarks/engine_check.py --engine SGLang --dtype float16      on a GPU, in SGLang's own environment
    python benchmarks/engine_check.py --engine vLLM                        on a CPU (docs/VLLM_CPU.md)

On a GPU float16: the engines' fast kernels take no float32, and bfloat16 rounds so much that transformers itself then
gives half of the rows another answer (float16: none of them).

Tiny MiniCPMs are made on the spot; the reference is inference_with_transformers.py, float32 and greedy, on the CPU. Then
inference_with_ENGINE.py runs as a user would run it, each time as a process of its own. Prints a Markdown table and
exits 1 when a row of it does not hold.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import engine_models as tiny
from Firefly.component.errors import UserError, exit_cleanly

ROOT = Path(__file__).resolve().parents[1]
ENOUGH = 0.9  # float32 rounds otherwise in every engine: now and then another token is the best
TIMEOUT = 900  # seconds for one run; on a GPU an engine's first start compiles


class EngineFailed(Exception):
    """The engine did not do what it was asked; the message is the end of what it wrote to stderr."""


def build_parser() -> argparse.ArgumentParser:
    what = "在这台机器上核对引擎：用极小的 MiniCPM 试离线、服务和适配器，逐行与 transformers 的贪心回答比较。"
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--engine", required=True, choices=["SGLang", "vLLM"], help="在装有这个引擎的环境里运行")
    about = "引擎的精度（默认 %(default)s，用于 CPU；GPU 上请用 float16；bfloat16 舍入太大，约一半的行会不同）"
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help=about)
    parser.add_argument("--keep", metavar="DIR", help="模型、回答和日志留在这个目录（默认用完即删）")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_installed(args.engine)
    if args.keep and Path(args.keep).exists() and any(Path(args.keep).iterdir()):
        raise UserError(f"--keep {args.keep}：这个目录已有内容，请换一个。")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="firefly-engine-") as temporary:
        folder = Path(args.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        models, questions = tiny.make_models(folder), tiny.write_questions(folder / "questions.jsonl")
        expected = tiny.answer_with_transformers(models, questions, folder)
        wanted = {name: tiny.responses(data) for name, data in expected.items()}
        wanted["mixed"] = tiny.mix(questions, folder / "mixed.jsonl", expected)
        print("| 做了什么 | 与 transformers 相同的行 | 秒 | 是否做到 |\n| --- | --- | --- | --- |", flush=True)
        held = [try_offline(args, models, wanted, folder), try_server(args, models, wanted, folder)]
    return 0 if all(held) else 1


def check_installed(engine: str) -> None:
    """Raise the UserError of the engine's script when its package is not there."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec(engine.lower()) is None:
        getattr(import_module(f"inference_with_{engine}"), f"import_{engine.lower()}")()


def adapters(models: dict[str, Path], *names: str) -> list[str]:
    return [word for name in names for word in ("--adapter", f"{name}={models[name]}")]


def try_offline(args: argparse.Namespace, models: dict[str, Path], wanted: dict[str, list], folder: Path) -> bool:
    base = ["--model", str(models["base"])]
    both = [*base, *adapters(models, "style", "second"), "--use-adapter", "second"]
    runs = {
        "base": ("离线，底座", base),
        "style": ("离线，未合并的适配器", [*base, *adapters(models, "style")]),
        "merged": ("离线，合并后的模型", ["--model", str(models["merged"])]),
        "mixed": ("离线，一个文件里底座和两个适配器", both),
    }
    good, settings = True, ["--max-model-len", "1024", "--dtype", args.dtype, *tiny.GREEDY]
    for name, (what, argv) in runs.items():
        good &= try_file(args.engine, what, [*argv, *settings], name, wanted, folder)
    return good


def try_server(args: argparse.Namespace, models: dict[str, Path], wanted: dict[str, list], folder: Path) -> bool:
    """One server for base and adapters, asked 64 at a time, then stopped as Ctrl-C does."""
    argv = ["--serve", "--port", "0", "--model", str(models["base"]), *adapters(models, "style", "second")]
    argv += ["--max-model-len", "1024", "--dtype", args.dtype, "--temperature", "0"]
    log, start = folder / "server.log", time.monotonic()
    with started(args.engine, log, *argv) as server:
        url = server.stdout.readline().strip()
        if not show("--serve 就绪，底座和两个适配器", None, start, bool(url)):
            print(last_lines(log), file=sys.stderr)
            return False
        good = True
        for name in ("base", "style", "second", "mixed"):
            which = ["--use-adapter", "second"] if name == "mixed" else ["--model", name]
            ask = ["--client", url, *which, "--batch-size", "64", *tiny.ANSWERS]
            good &= try_file(args.engine, f"--client，64 路，{name}", ask, name, wanted, folder)
        ask = ["--client", url, "--model", "style", "--prompt", tiny.QUESTIONS[0], "--stream", *tiny.ANSWERS]
        log, shown = folder / "stream.log", f"{wanted['style'][0]}\n"
        good &= attempt("--client --stream，一条", lambda: float(run(args.engine, log, *ask) == shown))
        return attempt("Ctrl-C 停止服务，不留进程", lambda: stop(server)) and good


def try_file(engine: str, what: str, argv: list[str], name: str, wanted: dict[str, list], folder: Path) -> bool:
    """Answer a whole file; a row is equal when its answer is."""
    source = folder / ("mixed.jsonl" if name == "mixed" else "questions.jsonl")
    out = folder / f"{engine}_{'client' if '--client' in argv else 'offline'}_{name}.jsonl"

    def measure() -> float:
        run(engine, out.with_suffix(".log"), *argv, "--input", str(source), "--output", str(out))
        same = [a == b for a, b in zip(tiny.responses(out.read_bytes()), wanted[name], strict=True)]
        return sum(same) / len(same)

    return attempt(what, measure)


def attempt(what: str, measure: Callable[[], float | None]) -> bool:
    """Show the share of equal rows that ``measure`` returns, None where there are none, or why it failed."""
    start = time.monotonic()
    try:
        share = measure()
    except EngineFailed as error:
        show(what, None, start, False)
        print(error, file=sys.stderr)
        return False
    return show(what, share, start, share is None or share >= ENOUGH)


def show(what: str, share: float | None, start: float, held: bool) -> bool:
    rows = "—" if share is None else f"{share:.1%}"
    print(f"| {what} | {rows} | {time.monotonic() - start:.0f} | {'是' if held else '**否**'} |", flush=True)
    return held


def run(engine: str, log: Path, *argv: str) -> str:
    """Run the engine's script to its end and return its stdout."""
    with started(engine, log, *argv) as process:
        try:
            out, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise EngineFailed(f"{last_lines(log)}\n{TIMEOUT} 秒内没有结束，已停止。") from None
    if process.returncode != 0:
        raise EngineFailed(last_lines(log))
    return out


@contextlib.contextmanager
def started(engine: str, log: Path, *argv: str) -> Iterator[subprocess.Popen]:
    """The engine's script as a child, its stderr in ``log``; it is gone afterwards, whatever happened."""
    command, pipe = [sys.executable, ROOT / f"inference_with_{engine}.py", *argv], subprocess.PIPE
    with log.open("wb") as errors:
        child = subprocess.Popen(command, stdout=pipe, stderr=errors, encoding="utf-8", start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()  # a server's script then ends its engine, which is a group of its own
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def stop(server: subprocess.Popen) -> None:
    """Send what Ctrl-C sends. EngineFailed when the script then ends badly or a process under it lives on."""
    import psutil

    family = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(90)
    left: list[str] = []
    for process in psutil.wait_procs(family, timeout=10)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            left += [] if process.status() == psutil.STATUS_ZOMBIE else [f"{process.pid} {process.name()}"]
    if server.poll() != 0 or left:
        raise EngineFailed(f"Ctrl-C 之后退出码是 {server.poll()}，还在运行的进程：{'、'.join(left) or '没有'}")


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])


if __name__ == "__main__":
    sys.exit(main())
