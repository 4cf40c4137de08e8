"""One run at a time in an output folder."""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import TextIO

from .errors import UserError

LOCK_NAME = ".lock"


def take_lock(folder: Path) -> TextIO | None:
    """Lock ``folder`` for this process; the lock lasts until the returned file is closed, or the process dies.

    A POSIX record lock: it goes when its process goes, kill -9 included, children do not inherit it (a data loader's
    orphan would keep a flock), and NFS knows it. None: the file system has no locks.

    Raises:
        UserError: another process holds it (names its pid and host).
    """
    path = folder / LOCK_NAME
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(file)
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise UserError(
            f"output_dir={folder}：{owner} 正在往这里训练，两次训练不能共用一个目录；请等它结束、停掉它，或换一个 output_dir。"
        ) from None
    file.truncate(0)
    json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
    file.flush()
    return file


def _owner(file: TextIO) -> str:
    file.seek(0)
    try:
        told = json.load(file)
        return f"进程 {told['pid']}（主机 {told['host']}）"
    except (ValueError, KeyError, TypeError):
        return "另一个进程"
