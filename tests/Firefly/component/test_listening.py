"""Where a server listens, for whom, and how Ctrl-C ends it, once and twice."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from Firefly.component.errors import UserError
from Firefly.component.listening import address, foreign_host, is_loopback, listen

ROOT = Path(__file__).resolve().parents[3]
ENDLESS = """
import asyncio, sys, time
from Firefly.component.listening import listen, run_app

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"more\\n", "more_body": True})
        await asyncio.sleep(0.05)

with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    run_app(app, listener)
print("a step of the model", flush=True)
time.sleep(float(sys.argv[1]))
"""


@contextlib.contextmanager
def streaming(step_seconds: float):
    """A server in its own process with an answer under way; after its end the model's last step takes that long."""
    command = [sys.executable, "-c", ENDLESS, str(step_seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            with urllib.request.urlopen(url) as answer:
                assert answer.readline() == b"more\n"
                yield process
        finally:
            process.kill()


def test_ctrl_c_ends_it_within_a_second_of_grace_and_says_nothing():
    with streaming(0) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")


def test_ctrl_c_twice_leaves_at_once():
    with streaming(60) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "a step of the model\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    with streaming(60) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_who_is_here(host, here):
    assert is_loopback(host) is here
    wrapped = f"[{host}]" if host == "::1" else host
    for given in (wrapped, f"{wrapped}:8877"):
        scope = {"headers": [(b"accept", b"*/*"), (b"host", given.encode())]}
        assert foreign_host(scope) == (None if here else host)


def test_a_request_without_a_host_is_not_from_here():
    assert foreign_host({"headers": []}) == ""


def test_a_taken_port_is_said_and_any_free_one_is_found():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}：不能在这里监听"):
            listen("127.0.0.1", port)
        assert address("127.0.0.1", port) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass
    assert address("::1", 7) == "http://[::1]:7"


def test_no_port_is_said_in_a_second_place():
    """The sentence about a port in use has one home."""
    sources = [*(ROOT / "Firefly").rglob("*.py"), *ROOT.glob("*.py")]
    homes = [path for path in sources if "不能在这里监听" in path.read_text(encoding="utf-8")]
    assert [os.path.basename(path) for path in homes] == ["listening.py"]
