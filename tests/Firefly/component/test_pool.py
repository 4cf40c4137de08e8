"""The process pool: order, errors at their place, bounded memory, and no hanging when a worker dies."""

import os
import signal

import pytest

from Firefly.component import pool
from Firefly.component.errors import UserError


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr(pool, "_cores", lambda: 2)


@pytest.mark.parametrize("workers", [1, 2, 10])
def test_results_come_in_order(workers):
    assert list(pool.ordered_map(lambda x: x * x, range(50), workers)) == [x * x for x in range(50)]


def test_work_is_done_elsewhere_and_without_threads_of_its_own():
    seen = set(pool.ordered_map(lambda _: (os.getpid(), os.environ["TOKENIZERS_PARALLELISM"]), range(50), 2))
    assert os.getpid() not in {pid for pid, _ in seen}
    assert {parallel for _, parallel in seen} == {"false"}


def test_no_more_is_read_than_is_under_way():
    read = []
    results = pool.ordered_map(lambda x: x, (read.append(i) or i for i in range(100)), 2)
    next(results)
    assert len(read) == 5  # two for each of two workers, and the one that made the first come out
    results.close()


def test_an_error_comes_at_its_place():
    def fail_at_seven(x):
        if x == 7:
            raise UserError("seven")
        return x

    results = pool.ordered_map(fail_at_seven, range(50), 2)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(UserError, match="seven"):
        next(results)


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(UserError, match="tokenize_num_workers"):
        list(pool.ordered_map(lambda x: os.kill(os.getpid(), signal.SIGKILL), range(50), 2))
