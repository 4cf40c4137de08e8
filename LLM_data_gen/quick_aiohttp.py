"""aiohttp, imported in half the time.

    from .quick_aiohttp import aiohttp, certificates

On its import aiohttp reads the system's certificates twice, 70 ms each, whether or not https will be spoken (aiohttp.connector,
3.14). Here they are hidden from it, and read once, by who needs them.
"""

import os
import ssl

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

__all__ = ["aiohttp", "certificates"]


def certificates() -> ssl.SSLContext:
    """What every TCPConnector that may speak https must be given: the context that aiohttp would have made of its own."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
