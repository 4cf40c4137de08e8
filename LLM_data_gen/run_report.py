"""What a run leaves beside its output: the report (JSON, and a page to read) and the topics that could not be filled.

write_reports(...) -> (json path, html path)          OUT-without-extension + _gen_report
write_failed_topics(...) -> Path                      + _failed_topics.txt, which --topics-file takes as it is
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_data.storage import write_atomically

from .cost import Price
from .filling import Run
from .output import Output
from .spending import Totals
from .validation import describe

_ARGS = ("temperature", "n_per_topic", "max_concurrency", "max_tokens", "json_mode", "budget")
_EARLIER = 20  # runs listed


def write_failed_topics(out: Path, output: Output, failed: Iterable[str], n: int) -> Path:
    """Write the topics that could not be filled, this run's and earlier ones', as a topics file; none: no file."""
    path = out.with_name(f"{out.stem}_failed_topics.txt")
    earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    topics = dict.fromkeys(t for t in [*earlier, *failed] if t and len(output.questions.get(t, ())) < n)
    if topics:
        with write_atomically(path) as file:
            file.write("".join(f"{topic}\n" for topic in topics).encode())
    else:
        path.unlink(missing_ok=True)
    return path


def describe_run(run: Run, seconds: float) -> dict[str, Any]:
    tally = run.tally
    assert tally.returned == tally.accepted + sum(tally.rejected.values())
    return {
        "stopped": run.stopped,
        "model": run.teacher.model,
        "base_url": run.teacher.base_url,
        "thinking": run.teacher.thinking,
        **{name: getattr(run.args, name) for name in _ARGS},
        "topics_done": tally.topics_done,
        "topics_failed": tally.failed,
        "samples_returned": tally.returned,
        "samples_accepted": tally.accepted,
        "samples_rejected": _with_meaning(tally.rejected),
        "answers_by_problem": _with_meaning(tally.problems),
        **asdict(run.usage),
        **run.spent.as_dict(),
        "seconds": round(seconds, 3),
    }


def write_reports(
    args: argparse.Namespace,
    output: Output,
    topics: list[str],
    run: dict[str, Any],
    totals: Totals,
    price: Price | None,
    say: Callable[[str], None],
) -> tuple[Path, Path]:
    from .report_page import build_page
    from .similarity import similarity

    path, page = report_paths(args.out)
    done = sum(len(output.questions.get(topic, ())) >= args.n_per_topic for topic in topics)
    report = {
        "out": str(args.out),
        "topics": {"asked": len(topics), "done": done, "failed": len(run["topics_failed"])},
        "samples_in_file": len(output),
        "variety": similarity(list(itertools.chain(*output.questions.values()))),
        "all_runs": totals.as_dict(),
        "price": price and describe_price(price),
        "run": run,
        "earlier_runs": _earlier_runs(path, say),
    }
    with write_atomically(path) as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=2).encode())
    with write_atomically(page) as file:
        file.write(build_page(report, output.seen).encode())
    return path, page


def report_paths(out: Path) -> tuple[Path, Path]:
    """JSON and HTML."""
    return out.with_name(f"{out.stem}_gen_report.json"), out.with_name(f"{out.stem}_gen_report.html")


def describe_price(price: Price) -> dict[str, Any]:
    peak = {"peak": price.peak_rates._asdict()} if price.peak_rates else {}
    return price.rates._asdict() | peak | {"currency": price.currency, "dated": price.page_date, "source": price.source}


def _earlier_runs(path: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        return [old["run"], *old["earlier_runs"]][:_EARLIER]
    except (ValueError, KeyError, TypeError):
        say(f"{path}：读不懂上次的报告，这次重新写。")
        return []


def _with_meaning(counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    return {name: {"count": n, "meaning": describe(name)} for name, n in sorted(counts.items())}
