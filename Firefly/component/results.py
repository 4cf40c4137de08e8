"""Result files of inference: one JSON a line, in the order of the input, never lost, continued where they stopped."""

import contextlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import UserError
from .inference import RESULT_KEYS, Completion, Engine, Request, read_requests, result_line

LOG_SECONDS = 30  # between two lines of progress where there is no terminal


def answer_all(engine: Engine, requests: list[Request], output: str | None, overwrite: bool = False) -> int:
    """Answer every request and write the rows in input order; return how many were asked now.

    Engines finish rows out of order. A row that waits for an earlier one stands in ``output``.pending.jsonl until its
    turn comes, so a cut run loses no answer, and rows that have one are not asked again.
    """
    done, waiting = open_output(Path(output), requests, engine.fingerprint, overwrite) if output else (0, {})
    todo = [request for request in requests[done:] if request.index not in waiting]
    if done or waiting:
        print(f"{output}：已有 {len(requests) - len(todo)} 行回答，还有 {len(todo)} 行要问。", file=sys.stderr)
    engine.check(todo)
    pending_path = f"{output}.pending.jsonl" if output else os.devnull
    with _progress(len(requests), len(todo)) as count, _writer(output) as rows, _writer(pending_path) as pending:
        for start in range(0, len(todo), engine.window):
            for request, completion in engine.generate(todo[start : start + engine.window]):
                waiting[request.index] = line = result_line(request, completion)
                if request.index != done:
                    pending.write(f"{request.index}\t".encode() + line)
                    pending.flush()
                done = _write_ready(rows, waiting, done)
                count(completion)
        done = _write_ready(rows, waiting, done)
    assert done == len(requests), f"the engine answered {done} of {len(requests)}"
    if output:
        Path(f"{output}.pending.jsonl").unlink(missing_ok=True)
    return len(todo)


@contextlib.contextmanager
def _progress(total: int, todo: int) -> Iterator[Callable[[Completion], None]]:
    """Show rows done, rows and tokens a second and the time left: a bar on a terminal, a line now and then in a log."""
    from tqdm import tqdm

    bar = tqdm(total=total, initial=total - todo, unit="条", disable=None, file=sys.stderr, smoothing=0.1)
    start = said = time.monotonic()
    rows = tokens = 0

    def rates() -> str:
        seconds = max(time.monotonic() - start, 1e-6)
        return f"{rows / seconds:.2f} 条/秒，{tokens / seconds:.0f} token/秒"

    def count(completion: Completion) -> None:
        nonlocal said, rows, tokens
        rows, tokens, now = rows + 1, tokens + completion.completion_tokens, time.monotonic()
        bar.set_postfix_str(f"{tokens / max(now - start, 1e-6):.0f} token/s", refresh=False)
        bar.update()
        if bar.disable and now - said >= LOG_SECONDS:
            left = tqdm.format_interval((todo - rows) * (now - start) / rows)
            print(f"已答 {total - todo + rows}/{total} 条，{rates()}，约剩 {left}", file=sys.stderr, flush=True)
            said = now

    with bar:
        yield count
    if rows > 1:
        print(f"答完 {rows} 条，用时 {tqdm.format_interval(time.monotonic() - start)}，{rates()}。", file=sys.stderr)


@contextlib.contextmanager
def _writer(path: str | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
    else:
        with open(path, "ab") as file:
            yield file


def _write_ready(rows: BinaryIO, waiting: dict[int, bytes], done: int) -> int:
    while done in waiting:
        rows.write(waiting.pop(done))
        done += 1
    rows.flush()
    return done


def open_output(
    path: Path, requests: list[Request], fingerprint: dict, overwrite: bool
) -> tuple[int, dict[int, bytes]]:
    """Make ``path`` ready for appending; return how many rows it holds, and the waiting rows by number.

    A partial last line (a cut run) is removed. UserError when its rows answer another input, or when it was made with
    another model or other settings: ``path``.meta.json keeps those, so that two models never share one file.
    """
    meta_path, pending = Path(f"{path}.meta.json"), Path(f"{path}.pending.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise UserError(f"{path}：这是一个目录，请给出文件路径。")
    if path.exists() and not overwrite:
        if not path.is_file():  # /dev/null and the like hold nothing to go on from
            return 0, {}
        _check_meta(path, meta_path, fingerprint)
        done = _count_rows(path, requests)
        return done, _read_pending(pending, requests, done)
    pending.unlink(missing_ok=True)
    path.write_bytes(b"")
    part = Path(f"{meta_path}.part")
    part.write_text(json.dumps(fingerprint, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(part, meta_path)
    return 0, {}


def _read_pending(path: Path, requests: list[Request], done: int) -> dict[int, bytes]:
    """Rows that were answered before their turn; a last one that was cut in writing is left out and asked again."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    entries = [line.partition(b"\t") for line in whole.splitlines(keepends=True)]
    return {int(number): line for number, _, line in entries if done <= int(number) < len(requests)}


def _check_meta(path: Path, meta_path: Path, fingerprint: dict) -> None:
    try:
        made_with = json.loads(meta_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return  # the rows themselves are still compared with the input
    for key in fingerprint:
        if made_with.get(key) != fingerprint[key]:
            raise UserError(
                f"{path}：已有的结果是用 {key}={made_with.get(key)} 生成的，这次是 {fingerprint[key]}；"
                "请换一个 --output，或加 --overwrite 重新生成。"
            )


def _count_rows(path: Path, requests: list[Request]) -> int:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines()
    if len(lines) > len(requests):
        raise UserError(
            f"{path}：有 {len(lines)} 行，输入只有 {len(requests)} 行，不是同一份输入的结果；请换一个 --output，或加 --overwrite。"
        )
    for number, (line, request) in enumerate(zip(lines, requests, strict=False), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(
                f"{path}:{number}：不是完整的 JSON，无法续跑；请换一个 --output，或加 --overwrite。"
            ) from None
        asked = {key: value for key, value in request.fields.items() if key not in RESULT_KEYS}
        if not isinstance(row, dict) or {key: value for key, value in row.items() if key not in RESULT_KEYS} != asked:
            raise UserError(
                f"{path}:{number}：不是 {request.where} 的回答，输入已变；请换一个 --output，或加 --overwrite。"
            )
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
        print(f"{path}：删去末尾没有写完的一行。", file=sys.stderr)
    return len(lines)


def answer_prompt(engine: Engine, request: Request, stream: bool) -> Completion:
    """Answer one question on stdout, piece by piece when ``stream``."""
    engine.check([request])
    if stream:
        return _stream(engine, request)
    completion = next(completion for _, completion in engine.generate([request]))
    print(completion.text, flush=True)
    _say_if_cut(completion)
    return completion


def _stream(engine: Engine, request: Request) -> Completion:
    shown = ""

    def emit(piece: str) -> None:
        nonlocal shown
        shown += piece
        sys.stdout.write(piece)
        sys.stdout.flush()

    completion = engine.stream(request, emit)
    print(completion.text.removeprefix(shown) if completion.text.startswith(shown) else "", flush=True)
    _say_if_cut(completion)
    return completion


def _say_if_cut(completion: Completion) -> None:
    if completion.finish_reason == "length":
        print("提示：回答到长度上限为止，可加大 --max-new-tokens。", file=sys.stderr)


def chat(engine: Engine, system: str | None) -> None:
    """Read questions from stdin, one a line, and stream the answers; the history goes along each time.

    When the conversation outgrows the model's context, its oldest turns are left out and that is said.
    """
    print("多轮对话：直接输入问题；/clear 清空历史，/exit 退出。", file=sys.stderr)
    start = [{"role": "system", "content": system}] if system else []
    history: list[dict] = []
    turn = 0
    while True:
        print("用户：", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        question = line.strip()
        if not line or question == "/exit":
            print(file=sys.stderr)
            return
        if question == "/clear":
            history = []
            print("历史已清空。", file=sys.stderr)
        elif question:
            history.append({"role": "user", "content": question})
            history = _fit(engine, start, history, turn)
            completion = _stream(engine, Request(turn, start + history, where="这一轮对话"))
            history.append({"role": "assistant", "content": completion.text})
            turn += 1


def _fit(engine: Engine, start: list[dict], history: list[dict], turn: int) -> list[dict]:
    while True:
        try:
            engine.check([Request(turn, start + history, where="这一轮对话")])
            return history
        except UserError:
            if len(history) < 3:
                raise
        history = history[2:]
        print("对话太长，略去最早的一轮。", file=sys.stderr)


def run(args: Namespace, load_engine: Callable[[Namespace], Engine]) -> int:
    """Do what the flags ask: chat, one question, or a file. Input is read before the engine is loaded."""
    if args.interactive:
        chat(load_engine(args), args.system)
    elif args.input:
        requests = read_requests(args.input, args.system)
        asked = answer_all(load_engine(args), requests, args.output, args.overwrite)
        if args.output and asked:
            print(f"{args.output}：写入 {asked} 行。", file=sys.stderr)
    else:
        messages = [{"role": "system", "content": args.system}] if args.system else []
        request = Request(0, [*messages, {"role": "user", "content": args.prompt}], {"prompt": args.prompt})
        if args.output:
            answer_all(load_engine(args), [request], args.output, args.overwrite)
        else:
            answer_prompt(load_engine(args), request, args.stream)
    return 0
