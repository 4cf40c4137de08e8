import os
import signal
import subprocess
import sys

import pytest

from Firefly.component.errors import UserError
from Firefly.component.lock import take_lock

HOLD = """
import os, sys, time
from pathlib import Path
from Firefly.component.lock import take_lock
lock = take_lock(Path(sys.argv[1]))
child = os.fork()
if child:
    print("held", child, flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    """Killed with -9 while a child of it lives on, as a data loader's worker does for some seconds."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    word, child = holder.stdout.readline().split()
    try:
        assert word == "held"
        with pytest.raises(UserError, match=f"进程 {holder.pid}（主机 .+）"):
            take_lock(tmp_path)
        holder.kill()
        holder.wait()
        take_lock(tmp_path).close()
    finally:
        os.kill(int(child), signal.SIGKILL)
        holder.kill()
        holder.stdout.close()


def test_a_lock_is_gone_when_its_file_is_closed(tmp_path):
    take_lock(tmp_path).close()
    code = "import sys; from pathlib import Path; from Firefly.component.lock import take_lock; take_lock(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
