"""Map a function over a stream by several processes: results in order, little held at a time, nobody left behind."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .errors import UserError

_function: Callable[[Any], Any]  # in a worker


def ordered_map(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """Yield ``function(item)`` for each item, in order.

    ``num_workers`` counts up to the cores there are; 1 works in this process. Workers are forked, so the function may
    hold anything (a tokenizer); items and results are pickled. At most two items a worker are under way.

    Raises:
        UserError: a worker was killed. What the function raises is raised at its item's place.
    """
    workers = min(num_workers, _cores())
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(function, items)
        return
    fork = multiprocessing.get_context("fork")
    waiting: deque = deque()
    with ProcessPoolExecutor(workers, fork, initializer=_start_worker, initargs=(function,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(_work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "分词进程被系统结束了（多半是内存不足），请调小 tokenize_num_workers 再用同一条命令重试。"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked Rust thread pool hangs, and the cores are taken already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, workers of a parent that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)
