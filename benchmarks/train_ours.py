"""Contender "ours": Firefly/train.py as it is, with a timer among its callbacks. Argument: the settings that bench_train.py wrote."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Firefly"))


def main(path: str) -> int:
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    import train
    from step_timer import StepTimer

    timer = StepTimer(settings["warm_up"], settings["pad_token_id"])
    build_trainer = train.build_trainer

    def build_timed(*args, **kwargs):
        trainer = build_trainer(*args, **kwargs)
        trainer.add_callback(timer)
        return trainer

    train.build_trainer = build_timed
    code = train.main(["--train_args_file", settings["train_args"]])
    if code == 0:
        results = json.loads((Path(settings["out"]) / "train_results.json").read_text(encoding="utf-8"))
        timer.report(results={key: value for key, value in results.items() if isinstance(value, int | float)})
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
