"""Run train.py several times in the processes of one launch, which saves importing everything each time:

torchrun --standalone --nproc_per_node=2 launched.py RUNS.json     (a list of [free port, train.py's arguments])

Each run is a fork of the process that did the imports, so none finds anything of the one before it; its processes meet
at a port of its own.
"""

import json
import os
import sys
from pathlib import Path

os.chdir(Path(__file__).resolve().parents[2] / "Firefly")
sys.path.insert(0, os.getcwd())
os.environ["DS_ACCELERATOR"] = "cpu"


def run_apart(port: int, argv: list[str]) -> int:
    """Return the exit code of one run."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    from train import main

    code = 1
    try:
        code = main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import bitsandbytes  # noqa: F401
    import component.argument
    import component.evaluation
    import component.model
    import component.monitor
    import component.samples
    import component.trainer
    import deepspeed  # noqa: F401

    component.samples.MAX_NEW_TOKENS = 4  # under ZeRO-3 each token gathers all weights

    for port, argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if code := run_apart(port, argv):
            sys.exit(code)
