"""Result files of inference: one JSON a line, in the order of the input, never lost, continued where they stopped."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from .errors import UserError
from .inference import RESULT_KEYS, Completion, Engine, Request, read_requests, result_line


def answer_all(engine: Engine, requests: list[Request], output: str | None, overwrite: bool = False) -> int:
    """Answer every request and write the rows in input order; return how many were asked now.

    Rows that ``output`` holds already are not asked again. Windows start where the file ends, so a cut run repeats at
    most one window's unwritten answers.
    """
    from tqdm import tqdm

    done = open_output(Path(output), requests, engine.fingerprint, overwrite) if output else 0
    if done == len(requests):
        print(f"{output}：{done} 行都已有回答，没有要做的。", file=sys.stderr)
        return 0
    if done:
        print(f"{output}：已有 {done} 行，从第 {done + 1} 行继续。", file=sys.stderr)
    engine.check(requests[done:])
    stream = open(output, "ab") if output else sys.stdout.buffer  # noqa: SIM115 (closed below, stdout must stay open)
    bar = tqdm(total=len(requests), initial=done, unit="条", disable=None, file=sys.stderr)
    try:
        for start in range(done, len(requests), engine.window):
            window = requests[start : start + engine.window]
            waiting, following = {}, start
            for request, completion in engine.generate(window):
                waiting[request.index] = result_line(request, completion)
                bar.update()
                while following in waiting:
                    stream.write(waiting.pop(following))
                    following += 1
                stream.flush()
            assert following == start + len(window), f"engine answered {following - start} of {len(window)}"
    finally:
        bar.close()
        if output:
            stream.close()
    return len(requests) - done


def open_output(path: Path, requests: list[Request], fingerprint: dict, overwrite: bool) -> int:
    """Make ``path`` ready for appending and return how many rows it already holds.

    A partial last line (a cut run) is removed. UserError when its rows answer another input, or when it was made with
    another model or other settings: ``path``.meta.json keeps those, so that two models never share one file.
    """
    meta_path = Path(f"{path}.meta.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not overwrite:
        _check_meta(path, meta_path, fingerprint)
        return _count_rows(path, requests)
    path.write_bytes(b"")
    part = Path(f"{meta_path}.part")
    part.write_text(json.dumps(fingerprint, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(part, meta_path)
    return 0


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
