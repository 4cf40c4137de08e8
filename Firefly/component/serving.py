"""Run an engine's own OpenAI-compatible server as a child: start, wait until healthy, say how to ask it, stop it.

Standard library only.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import UserError
from .listening import address, listen, reach_here_directly, warn_if_open
from .session import Session

GRACE_SECONDS = 30


def add_parallel_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flag that inference.add_server_flags lacks: copies of the model that share the requests."""
    group = parser.add_argument_group("多卡")
    group.add_argument("--data-parallel-size", type=int, default=1, help="同时跑几份模型分担请求（默认 1）")


def write_server_settings(session: Session, folder: Path) -> None:
    """Write chat_template.jinja and generation_config.json into ``folder`` for the server to read.

    They say what the flags and the checkpoint decided together: one template, the stop tokens, the sampling defaults.
    """
    sampling = session.sampling
    settings: dict[str, Any] = {
        "eos_token_id": list(session.stop_ids),
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.top_k:
        settings["top_k"] = sampling.top_k
    (folder / "chat_template.jinja").write_text(session.tokenizer.chat_template, encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def link_missing(model: Path, folder: Path) -> None:
    """Link into ``folder`` what it lacks of ``model``'s files, so that it is that model with our settings."""
    for source in model.iterdir():
        target = folder / source.name
        if not target.exists() and not source.name.startswith("."):
            target.symlink_to(source.resolve())


def hide_paths(session: Session, model: Path, folder: Path) -> tuple[Session, Path]:
    """Return ``session`` and ``model`` with their folders behind links in ``folder``.

    Engines tell anyone who asks for the list of models where these lie; so they say nothing of this machine's disk.
    """
    (folder / "model").symlink_to(model.resolve())
    adapters = {}
    for number, (name, path) in enumerate(session.adapters.items(), 1):
        adapters[name] = folder / f"adapter-{number}"
        adapters[name].symlink_to(path.resolve())
    return replace(session, adapters=adapters), folder / "model"


def settings_folder() -> tempfile.TemporaryDirectory:
    """A folder for ``write_server_settings`` that lives as long as the server."""
    return tempfile.TemporaryDirectory(prefix="firefly-serve-")


def free_port(host: str, port: int) -> int:
    """Return ``port`` if nobody listens there, any free one for 0; UserError when it is taken."""
    with listen(host, port) as probe:
        return probe.getsockname()[1]


def served_name(session: Session) -> str:
    """The name under which the server knows the base: the model's folder or hub name, never a path of the disk."""
    return Path(session.model).expanduser().resolve().name


def serve(command: list[str], host: str, port: int, model: str, env: dict[str, str], timeout: float = 900) -> int:
    """Run ``command`` until it ends or a signal to stop comes, which it gets too; return the exit code for the shell.

    The server's own output goes to stderr. Once /health answers, stdout gets the URL and stderr a curl line.
    Raises UserError when the server ends before that or takes longer than ``timeout`` seconds.
    """
    reach_here_directly()
    warn_if_open(host, command)
    print("启动：" + shlex.join(_without_keys(command)), file=sys.stderr, flush=True)
    child = subprocess.Popen(command, env=os.environ | env, stdout=sys.stderr, start_new_session=True)
    stopped_by: list[int] = []

    def forward(signum: int, frame: Any) -> None:
        if stopped_by:  # asked twice: at once
            _signal_group(child, signal.SIGKILL)
        stopped_by.append(signum)
        _signal_group(child, signal.SIGTERM if signum == signal.SIGHUP else signum)

    signums = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup: a closed terminal must not leave it behind
        signums.append(signal.SIGHUP)
    before = {s: signal.signal(s, forward) for s in signums}
    try:
        url = address(host, port)
        if is_worker(command):
            print("这是多机中的从节点，不接受提问；Ctrl-C 停止。", file=sys.stderr, flush=True)
        elif _wait_healthy(child, url, timeout, stopped_by):
            _say_ready(url, model)
        return _wait_stopped(child, stopped_by)
    finally:
        if child.poll() is None:
            _signal_group(child, signal.SIGKILL)
            child.wait()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def is_worker(command: list[str]) -> bool:
    """True for a node that works for another: it has no address to ask (vLLM), or only a stand-in (SGLang)."""
    words = [word for part in command for word in part.split("=", 1)]
    ranks = [words[k + 1] for k, word in enumerate(words[:-1]) if word == "--node-rank"]
    return "--headless" in words or any(rank != "0" for rank in ranks)


def _without_keys(command: list[str]) -> list[str]:
    """The command as it may be shown: API keys left out."""
    shown, hide = [], False
    for word in command:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("--") and flag.endswith("api-key")
        shown.append(f"{flag}=***" if secret and equals else "***" if hide and not word.startswith("--") else word)
        hide = (secret and not equals) or (hide and not word.startswith("--"))
    return shown


def _signal_group(child: subprocess.Popen, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signum)  # its workers too


def _wait_healthy(child: subprocess.Popen, url: str, timeout: float, stopped_by: list[int]) -> bool:
    deadline = time.monotonic() + timeout
    while not stopped_by:
        if child.poll() is not None:
            raise UserError(f"服务没有起来（退出码 {child.returncode}），原因见上面的日志；改正后用同一条命令重试。")
        if time.monotonic() > deadline:
            raise UserError(
                f"服务 {timeout:.0f} 秒内没有就绪，已停止；原因见上面的日志，模型很大时可加大 --serve-timeout。"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    return False


def _say_ready(url: str, model: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "你是谁？"}]}, ensure_ascii=False)
    curl = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    print(f"服务已就绪，Ctrl-C 停止。试一试：\n{curl}", file=sys.stderr, flush=True)
    print(f"{url}/v1", flush=True)


def _wait_stopped(child: subprocess.Popen, stopped_by: list[int]) -> int:
    """Wait for the child; after a signal it has GRACE_SECONDS. Stopped on request is success: 0."""
    killed_at = None
    while child.poll() is None:
        if stopped_by and killed_at is None:
            killed_at = time.monotonic() + GRACE_SECONDS
        if killed_at and time.monotonic() > killed_at:
            _signal_group(child, signal.SIGKILL)
        time.sleep(0.2)
    _signal_group(child, signal.SIGKILL)  # a worker that outlived its parent would keep the GPU
    if stopped_by:
        print("服务已停止。", file=sys.stderr)
        return 0
    return child.returncode if child.returncode >= 0 else 128 - child.returncode
