"""What the client stands on.

    from .network import aiohttp             imported in half the time
    certificates() -> ssl.SSLContext         what every TCPConnector that may speak https must be given
    run(coroutine)                           asyncio.run, on uvloop where there is one
    await read_all(response, feed)           a stream to its end
    open_files(n) -> int                     how many files may be open

On its import aiohttp reads the system's certificates twice, 70 ms each, whether or not https will be spoken (aiohttp.connector,
3.14). Here they are hidden from it, and read once, by who needs them.
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

_FILE = "SSL_CERT_FILE"  # where OpenSSL looks, instead of in the system's place
_given = os.environ.get(_FILE)
os.environ[_FILE] = os.devnull
try:
    import aiohttp
finally:
    if _given is None:
        del os.environ[_FILE]
    else:
        os.environ[_FILE] = _given

__all__ = ["aiohttp", "certificates", "open_files", "read_all", "run"]

_LONGEST_PAUSE_S = 0.2  # between two looks at a stream


def certificates() -> ssl.SSLContext:
    """The context that aiohttp would have made of its own."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """uvloop takes a tenth off the CPU of a request, a quarter off that of each piece of a stream."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def read_all(response: aiohttp.ClientResponse, feed: Callable[[bytes], None]) -> None:
    """Give what comes to ``feed``, also what had come when the connection broke.

    To be woken for each token of hundreds of streams would keep a core busy. So after a look nothing is read for a while:
    the longer a stream takes, the longer, and none ends more than a fiftieth later for it.
    """
    content, started = response.content, time.monotonic()
    try:
        while not content.at_eof():
            feed(await content.readany())
            if not content.is_eof():
                with _not_reading(response.connection):
                    await asyncio.sleep(min((time.monotonic() - started) / 50, _LONGEST_PAUSE_S))
    except (aiohttp.ClientError, asyncio.TimeoutError):
        feed(b"".join(content._buffer))  # no public method gives it once the connection is broken
        raise


@contextlib.contextmanager
def _not_reading(connection: aiohttp.connector.Connection | None) -> Iterator[None]:
    """Leave what comes to the system, which puts it together."""
    transport = connection and connection.transport
    if not transport or transport.is_closing():
        yield
        return
    transport.pause_reading()
    try:
        yield
    finally:
        if not transport.is_closing():
            transport.resume_reading()


def open_files(n: int) -> int:
    """How many files may be open, n if the system can be talked into it; each request in flight is one."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < n:
            soft = n if hard == resource.RLIM_INFINITY else min(n, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return n if soft == resource.RLIM_INFINITY else soft
    except (ImportError, ValueError, OSError):  # Windows has no such limit
        return n
