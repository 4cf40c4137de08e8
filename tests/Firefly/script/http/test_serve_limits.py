"""What the service withstands: large bodies, wrong keys, clients that hang up, a full queue, a failing model."""

import socket
import time
import urllib.request

import pytest

from tests.Firefly.script.http.served import HI, LONG, chat, post, raw_post, wait_until


def test_a_body_over_the_limit_is_refused_though_it_is_still_being_sent(start):
    small = start(max_body=10_000)
    assert chat(small, messages=[{"role": "user", "content": "x" * 9_000}], max_tokens=1)[0] == 200
    status, _, answer = chat(small, messages=[{"role": "user", "content": "x" * 3_000_000}])
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_the_key_is_asked_for_everywhere_but_at_health(start):
    guarded = start(api_key="sésame-1".encode().decode("latin-1"))
    key = "sésame-1".encode().decode("latin-1")
    body = {"messages": HI, "max_tokens": 1}
    for given in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": key}, {"Authorization": f"Bearer {key}x"}):
        status, headers, answer = post(f"{guarded.url}/v1/chat/completions", body, **given)
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        assert headers["WWW-Authenticate"] == "Bearer"
        assert post(f"{guarded.url}/firefly", {"inputs": "x"}, **given)[0] == 401
    assert urllib.request.urlopen(f"{guarded.url}/health").status == 200


def test_a_right_key_is_let_in(start):
    guarded = start(api_key="sesame")
    given = {"Authorization": "Bearer sesame"}
    assert post(f"{guarded.url}/v1/chat/completions", {"messages": HI, "max_tokens": 1}, **given)[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_stops_its_generation(start, stream):
    endless = start(endless=True)
    connection = raw_post(endless, LONG | {"stream": stream})
    if stream:
        assert b"200 OK" in connection.recv(1000)
    wait_until(lambda: endless.batcher.counts()[0] == 1)
    (row,) = endless.batcher.rows or [None]
    connection.close()
    wait_until(lambda: endless.batcher.counts() == (0, 0))
    assert row is None or len(row.ids) < 10_000
    assert endless.batcher.cache is None


@pytest.mark.parametrize("only_here", [False, True])  # True: refused for its Host, before its body is read
@pytest.mark.parametrize("body", ["Content-Length: 99\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\nno number\r\n"])
def test_a_body_that_is_never_whole_is_no_failure_of_ours(start, capfd, caplog, body, only_here):
    """No traceback for what any client can do at any time: hang up, or send what is no HTTP."""
    service = start(only_here=only_here)
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(f"POST /firefly HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{body}".encode())
        time.sleep(0.2)
    assert chat(service, messages=HI, max_tokens=1)[0] == 200
    ours = [record for record in caplog.records if record.name.startswith("firefly")]
    assert not ours
    assert "ClientDisconnect" not in capfd.readouterr().err + caplog.text


def test_web_sites_are_kept_out_when_only_this_machine_is_served(start):
    """DNS rebinding: a page from evil.example whose name now leads to 127.0.0.1 asks under its own name."""
    here = start(only_here=True)
    url, body = f"{here.url}/v1/chat/completions", {"messages": HI, "max_tokens": 1}
    status, _, answer = post(url, body, Host="evil.example:8877")
    assert (status, answer["error"]["code"]) == (403, "wrong_host")
    for host in ("127.0.0.1:1", "localhost", "[::1]:8877"):
        assert post(url, body, Host=host)[0] == 200


def test_a_full_queue_says_when_to_come_back(start):
    full = start(endless=True, rows=1, queue=1)
    held = [raw_post(full, LONG | {"stream": True})]
    wait_until(lambda: full.batcher.counts() == (1, 0))
    held.append(raw_post(full, LONG))
    wait_until(lambda: full.batcher.counts() == (1, 1))
    status, headers, answer = chat(full, messages=HI)
    assert (status, headers["Retry-After"], answer["error"]["code"]) == (503, "5", "queue_full")
    for connection in held:
        connection.close()
    wait_until(lambda: full.batcher.counts() == (0, 0))
    assert chat(full, messages=HI, max_tokens=1)[0] == 200


def test_a_failure_in_the_model_is_a_500_without_details(start, monkeypatch):
    broken = start()
    monkeypatch.setattr(broken.model, "forward", lambda **kwargs: 1 / 0)
    status, _, answer = chat(broken, messages=HI)
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    with raw_post(broken, {"messages": HI, "stream": True}) as connection:
        text = b""
        while b"[DONE]" not in text:
            text += connection.recv(4096)
    assert "生成时出错".encode() in text
    assert b"division" not in text
