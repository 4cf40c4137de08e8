"""Several processes equal one: torchrun, ZeRO-2, ZeRO-3, FSDP; their checkpoints resumed, and cut anew for another number.

Everything runs over gloo on the CPU. Each launch does many runs (launched.py), for starting it costs more than they do.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer

from .conftest import ROOT, conversation

pytestmark = pytest.mark.slow

STEPS, SAVED = 5, 2
MODES = ("full", "lora", "qlora")
WAYS = {
    "ddp": {},
    "zero2": {"deepspeed": "train_args/ds_z2_gpu_config.json"},
    "zero2_offload": {"deepspeed": "train_args/ds_z2_config.json"},
    "zero3": {"deepspeed": "train_args/ds_z3_gpu_config.json"},
    "zero3_offload": {"deepspeed": "train_args/ds_z3_config.json"},
    "fsdp": {"fsdp": True},
}
# DDP alone is cut and resumed in test_resume.py. FIREFLY_TEST_ALL=1 runs every combination, two minutes more.
TWO = [
    ("full", "ddp"),
    ("full", "zero2"),
    ("full", "zero3_offload"),
    ("full", "fsdp"),
    ("lora", "zero3"),
    ("qlora", "zero3"),
]
CUT_ANEW = [("full", "zero2"), ("full", "zero3_offload"), ("full", "fsdp")]
RESUMED = [*CUT_ANEW, ("lora", "zero3")]
if os.environ.get("FIREFLY_TEST_ALL"):
    TWO += [("full", "zero2_offload"), ("full", "zero3"), ("lora", "ddp"), ("lora", "zero2_offload"), ("lora", "fsdp")]
    TWO += [("qlora", "ddp"), ("qlora", "zero2")]
    CUT_ANEW += [("lora", "zero3")]
    RESUMED += [("full", "zero2_offload"), ("qlora", "zero3")]


def run_command(command: list[str], seconds: int = 600) -> str:
    """Run a launcher; what it started dies with it."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(ROOT / "Firefly")
    process = subprocess.Popen(
        command, cwd=ROOT / "Firefly", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )  # fmt: skip
    try:
        output = process.communicate(timeout=seconds)[0].decode(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-5000:]
    return output


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


class Runs:
    """What the module's tests look at: folders of finished runs by name, such as "2-full-zero3"."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.cache = folder, folder / "cache"
        for name, count in (("train", 13), ("eval", 5)):
            lines = [json.dumps(conversation(i, turns=1 + i % 3), ensure_ascii=False) + "\n" for i in range(count)]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        self.values = {
            "train_file": str(folder / "train.jsonl"), "eval_file": str(folder / "eval.jsonl"), "model_name_or_path": str(model),
            "template_name": "minicpm4", "lora_rank": 4, "lora_dropout": 0.0, "max_seq_length": 256, "max_steps": STEPS,
            "optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "logging_steps": 1,
            "save_strategy": "steps", "save_steps": SAVED, "report_to": "none", "tokenize_num_workers": 1,
        }  # fmt: skip

    def job(self, processes: int, mode: str, way: str, resume: str | None = None) -> list[str]:
        """Arguments of a run of 4 records a step: 4, 4, 4, 1, and one of the next epoch. resume: name of a finished run."""
        name = self.name(processes, mode, way, resume)
        values = self.values | WAYS[way] | {"train_mode": mode, "per_device_train_batch_size": 4 // processes}
        if resume:
            cut = self.folder / f"{name}-cut"
            cut.mkdir()
            os.symlink(self.folder / resume / f"checkpoint-{SAVED}", cut / f"checkpoint-{SAVED}")
            values["resume_from_checkpoint_path"] = str(cut)
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(values | {"output_dir": str(self.folder / name)}), encoding="utf-8")
        return ["--train_args_file", str(path)]

    @staticmethod
    def name(processes: int, mode: str, way: str, resume: str | None = None) -> str:
        return f"{processes}-{mode}-{way}" + (f"-from-{resume[0]}" if resume else "")

    def launch(self, processes: int, jobs: list[list[str]]) -> None:
        path = self.folder / "runs.json"
        path.write_text(json.dumps(list(zip(free_ports(len(jobs)), jobs, strict=True))), encoding="utf-8")
        worker = [f"--nproc_per_node={processes}", str(Path(__file__).with_name("launched.py")), str(path)]
        run_command([sys.executable, "-m", "torch.distributed.run", "--standalone", *worker])

    def history(self, name: str, key: str) -> list[float]:
        entries = json.loads((self.folder / name / "trainer_state.json").read_text())["log_history"]
        return [entry[key] for entry in entries if key in entry]

    def weights(self, name: str) -> dict:
        (path,) = (self.folder / name).glob("*model.safetensors")
        return load_file(path)

    def check_equal(self, name: str, other: str, absolute: float = 1e-5) -> None:
        """The same losses, gradient norms, held-out loss and weights: to a hundredth of one of Adam's steps, 1e-3 here."""
        for key, relative in (("loss", 1e-5), ("grad_norm", 1e-4), ("eval_loss", 1e-5), ("eval_target_tokens", 0)):
            assert self.history(name, key) == pytest.approx(self.history(other, key), rel=relative), (name, key)
        ours, theirs = self.weights(name), self.weights(other)
        assert ours.keys() == theirs.keys(), name
        worst = max((ours[key].float() - theirs[key].float()).abs().max().item() for key in ours)
        assert worst <= absolute, (name, worst)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_minicpm, train_main):
    """One process without a launcher, then one under it, then two, then one with what the two have saved."""
    made = Runs(tmp_path_factory.mktemp("scale"), tiny_minicpm)
    os.environ["FIREFLY_CACHE"] = str(made.cache)
    for mode in MODES:
        assert train_main(made.job(1, mode, "ddp")) == 0
    made.launch(1, [made.job(1, *run) for run in CUT_ANEW])
    made.launch(
        2,
        [made.job(2, *run) for run in TWO]
        + [made.job(2, *run, resume=made.name(2, *run)) for run in RESUMED]
        + [made.job(2, *run, resume=made.name(1, *run)) for run in CUT_ANEW],
    )
    made.launch(1, [made.job(1, *run, resume=made.name(2, *run)) for run in CUT_ANEW])
    return made


@pytest.mark.parametrize(("mode", "way"), TWO)
def test_two_processes_equal_one(runs, mode, way):
    """13 records in steps of 4: in the fourth step only one process has a record. 5 held-out records over 2."""
    runs.check_equal(runs.name(2, mode, way), runs.name(1, mode, "ddp"))


@pytest.mark.parametrize(("mode", "way"), RESUMED)
def test_resumed_run_equals_the_uncut_one_bit_for_bit(runs, mode, way):
    whole = runs.name(2, mode, way)
    runs.check_equal(runs.name(2, mode, way, resume=whole), whole, absolute=0.0)


@pytest.mark.parametrize(("mode", "way"), CUT_ANEW)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_checkpoint_goes_on_with_another_number_of_processes(runs, mode, way, before, after):
    resumed = runs.name(after, mode, way, resume=runs.name(before, mode, way))
    runs.check_equal(resumed, runs.name(1, mode, "ddp"))
    assert not (runs.folder / resumed / ".part").exists()  # the copy that was cut anew


@pytest.mark.parametrize("way", ["zero2", "zero3_offload", "fsdp"])
def test_the_saved_folder_is_a_whole_minicpm(runs, way, tiny_minicpm):
    folder = runs.folder / runs.name(2, "full", way)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["MiniCPMForCausalLM"]
    assert config["scale_depth"] == json.loads((tiny_minicpm / "config.json").read_text())["scale_depth"]
    assert load_tokenizer(folder).chat_template
    saved = runs.weights(runs.name(2, "full", way))
    assert all(tensor.numel() for tensor in saved.values())
    assert "lm_head.weight" not in saved  # tied: not written a second time
    assert load_causal_lm(folder).num_parameters() == load_causal_lm(tiny_minicpm).num_parameters()


def test_deepspeeds_launcher_runs_the_full_file_as_the_readme_says(runs, tmp_path, tiny_minicpm):
    """bf16, gradient checkpointing, ZeRO-3 with offload; what is saved is in 16 bits."""
    change = {
        "train_file": runs.values["train_file"],
        "model_name_or_path": tiny_minicpm,
        "output_dir": tmp_path / "out",
    }
    words = [word for key, value in change.items() for word in (f"--{key}", str(value))]
    args = "train_args/sft/full/minicpm4-0.5b-sft-full.json"
    port = ["--master_port", str(free_ports(1)[0])]
    run_command(["deepspeed", "--num_gpus=2", *port, "train.py", "--train_args_file", args, "--max_steps", "1", *words])
    results = json.loads((tmp_path / "out" / "train_results.json").read_text())
    assert results["global_step"] == 1
    assert {str(t.dtype) for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {"torch.bfloat16"}


AGREE = """
import os, sys
from types import SimpleNamespace
from accelerate import PartialState
from component.argument import CustomizedArguments
from component.machine import leave_processes
from component.resume import agree

rank = PartialState(cpu=True).process_index
os.chdir(sys.argv[1 + rank])
args = SimpleNamespace(output_dir="out", world_size=2, process_index=rank)
try:
    said = agree(CustomizedArguments("data", "model", resume_from_checkpoint_path="out"), args)
except Exception as error:
    said = error
os.write(1, f"rank {rank} said {said}\\n".encode())
leave_processes()
"""


def test_a_machine_without_the_checkpoint_is_named(runs, tmp_path):
    """Two machines with disks of their own; the second has all but its own part of the optimizer, then all."""
    (tmp_path / "agree.py").write_text(AGREE)
    name, first, second = f"checkpoint-{SAVED}", tmp_path / "one", tmp_path / "two"
    for machine in (first, second):
        shutil.copytree(runs.folder / "2-full-zero2" / name, machine / "out" / name)

    def agreed() -> list[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        output = run_command([*launcher, str(tmp_path / "agree.py"), str(first), str(second)])
        return sorted(line for line in output.splitlines() if line.startswith("rank "))

    (piece,) = second.glob("out/*/global_step*/*rank_1*optim*")
    piece.rename(tmp_path / piece.name)
    problem = f"out/{name}：{socket.gethostname()} 这台机器上没有 {piece.parent.name}/{piece.name}"
    for rank, line in enumerate(agreed()):
        assert line.startswith(f"rank {rank} said {problem}")
    (tmp_path / piece.name).rename(piece)
    assert agreed() == [f"rank {rank} said out/{name}" for rank in range(2)]
