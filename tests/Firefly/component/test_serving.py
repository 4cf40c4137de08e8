"""What the command of a server says about it."""

import pytest

from Firefly.component.serving import _without_keys, is_worker


@pytest.mark.parametrize(
    ("words", "worker"),
    [
        ("serve m --port 1", False),
        ("serve m --nnodes 2 --node-rank 0", False),
        ("serve m --nnodes 2 --node-rank 1", True),
        ("serve m --node-rank=1", True),
        ("serve m --data-parallel-size 2 --headless", True),
        ("serve m --node-rank", False),
    ],
)
def test_a_worker_node_is_not_waited_for(words, worker):
    assert is_worker(words.split()) is worker


def test_no_key_is_shown():
    command = ["serve", "m", "--api-key", "k1", "k2", "--port", "1", "--api-key=k3", "--admin-api-key", "k4"]
    assert _without_keys(command) == [
        "serve",
        "m",
        "--api-key",
        "***",
        "***",
        "--port",
        "1",
        "--api-key=***",
        "--admin-api-key",
        "***",
    ]
    assert _without_keys(["serve", "--model", "m"]) == ["serve", "--model", "m"]
