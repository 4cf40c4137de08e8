"""Asking a service: over urllib, or on a socket that the test can close when it likes."""

import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import replace

HI = [{"role": "user", "content": "你是谁？"}]
LONG = {"messages": HI, "max_tokens": 30_000, "temperature": 0}


def post(url, body, **headers):
    """Return (status, headers, JSON) of a POST; ``body`` may be raw bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def chat(service, **body):
    return post(f"{service.url}/v1/chat/completions", body)


def greedy_session(service):
    return replace(service.session, sampling=replace(service.session.sampling, temperature=0.0))


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def raw_post(service, body, **headers):
    """Send a chat request on a socket of our own, which the test can close when it likes."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    head += "".join(f"\r\n{name}: {value}" for name, value in headers.items())
    port = int(service.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection
