"""Files on this machine, and addresses such as s3://bucket/x.jsonl that fsspec knows: written whole or not at all.

write_atomically(path) -> context manager giving a binary file   X.part, renamed to X when the block succeeds
all_together() -> context manager giving a list for write_atomically: several files, renamed when all are whole
is_remote(path) / file_exists(path) -> bool;  remote(path) -> (file system, path in it)
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

Renames = list[tuple[Path, Path]]
_BUFFER = 1 << 20


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike, waiting: Renames | None = None) -> Iterator[BinaryIO]:
    """Open ``path`` + ".part" for writing; rename it to ``path`` if the block ends well, remove it if not.

    Whatever goes wrong (no space, Ctrl-C, a bug), an existing ``path`` stays as it was. An address such as
    s3://bucket/x.jsonl is written on this machine first and sent when it is whole. waiting: of ``all_together``.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "whole"
            with open(local, "wb", buffering=_BUFFER) as file:
                yield file
            filesystem, inside = remote(path)
            filesystem.makedirs(filesystem._parent(inside), exist_ok=True)
            filesystem.put_file(str(local), f"{inside}.part")
            filesystem.mv(f"{inside}.part", inside)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise UserError(f"{path}：这是一个目录，请给出文件路径。")
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if waiting is not None:
            waiting.append((part, path))
            return
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # write() names no file; the user needs to know which
        raise
    finally:
        if (part, path) not in (waiting or ()):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def all_together() -> Iterator[Renames]:
    """Let the files of a run take their places when all of them are on disk, or none."""
    waiting: Renames = []
    try:
        yield waiting
        for part, path in waiting:
            os.replace(part, path)
    finally:
        for part, _ in waiting:
            part.unlink(missing_ok=True)


def is_remote(path: str | os.PathLike) -> bool:
    return "://" in str(path)


def remote(path: str | os.PathLike) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{path}：打不开这种地址（{error}）；s3:// 需要 pip install s3fs，oss:// 需要 ossfs。"
        ) from None


def file_exists(path: str | os.PathLike) -> bool:
    if not is_remote(path):
        return os.path.exists(path)
    filesystem, inside = remote(path)
    return filesystem.exists(inside)
