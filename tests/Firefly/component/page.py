"""The chat page's server in a thread, and asking it over real sockets."""

import contextlib
import http.client
import json
import socket
import threading

import uvicorn

import inference_with_transformers
from Firefly.component.web import build_app

HELLO = [{"role": "user", "content": "你是谁？"}]
FOREVER = {"max_new_tokens": 1 << 20, "temperature": 0}


@contextlib.contextmanager
def serving(models, only_here=True):
    """Serve the page on a free port in a thread; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(models, "系统", only_here), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)
    listener.close()


def parse(*argv: str, script=inference_with_transformers):
    return script.build_parser().parse_args(["--web", *argv])


def call(port: int, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    return connection, connection.getresponse()


def post(port: int, body: object, **headers: str):
    headers = {"Content-Type": "application/json"} | headers
    return call(port, "POST", "/api/chat", body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)


def ask(port: int, messages=HELLO, model="base", **settings) -> list[dict]:
    _, answer = post(port, {"model": model, "messages": messages, "settings": settings})
    assert answer.status == 200
    return [json.loads(line) for line in answer]
