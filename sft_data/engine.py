"""Run a function over many jobs, on this machine's processes or on a Ray cluster, and give the results in their order.

    run(function, jobs, workers, address=None, shared=None) -> Iterator[(job, result)]
    run_here(function, jobs, shared=None) -> the same, in this process

``shared`` is for what all jobs need and is large: each process gets it once, as a second argument of ``function``. The
same functions run either way, so that the bytes written do not depend on where, or on how many processes.
"""

import collections
import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from .errors import UserError


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(function: Callable, jobs: Iterable[Any], shared: Any = None) -> Iterator[tuple[Any, Any]]:
    for job in jobs:
        yield job, function(job) if shared is None else function(job, shared)


def run(
    function: Callable, jobs: Iterable[Any], workers: int, address: str | None = None, shared: Any = None
) -> Iterator[tuple[Any, Any]]:
    """Yield each job with its result. A UserError while making jobs comes after the results of those before it: what was
    read may be enough.
    """
    jobs = _Guarded(iter(jobs))
    if address:
        yield from _on_ray(function, jobs, address, shared)
    else:
        ahead = list(itertools.islice(jobs, 2))  # one job is not worth a process, nor are many about a small array
        jobs_again = itertools.chain(ahead, jobs)
        if workers == 1 or len(ahead) < 2 or (shared is not None and shared.nbytes < 1 << 20):
            yield from run_here(function, jobs_again, shared)
        else:
            yield from _on_processes(function, jobs_again, workers, shared)
    if jobs.error:
        raise jobs.error


class _Guarded:
    """An iterator that ends where the one inside raises a UserError, and keeps it."""

    def __init__(self, jobs: Iterator[Any]):
        self.jobs, self.error = jobs, None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.jobs)
        except UserError as error:
            self.error = error
            raise StopIteration from None


def _on_processes(function: Callable, jobs: Iterator[Any], workers: int, shared: Any) -> Iterator[tuple[Any, Any]]:
    # Forked processes have what was compiled here; elsewhere each loads it from the cache.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), _begin, (shared,))
    pending: collections.deque = collections.deque()
    try:
        for job in jobs:
            pending.append((job, pool.submit(_call, function, job)))
            if len(pending) > 2 * workers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    except BrokenProcessPool:
        raise UserError(
            "一个工作进程被系统杀掉了，多半是内存不够；请用更小的 --workers 重试，没有写坏任何文件。"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_shared: Any = None


def _begin(shared: Any) -> None:
    """Of a worker process: leave Ctrl-C to the parent; a forked one has ``shared`` without a copy."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed by -9 can't tell its workers; without this they would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(function: Callable, job: Any) -> Any:
    return function(job) if _shared is None else function(job, _shared)


def _on_ray(function: Callable, jobs: Iterator[Any], address: str, shared: Any) -> Iterator[tuple[Any, Any]]:
    ray = _connect(address)
    remote = ray.remote(function)
    also = () if shared is None else (ray.put(shared),)
    window = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: collections.deque = collections.deque()

    def finished() -> tuple[Any, Any]:
        job, reference = pending.popleft()
        try:
            return job, ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FileNotFoundError):
                raise UserError(
                    f"{error.cause.filename}：Ray 的工作机看不到这个文件；请把输入和 --out 放在各台机器都挂载的共享目录里。"
                ) from None
            raise

    for job in jobs:
        pending.append((job, remote.remote(job, *also)))
        if len(pending) > window:
            yield finished()
    while pending:
        yield finished()


def _connect(address: str) -> Any:
    """Join a Ray cluster once; its workers get the code that runs here."""
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray 需要 Ray：请运行 pip install -r requirements-ray.txt。") from None
    if not ray.is_initialized():
        code = {"py_modules": [str(Path(__file__).resolve().parent)]}
        try:
            _knock(address)
            ray.init(address=address, runtime_env=code, logging_level="ERROR", log_to_driver=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--address {address}：连不上 Ray 集群（{str(error).splitlines()[0]}）；请先在主机上运行 ray start --head，"
                "或用 --address local 在本机起一个。"
            ) from None
    return ray


def _knock(address: str) -> None:
    """Raise OSError where nobody listens; Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
