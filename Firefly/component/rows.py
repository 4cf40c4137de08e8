"""What one row asks of an engine: which adapter answers it, and a prompt that fits into the model's context.

Several adapters on one base are told apart by name: a row's own "adapter" field first, then --use-adapter, then the
only adapter there is. The name "base" means the base without any. A prompt that is too long loses its oldest turns,
then the beginning of its last question; the system text and the end of the question, where the task stands, stay.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .errors import UserError
from .inference import Request

BASE = "base"


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this module to an inference script."""
    group = parser.add_argument_group("逐行")
    group.add_argument(
        "--use-adapter",
        metavar="名字",
        help="给了几个 --adapter 时用哪一个回答；行里的 adapter 字段优先；base 为不用适配器",
    )
    group.add_argument(
        "--truncate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="提示超长时略去最早的对话和问题的开头，保留系统提示和问题的末尾（默认）；--no-truncate 为报错",
    )


@dataclass(frozen=True)
class Rows:
    """``check`` looks at all rows before any is asked; ``fit`` shortens one; ``adapter`` is its adapter or None.

    ``fingerprint``: what must be the same for two runs to share one output file.
    """

    check: Callable[[Iterable[Request]], None]
    fit: Callable[[Request], Request]
    adapter: Callable[[Request], str | None]
    fingerprint: dict


def plan_rows(session: Any, args: argparse.Namespace) -> Rows:
    """Return how ``args`` and ``session`` treat rows. Raises UserError when --use-adapter names none.

    A chat does its own forgetting (results.chat), turn by turn, and is not cut here.
    """
    use = getattr(args, "use_adapter", None)
    names = list(session.adapters)
    if use is not None:
        _check_name(use, names, "--use-adapter")
    truncate = getattr(args, "truncate", True) and not getattr(args, "interactive", False)

    def check(requests: Iterable[Request]) -> None:
        cut, first = 0, None
        for request in requests:
            choose_adapter(names, use, request)
            if len(session.encode(request)) > longest_prompt(session, truncate):
                if not truncate:
                    session.check([request])
                cut, first = cut + 1, first or request.where
        if cut:
            print(
                f"提示：{cut} 行的提示超过 {longest_prompt(session)} 个 token（模型最多 {session.context} 个），从 {first} 起，"
                "已略去最早的对话和问题的开头；不想这样请加 --no-truncate。",
                file=sys.stderr,
            )

    return Rows(
        check=check,
        fit=(lambda request: fit(session, request)) if truncate else (lambda request: request),
        adapter=lambda request: choose_adapter(names, use, request),
        fingerprint=session.fingerprint() | ({"use_adapter": use} if use else {}),
    )


def choose_adapter(names: list[str], use: str | None, request: Request) -> str | None:
    """Return the name of the adapter that answers ``request``, None for the base. Raises UserError."""
    wanted = request.fields.get("adapter")
    if wanted is not None:
        _check_name(wanted, names, f"{request.where}：adapter 字段")
    else:
        wanted = use if use is not None else names[0] if len(names) == 1 else BASE if not names else None
    if wanted is None:
        raise UserError(
            f"{request.where}：有 {len(names)} 个适配器（{'、'.join(names)}），请用 --use-adapter 名字 选一个，"
            '或在行里写 "adapter": "名字"。'
        )
    return None if wanted == BASE and BASE not in names else wanted


def _check_name(name: Any, names: list[str], where: str) -> None:
    if name not in (*names, BASE):
        raise UserError(f"{where} {name!r}：没有这个适配器，有的是：{'、'.join([*names, BASE])}。")


def by_adapter(requests: list[Request], rows: Rows) -> Iterator[tuple[str | None, list[Request]]]:
    """Yield (adapter, its requests), in the order in which the adapters first appear."""
    groups: dict[str | None, list[Request]] = {}
    for request in requests:
        groups.setdefault(rows.adapter(request), []).append(request)
    yield from groups.items()


def longest_prompt(session: Any, truncate: bool = True) -> int:
    """In tokens. A prompt that is cut anyway leaves room for an answer, a quarter of the context at most."""
    if not truncate:
        return session.context - 1
    return session.context - max(1, min(session.sampling.max_new_tokens, session.context // 4))


def fit(session: Any, request: Request) -> Request:
    """Return ``request``, shortened when its prompt is too long. UserError when even the system text alone is.

    Oldest turns go first, whole; then the beginning of the last question, as little of it as will do.
    """
    limit = longest_prompt(session)

    def length(messages: list[dict]) -> int:
        return len(session.encode(replace(request, messages=messages)))

    messages = request.messages
    if length(messages) <= limit:
        return request
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    while len(turns) > 1 and length(system + turns) > limit:
        turns = turns[next(k for k in range(1, len(turns)) if turns[k]["role"] == "user") :]
    if length(system + turns) > limit:
        turns = [turns[-1] | {"content": _tail(turns[-1]["content"], lambda m: length([*system, m]) <= limit)}]
    if not turns[-1]["content"]:
        raise UserError(
            f"{request.where}：系统提示本身就超过了 {limit} 个 token（模型最多 {session.context} 个），请缩短系统提示。"
        )
    return replace(request, messages=system + turns)


def _tail(text: str, fits: Callable[[dict], bool]) -> str:
    """The longest end of ``text`` that fits, by bisection; "" when not one character does."""
    low, high = 0, len(text)  # the last ``low`` characters fit, the last ``high`` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits({"role": "user", "content": text[-middle:]}) else (low, middle)
    return text[len(text) - low :].lstrip()
