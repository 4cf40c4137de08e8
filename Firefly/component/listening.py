"""What servers share: where they listen, for whom, how they are reached, and how our own two end.

Standard library only; uvicorn is imported when a server runs.
"""

import ipaddress
import os
import re
import signal
import socket
import sys
from typing import Any

from .errors import UserError

GRACE_SECONDS = 1  # for answers under way when Ctrl-C comes


def listen(host: str, port: int) -> socket.socket:
    """Take the port, any free one for 0. Before a model is loaded, so that a port in use is known at once: UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}：不能在这里监听（{error.strerror}），请换一个端口或地址。"
        ) from None


def address(host: str, port: int) -> str:
    return f"http://{'[' + host + ']' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """True for the names that only this machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reach_here_directly() -> None:
    """Ask this machine's own servers past any proxy that the environment names: it would look for them on itself."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    here = [name for name in ("127.0.0.1", "localhost", "::1") if name not in known.split(",")]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([known, *here] if known else here)


def warn_if_open(host: str, command: list[str]) -> None:
    """Say so when other machines can ask an engine's server and no key is asked for."""
    keys = ("VLLM_API_KEY" in os.environ, any("api-key" in word for word in command))
    if not is_loopback(host) and not any(keys):
        print(
            f"警告：监听 {host}，别的机器也能访问，而且没有设密钥；vLLM 请设环境变量 VLLM_API_KEY，SGLang 请加 -- --api-key 密钥。",
            file=sys.stderr,
        )


def foreign_host(scope: dict) -> str | None:
    """The host that a request (an ASGI scope) was meant for, when that is not this machine's loopback.

    A web site open in a browser here can reach 127.0.0.1 under a name of its own (DNS rebinding), and the Host header
    says so.
    """
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    host = re.sub(r":\d+$", "", given)
    return None if is_loopback(host) else host


def run_app(app: Any, listener: socket.socket) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; what then takes longer than GRACE_SECONDS is cut off. Asked twice: at once."""
    import uvicorn

    def leave(signum: int, frame: Any) -> None:
        os._exit(128 + signum)

    class Server(uvicorn.Server):
        def handle_exit(self, signum: int, frame: Any) -> None:
            if self.should_exit:
                leave(signum, frame)
            self.should_exit = True

    # critical: else uvicorn logs a traceback for every answer that it cuts off; the apps log their own failures
    config = uvicorn.Config(
        app,
        http="h11",
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config).run(sockets=[listener])
    for signum in (signal.SIGINT, signal.SIGTERM):  # the model may still be in the middle of a step
        signal.signal(signum, leave)
