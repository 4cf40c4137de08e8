"""Certificates are trusted as before aiohttp was kept from reading them; a whole run over https."""

import os
import runpy
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from LLM_data_gen import network

ROOT = Path(__file__).resolve().parents[2]
FaultServer = runpy.run_path(str(Path(__file__).with_name("fault_server.py")))["FaultServer"]


@pytest.fixture
def authority(tmp_path):
    """An authority of our own, and a server that it vouches for."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultServer(lambda *_: {"pieces": 9, "piece_delay_s": 0.02}, tls=tls) as server:
        yield tmp_path / "ca.pem", server


def run(folder, server, **environment):
    (folder / "topics.txt").write_text("过冬\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "gen_SFT_data.py"), "--base-url", server.url, "--out", "o.jsonl"]
    command += ["--topics-file", "topics.txt", "--n-per-topic", "2", "--max-tries", "1"]
    env = {**os.environ, "OPENAI_API_KEY": "sk-test", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")


def test_a_certificate_is_trusted_that_ssl_cert_file_vouches_for(tmp_path, authority):
    pem, server = authority
    done = run(tmp_path, server, SSL_CERT_FILE=str(pem))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == 2


def test_any_other_is_refused_in_one_sentence_that_says_what_to_do(tmp_path, authority):
    _, server = authority
    done = run(tmp_path, server)
    assert done.returncode == 2
    assert "证书不可信" in done.stderr
    assert "SSL_CERT_FILE=" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.asked == []


def test_the_systems_certificates_are_there_and_the_environment_as_it_was():
    assert len(network.certificates().get_ca_certs()) == len(ssl.create_default_context().get_ca_certs())
    for given in ({}, {"SSL_CERT_FILE": "given.pem"}):
        code = "import os; before = dict(os.environ); import LLM_data_gen.network; print(dict(os.environ) == before)"
        env = {"PATH": os.environ["PATH"], **given}
        said = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert said.stdout == "True\n"
