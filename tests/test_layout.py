"""What keeps the project in one piece: imports point one way, twins stay twins, --help answers at once."""

import ast
import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft_data.errors import UserError, exit_cleanly

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    *sorted(p.name for p in ROOT.glob("*.py")),
    "data/download.py",
    "LLM_data_gen/make_topics.py",
    "scripts/make_tiny_model.py",
    "scripts/sample_teacher.py",
    "scripts/pipeline_summary.py",
    "Firefly/train.py",
    "Firefly/script/merge_lora.py",
    "Firefly/script/export.py",
    "Firefly/script/http/serve.py",
    "Firefly/script/http/post.py",
    "Firefly/script/chat/chat.py",
    "Firefly/script/evaluate/evaluate.py",
    "Firefly/script/evaluate/judge.py",
    "Firefly/script/evaluate/benchmarks.py",
]
OURS = {"sft_data", "LLM_data_gen", "Firefly", "component"}
# Who may import whom: scripts -> LLM_data_gen -> sft_data -> libraries; Firefly only its own component/.
ALLOWED = {"sft_data": {"sft_data"}, "LLM_data_gen": {"sft_data", "LLM_data_gen"}, "Firefly": {"component"}}


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names & OURS


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported_packages(path) <= ALLOWED[package], path


def test_the_two_error_files_are_one():
    assert (ROOT / "sft_data/errors.py").read_bytes() == (ROOT / "Firefly/component/errors.py").read_bytes()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_from_any_folder_without_heavy_imports(script, tmp_path):
    """Half a second is the promise; a busy test machine is given more, and torch must not be imported at all."""
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", str(ROOT / script), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 3
    heavy = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()} & {
        "torch",
        "transformers",
        "numpy",
        "aiohttp",
    }
    assert not heavy
    assert any("一" <= c <= "鿿" for c in result.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_opens_with_what_it_does_and_a_command(script):
    doc = ast.get_docstring(ast.parse((ROOT / script).read_text(encoding="utf-8")))
    assert doc
    assert f"{Path(script).name}" in doc


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a.json:3: 缺少 x。"), 2, "a.json:3"),
        (OSError(errno.ENOSPC, "No space left on device", "out.jsonl"), 2, "out.jsonl：磁盘空间不足"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "磁盘空间不足"),
        (FileNotFoundError(errno.ENOENT, "", "in.jsonl"), 2, "in.jsonl：找不到"),
        (KeyboardInterrupt(), 130, "已中断"),
    ],
)
def test_exit_codes_and_sentences(error, code, words, capsys):
    @exit_cleanly
    def main(argv=None):
        raise error

    assert main([]) == code
    assert words in capsys.readouterr().err


def test_our_own_bugs_keep_their_traceback():
    @exit_cleanly
    def main(argv=None):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        main([])
