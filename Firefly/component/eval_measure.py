"""Measure one model: its loss on each held-out record, and its own answers to their questions."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from .eval_records import Encoded, Record, requests_of


def open_model(path: str, args: argparse.Namespace) -> Any:
    """Open a session that decodes greedily; weights come later."""
    from .session import open_session

    flags = {"temperature": 0.0, "top_p": None, "repetition_penalty": 1.0, "seed": 0, "adapter": None}
    wanted = argparse.Namespace(
        model=path, template_name=args.template_name, max_new_tokens=args.max_new_tokens, **flags
    )
    return open_session(wanted)


def measure_model(
    name: str, session: Any, encoded: list[Encoded], asked: list[Record], args: argparse.Namespace
) -> tuple[list[list[float]], list[dict]]:
    """Load one model, measure it, and let it go.

    Args:
        encoded: of each set of records whose losses are wanted.
        asked: records to answer.

    Returns:
        The summed losses of each set's records, and the answers.
    """
    from .generate import load_model
    from .heldout import record_losses
    from .session import choose_device

    model = load_model(session, *choose_device(args))
    pad_id = session.tokenizer.pad_token_id or 0
    sums = [record_losses(model, pairs, args.batch_size, pad_id, name) for pairs in encoded]
    return sums, generate_answers(model, session, asked, args.batch_size) if asked else []


def generate_answers(model: Any, session: Any, records: list[Record], batch_size: int) -> list[dict]:
    """Answer each record's last question greedily; return the answers beside what they are measured by."""
    from tqdm import tqdm

    from .generate import generate_window

    requests = requests_of(records)

    def answers() -> Iterator:
        for start in range(0, len(requests), 8 * batch_size):
            yield from generate_window(model, session, requests[start : start + 8 * batch_size], batch_size)

    bar = tqdm(answers(), total=len(requests), desc="生成", unit="条", disable=None, file=sys.stderr)
    done = {request.index: completion for request, completion in bar}
    return [
        {
            "where": record.where,
            "source": record.source,
            "question": requests[i].messages[-1]["content"],
            "reference": record.reference(),
            "response": done[i].text,
            "finish_reason": done[i].finish_reason,
            "completion_tokens": done[i].completion_tokens,
        }
        for i, record in enumerate(records)
    ]
