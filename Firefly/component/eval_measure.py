"""Measure one model: its loss on each held-out record, and its own answers to their questions.

What was measured is kept as it comes, ``losses/NAME.jsonl`` and ``answers/NAME.jsonl``, and used again when nothing that
it rests on has changed. The answers are rows as inference_with_*.py writes them, so judge.py reads them.
"""

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .eval_records import Encoded, Record, requests_of
from .inference import Completion, Engine, Request
from .script_io import write_text


def open_model(path: str, args: argparse.Namespace) -> Any:
    """Open a session that decodes greedily; weights come later."""
    from .session import open_session

    flags = {"temperature": 0.0, "top_p": None, "repetition_penalty": 1.0, "seed": 0, "adapter": None}
    wanted = argparse.Namespace(
        model=path, template_name=args.template_name, max_new_tokens=args.max_new_tokens, **flags
    )
    return open_session(wanted)


def weights_of(session: Any) -> str:
    """Names a model's weights and its adapters' without reading them: their files' paths, sizes and times."""
    folders = [session.model_dir, *session.adapters.values()]
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in (".safetensors", ".bin")]
    known = "".join(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in files)
    return hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class _Model:
    """One model under measurement. ``load`` gives its weights, once; ``settings`` are what its figures rest on."""

    name: str
    session: Any
    load: Callable[[], Any]
    settings: dict
    batch_size: int


def measure_model(
    name: str, session: Any, encoded: list[Encoded], asked: list[Record], args: argparse.Namespace, kept: Path
) -> tuple[list[list[float]], list[dict]]:
    """Measure one model, loading it only for what ``kept`` does not hold, and let it go.

    Args:
        encoded: of each set of records whose losses are wanted.
        asked: records to answer.

    Returns:
        The summed losses of each set's records, and the answers.
    """

    @functools.cache
    def load() -> Any:
        from .generate import load_model
        from .session import choose_device

        return load_model(session, *choose_device(args))

    settings = {name: getattr(args, name) for name in ("device", "dtype", "batch_size")}
    settings["weights"] = weights_of(session)
    model = _Model(name, session, load, settings, args.batch_size)
    sums = measure_losses(model, encoded, kept / "losses" / f"{name}.jsonl")
    return sums, answer_questions(model, asked, kept / "answers" / f"{name}.jsonl", args) if asked else []


def measure_losses(model: _Model, encoded: list[Encoded], path: Path) -> list[list[float]]:
    """Return the summed loss of each record of each set; ``path`` gets them batch by batch, and gives what it holds."""
    from .heldout import record_losses

    digests = [hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:32] for pairs in encoded]
    kept, todo = open_losses(path, model.settings | {"records": digests}), sum(map(len, encoded))
    if kept:
        print(f"{model.name}：{path} 已有 {len(kept)} 条损失，还要算 {todo - len(kept)} 条。", file=sys.stderr)
    pad_id = model.session.tokenizer.pad_token_id or 0
    with path.open("a", encoding="utf-8") as file:
        for number, pairs in enumerate(encoded):
            known = {i for part, i in kept if part == number}
            if len(known) == len(pairs):
                continue
            for values in record_losses(model.load(), pairs, model.batch_size, pad_id, model.name, known):
                kept |= {(number, i): value for i, value in values.items()}
                file.write("".join(f"{json.dumps([number, i, value])}\n" for i, value in values.items()))
                file.flush()
    return [[kept[number, i] for i in range(len(pairs))] for number, pairs in enumerate(encoded)]


def open_losses(path: Path, settings: dict) -> dict[tuple[int, int], float]:
    """Make ``path`` ready for appending; return {(set, record): loss} that it holds, if for the same ``settings``.

    Its first line is the settings. A last line that was cut is removed.
    """
    data = path.read_bytes() if path.exists() else b""
    head, *rows = data[: data.rfind(b"\n") + 1].splitlines() or [b""]
    wanted = json.dumps(settings, ensure_ascii=False).encode()
    if head != wanted:
        write_text(path, wanted.decode() + "\n")
        return {}
    with path.open("r+b") as file:
        file.truncate(data.rfind(b"\n") + 1)
    return {(number, i): value for number, i, value in map(json.loads, rows)}


def answer_questions(model: _Model, records: list[Record], path: Path, args: argparse.Namespace) -> list[dict]:
    """Answer each record's last question greedily; return the answers beside what they are measured by.

    A prompt that is too long for the model is shortened, with a notice, as inference does.
    """
    from .generate import generate_window
    from .results import answer_all
    from .rows import plan_rows

    rows = plan_rows(model.session, args)

    def generate(requests: list[Request]) -> Iterator[tuple[Request, Completion]]:
        yield from generate_window(model.load(), model.session, list(map(rows.fit, requests)), model.batch_size)

    requests, fixed = requests_of(records), rows.fingerprint | model.settings
    engine = Engine(generate, None, 8 * model.batch_size, rows.check, fixed)
    print(f"{model.name}：生成 {len(records)} 条回答", file=sys.stderr)
    answer_all(engine, requests, str(path), overwrite=not _same_questions(path, requests, fixed))
    return [
        {
            "where": record.where,
            "source": record.source,
            "question": record.question()[-1]["content"],
            "reference": record.reference(),
            **{key: row[key] for key in ("response", "finish_reason", "completion_tokens")},
        }
        for record, row in zip(records, map(json.loads, path.read_bytes().splitlines()), strict=True)
    ]


def _same_questions(path: Path, requests: list[Request], fixed: dict) -> bool:
    """Whether the answers at ``path`` are this model's to the same questions, so that the rest can be added."""
    try:
        made_with = json.loads(Path(f"{path}.meta.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (FileNotFoundError, ValueError):
        return False
    asked = [request.fields for request in requests]
    return (
        made_with == fixed
        and [{key: row.get(key) for key in ("source", "messages")} for row in rows] == asked[: len(rows)]
    )
