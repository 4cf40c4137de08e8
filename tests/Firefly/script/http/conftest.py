"""Services on a real tiny model in this process, each on a socket of its own."""

import socket
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import uvicorn

from Firefly.component.generate import load_model
from Firefly.component.http_api import Service, build_app
from Firefly.component.http_batch import Batcher
from Firefly.component.session import choose_device, open_session
from tests.conftest import load_script


@pytest.fixture(scope="module")
def loaded(tiny_minicpm):
    parser = load_script("Firefly/script/http/serve.py").build_parser()
    args = parser.parse_args(["--model", str(tiny_minicpm), "--max-new-tokens", "16"])
    session = open_session(args)
    model = load_model(session, *choose_device(args))
    # A random model's loose bytes make up no characters; without them texts can be compared to the letter.
    loose = torch.arange(5, 5 + 256)
    model.lm_head.register_forward_hook(lambda module, args, output: output.index_fill(-1, loose, -100.0))
    return session, model


@pytest.fixture(scope="module")
def start(loaded):
    """Return a function that starts a service in this process and gives its URL, session and batcher."""
    running = []

    def run(endless=False, queue=256, rows=32, **settings):
        session, model = loaded
        if endless:
            session = replace(session, stop_ids=(10**9,))
        batcher = Batcher(model, rows, queue, 65536)
        config = uvicorn.Config(
            build_app(Service(session, batcher, "tiny", **settings)), http="h11", log_level="error", lifespan="off"
        )
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, batcher, listener))
        return SimpleNamespace(
            url=f"http://127.0.0.1:{listener.getsockname()[1]}", session=session, batcher=batcher, model=model
        )

    yield run
    for server, thread, batcher, listener in running:
        server.should_exit = server.force_exit = True
        thread.join(10)
        batcher.close()
        listener.close()


@pytest.fixture(scope="module")
def service(start):
    return start()
