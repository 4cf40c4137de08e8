"""Both READMEs: the same commands, each one accepted by the script it names, each file they point to really there.

The commands of docs/SCALE_OUT.md, docs/SCALE.md and docs/NEAR_DUP.md too.

That the commands do what they say is shown where they run: run_pipeline.sh runs the stages, the tests of each script
the rest.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_en.md")}

DOCUMENTS = "".join(
    (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("SCALE_OUT", "SCALE", "NEAR_DUP")
)


def commands(text: str) -> list[str]:
    """The lines of all bash blocks, continuations joined, comments cut."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s#.*", "", line).split()) for line in lines if line.strip()]


def script_calls() -> list[list[str]]:
    """Each call of a Python script of ours, once, as [path from the root, argument, ...]."""
    calls, folder = [], ""
    for command in commands(TEXTS["README.md"]) + commands(DOCUMENTS):
        if command == "cd Firefly":
            folder = "Firefly/"
            continue
        words = shlex.split(command)
        scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
        if scripts:
            call = [(folder if words[scripts[0]] == "train.py" else "") + words[scripts[0]], *words[scripts[0] + 1 :]]
            if call not in calls:
                calls.append(call)
    return calls


def test_both_say_the_same():
    assert commands(TEXTS["README.md"]) == commands(TEXTS["README_en.md"])
    for pattern in (r"^#{2,3} ", r"^\| "):
        counts = {len(re.findall(pattern, text, re.MULTILINE)) for text in TEXTS.values()}
        assert len(counts) == 1, pattern


@pytest.mark.parametrize("call", script_calls(), ids=" ".join)
def test_the_script_takes_the_command(call, monkeypatch):
    path = ROOT / call[0]
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("readme_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args, rest = module.build_parser().parse_known_args(call[1:])
    if call[0] == "Firefly/train.py":  # the rest are keys of the JSON
        from Firefly.component.config import read_train_args

        read_train_args(str(ROOT / "Firefly" / args.train_args_file), rest)
    else:
        assert rest == []


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_tracked_files_are_there(name):
    links = re.findall(r"\]\(([^)#]+)\)", TEXTS[name])
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
    for script in re.findall(r"\b(?:bash|python3?) ((?:scripts|Firefly|data)/[\w/]+\.(?:sh|py))", TEXTS[name]):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("name", TEXTS)
def test_what_troubleshooting_quotes_is_what_the_code_says(name):
    code = "".join(p.read_text(encoding="utf-8") for d in ("Firefly", "sft_data") for p in (ROOT / d).rglob("*.py"))
    for quoted in (
        "没有剩下的步数可续",
        "目录里已有文件",
        "是不是想写",
        "训练与推理的提示从第",
        "截断后没有",
        "没有权重文件 model.safetensors",
        "磁盘空间不足",
    ):
        assert quoted in TEXTS[name]
        assert quoted in code, quoted
