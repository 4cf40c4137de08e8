"""How every script of this project ends when its input is bad: one sentence, exit code 2, no traceback.

This file stands twice, word for word: in sft_data/ and in Firefly/component/, because Firefly/ must run
on its own. tests/test_layout.py holds the two equal.
"""

import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says where, what, and what to do next, in Chinese."""


_OS_ADVICE = {
    errno.ENOSPC: "磁盘空间不足，请清理后用同一条命令重试；已写完的内容仍在",
    errno.ENOENT: "找不到这个文件或目录，请检查路径",
    errno.EACCES: "没有读写权限，请换一个目录或修改权限",
    errno.EROFS: "文件系统只读，请换一个目录",
    errno.EISDIR: "这是一个目录，请给出文件路径",
    errno.ENOTDIR: "路径中有一段不是目录，请检查路径",
    errno.ENAMETOOLONG: "文件名太长，请换一个短的",
    errno.EADDRINUSE: "端口被占用，请换一个端口",
}
# How safetensors and torch say ENOSPC in errors of their own.
_DISK_FULL = ("No space left on device", "PytorchStreamWriter failed writing")


def exit_cleanly(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Wrap a script's ``main``: UserError and known errors of the system become one line on stderr and exit code 2.

    Ctrl-C becomes 130 and a closed pipe 1, as shells expect. Anything else is our bug and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"错误：{error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\n已中断：已写出的内容都保留，用同一条命令可以继续。", file=sys.stderr)
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            number = errno.ENOSPC if any(words in str(error) for words in _DISK_FULL) else getattr(error, "errno", None)
            if number not in _OS_ADVICE:
                raise
            where = getattr(error, "filename", None) or "写文件时"
            print(f"错误：{where}：{_OS_ADVICE[number]}。", file=sys.stderr)
            return 2

    return wrapped
