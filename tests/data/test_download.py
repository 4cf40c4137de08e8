"""data/download.py against a real HTTP server that speaks the few hub routes it needs, Range included."""

import hashlib
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from data import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECORDS = [{"instruction": f"问题{i}", "input": "", "output": "回答" * 50} for i in range(400)]
FIREFLY = json.dumps(RECORDS, ensure_ascii=False).encode()


class HubHandler(BaseHTTPRequestHandler):
    """The hub's routes, for what its server's ``state`` says; see the fixture."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.serve(head=True)

    def do_GET(self):
        self.serve(head=False)

    def serve(self, head):
        path, state = self.path.partition("?")[0], self.server.state
        for repo, files in state.files.items():
            if path in (f"/api/datasets/{repo}", f"/api/models/{repo}"):
                return self.reply(200, json.dumps(repo_json(repo, files)).encode())
            _, found, name = path.partition(f"{repo}/resolve/main/")
            if found and name in files:
                return self.send_file(state.lie.get(name, files[name]), files[name], head)
        return self.reply(404, b"", [("X-Error-Code", "RepoNotFound")])

    def send_file(self, served, true, head):
        state, headers = (
            self.server.state,
            [("ETag", f'"{hashlib.sha256(true).hexdigest()}"'), ("X-Repo-Commit", COMMIT)],
        )
        if head:
            return self.reply(200, b"", [*headers, ("Content-Length", str(len(served)))])
        state.gets += 1
        start = 0
        if asked := self.headers.get("Range"):
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers.append(("Content-Range", f"bytes {start}-{len(served) - 1}/{len(served)}"))
        body = served[start:]
        headers.append(("Content-Length", str(len(body))))
        if state.cut_after is not None:
            body, state.cut_after = body[: state.cut_after], None
            self.close_connection = True
        if state.interrupt_after is not None:
            self.reply(200, body[: state.interrupt_after], headers)
            self.wfile.flush()
            time.sleep(0.3)  # for the client to write what came
            os.kill(os.getpid(), signal.SIGINT)  # the user's Ctrl-C, while the connection is open
            time.sleep(0.3)
            self.close_connection = True
            return None
        return self.reply(206 if asked else 200, body, headers)


@pytest.fixture
def hub(monkeypatch):
    """A hub: ``files`` maps a repository to {path: bytes}; ``lie`` serves other bytes; ``cut_after`` breaks the first GET."""
    state = SimpleNamespace(files={}, lie={}, cut_after=None, interrupt_after=None, ranges=[], gets=0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.state, state.url = state, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # the library's 10 MB, for small files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # tests/conftest.py forbids the network
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield state
    server.shutdown()
    server.server_close()


def repo_json(repo, files):
    """What the hub says of a repository: SHA-256 for *.json and *.safetensors (as LFS), git's SHA-1 for the rest."""
    siblings = []
    for name, content in files.items():
        entry = {"rfilename": name, "size": len(content)}
        if name.endswith((".json", ".safetensors", ".bin")):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 134}
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        siblings.append(entry)
    return {"id": repo, "_id": "x", "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "private": False}


def run(*argv):
    return download.main([str(arg) for arg in argv])


def test_firefly_is_fetched_and_verified_and_not_fetched_twice(hub, tmp_path, capsys):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY, "other.json": b"[]"}}
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 0
    target = tmp_path / "firefly" / "firefly_no_belle.json"
    assert target.read_bytes() == FIREFLY
    assert capsys.readouterr().out.strip() == str(target)  # the path, alone, on stdout
    assert not (tmp_path / "other.json").exists()
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 0
    assert hub.gets == 1


def test_hf_endpoint_of_the_environment_is_used(hub, tmp_path, monkeypatch):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY}}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert run("--firefly", "--out", tmp_path) == 0
    assert hub.gets == 1


def test_a_broken_connection_is_resumed_where_it_broke(hub, tmp_path):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY}}
    hub.cut_after = 10_000
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 0
    assert hub.ranges == ["bytes=10000-"]
    assert (tmp_path / "firefly" / "firefly_no_belle.json").read_bytes() == FIREFLY


def test_a_later_run_resumes_the_part_that_an_interrupted_one_left(hub, tmp_path, monkeypatch):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY}}
    target = tmp_path / "firefly" / "firefly_no_belle.json"
    hub.interrupt_after = 7_000
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 130
    assert target.with_name("firefly_no_belle.json.part").read_bytes() == FIREFLY[:7_000]
    hub.interrupt_after = None
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 0
    assert hub.ranges == ["bytes=7000-"]
    assert target.read_bytes() == FIREFLY


def test_a_part_that_belongs_to_another_version_is_caught_by_the_hash(hub, tmp_path, capsys):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY}}
    (tmp_path / "firefly").mkdir()
    (tmp_path / "firefly" / "firefly_no_belle.json.part").write_bytes(b"?" * 500)
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 2
    assert "校验不符" in capsys.readouterr().err
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 0
    assert (tmp_path / "firefly" / "firefly_no_belle.json").read_bytes() == FIREFLY


def test_bytes_that_do_not_match_the_hash_are_refused_and_set_aside(hub, tmp_path, capsys):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY}}
    hub.lie = {download.FIREFLY[1]: FIREFLY.replace(b"7", b"8")}  # same size, other bytes
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 2
    assert "校验不符" in capsys.readouterr().err
    folder = tmp_path / "firefly"
    assert not (folder / "firefly_no_belle.json").exists()
    assert (folder / "firefly_no_belle.json.bad").exists()


def test_a_wrong_file_already_there_is_kept_beside_and_fetched_again(hub, tmp_path):
    hub.files = {download.FIREFLY[0]: {download.FIREFLY[1]: FIREFLY}}
    (tmp_path / "firefly").mkdir()
    (tmp_path / "firefly" / "firefly_no_belle.json").write_bytes(b"[mine")
    assert run("--firefly", "--endpoint", hub.url, "--out", tmp_path) == 0
    assert (tmp_path / "firefly" / "firefly_no_belle.json").read_bytes() == FIREFLY
    assert (tmp_path / "firefly" / "firefly_no_belle.json.bad").read_bytes() == b"[mine"


def test_a_model_comes_without_the_same_weights_in_other_formats(hub, tmp_path, capsys):
    files = {
        "config.json": b"{}",
        "README.md": b"# x",
        "model.safetensors": os.urandom(5000),
        "pytorch_model.bin": b"y",
    }
    hub.files = {"org/tiny": files}
    assert run("--model", "org/tiny", "--endpoint", hub.url, "--out", tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny")
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "tiny" / name).read_bytes() == files[name]
    assert not (tmp_path / "tiny" / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["--firefly", "--endpoint", "http://127.0.0.1:9"], "--endpoint mirror"),
        (["--model", "a/b", "--endpoint", "http://127.0.0.1:9"], "拷到"),
        (["--model", "a//b", "--endpoint", "http://127.0.0.1:9"], "openbmb/MiniCPM4-0.5B"),
        (["--firefly", "--endpoint", "ftp"], "hf、mirror、modelscope"),
    ],
)
def test_what_cannot_work_is_answered_in_one_sentence(argv, advice, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert run(*argv, "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert advice in err
    assert "Traceback" not in err


def test_the_other_endpoints_are_named(tmp_path):
    said = {e: str(download.offline("a/b", e, tmp_path, OSError("x"))) for e in ("https://hf-mirror.com", "modelscope")}
    assert "--endpoint modelscope 或 hf，" in said["https://hf-mirror.com"]
    assert "--endpoint mirror 或 hf，" in said["modelscope"]


def test_the_offline_switch_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("--model", "a/b", "--out", tmp_path) == 2
    assert "unset HF_HUB_OFFLINE" in capsys.readouterr().err


def test_an_unknown_repository_is_named(hub, tmp_path, capsys):
    assert run("--model", "no/such", "--endpoint", hub.url, "--out", tmp_path) == 2
    assert "no/such" in capsys.readouterr().err


def test_a_cut_or_wrong_file_fails_the_record_check(tmp_path):
    cut = tmp_path / "cut.json"
    cut.write_bytes(FIREFLY[:-300])
    with pytest.raises(download.UserError, match="没有下载完"):
        download.check_records(cut)
    page = tmp_path / "page.json"
    page.write_text("<html>not found</html>")
    with pytest.raises(download.UserError):
        download.check_records(page)
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b"\n".join(json.dumps(record).encode() for record in RECORDS))
    download.check_records(lines)
