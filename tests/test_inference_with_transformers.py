"""inference_with_transformers.py on a real tiny MiniCPM, and what all inference scripts have in common."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import inference_with_transformers as script
from Firefly.component.inference import Request

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ["你是谁？", "请介绍一下哈尔滨工业大学的校训，以及它的来历。", "威海", "怎样写好一篇作文？先想什么？"] * 2


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "x.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": q, "id": i}, ensure_ascii=False) + "\n" for i, q in enumerate(QUESTIONS))
    )
    return path


@pytest.fixture(scope="module")
def adapter(tiny_minicpm, tmp_path_factory) -> Path:
    """A LoRA adapter that changes answers, saved the way peft does, with no tokenizer of its own."""
    import torch
    from peft import LoraConfig, get_peft_model

    from Firefly.component.checkpoint import load_causal_lm

    model = get_peft_model(
        load_causal_lm(tiny_minicpm), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("adapter") / "style"
    model.save_pretrained(folder)
    return folder


def ask(model: Path, questions: Path, out: Path, *flags: str) -> bytes:
    argv = ["--model", str(model), "--input", str(questions), "--output", str(out), "--max-new-tokens", "12", *flags]
    assert script.main(argv) == 0
    return out.read_bytes()


def load(*argv: str):
    return script.load_engine(script.build_parser().parse_args([*argv, "--max-new-tokens", "12"]))


def test_batches_answer_like_one_at_a_time(tiny_minicpm, questions, tmp_path):
    one = ask(tiny_minicpm, questions, tmp_path / "one", "--temperature", "0", "--batch-size", "1")
    many = ask(tiny_minicpm, questions, tmp_path / "many", "--temperature", "0", "--batch-size", "5")
    assert one == many
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["id"] for row in rows] == list(range(8))
    assert all(row["completion_tokens"] <= 12 and row["prompt_tokens"] > 10 for row in rows)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}


def test_sampling_depends_on_seed_and_row_not_on_the_batch(tiny_minicpm, questions, tmp_path):
    one = ask(tiny_minicpm, questions, tmp_path / "one", "--temperature", "1", "--batch-size", "1")
    many = ask(tiny_minicpm, questions, tmp_path / "many", "--temperature", "1", "--batch-size", "3")
    other = ask(tiny_minicpm, questions, tmp_path / "other", "--temperature", "1", "--seed", "7")
    assert one == many != other
    rows = [json.loads(line)["response"] for line in one.splitlines()]
    assert rows[0] != rows[4], "the same question on another row draws other noise"


def test_row_noise_draws_from_the_softmax():
    import torch

    from Firefly.component.generate import RowNoise

    logits = torch.tensor([[0.0, math.log(3.0), -math.inf]]).repeat(4000, 1)
    drawn = Counter(RowNoise(list(range(4000)), logits.device)(None, logits).argmax(-1).tolist())
    assert drawn[2] == 0
    assert drawn[1] / 4000 == pytest.approx(0.75, abs=0.03)  # 4.4 standard deviations


def test_streaming_and_batches_give_the_same_text(tiny_minicpm, capsys):
    engine = load("--model", str(tiny_minicpm), "--temperature", "0")
    request = Request(0, [{"role": "user", "content": QUESTIONS[1]}])
    pieces: list[str] = []
    streamed = engine.stream(request, pieces.append)
    ((_, batched),) = engine.generate([request])
    assert streamed == batched
    assert len(pieces) > 3


def test_streamed_pieces_make_up_the_text_and_cut_no_character(tiny_minicpm):
    """Characters outside the vocabulary are several byte tokens: their piece waits for the last one."""
    from Firefly.component.session import TextStream, open_session

    session = open_session(script.build_parser().parse_args(["--model", str(tiny_minicpm)]))
    text = " 你是谁？𠮷 🙂 the quick 龘"
    ids = session.tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(session)
    pieces = [stream.add(token) for token in [*ids, session.stop_ids[0]]]
    assert "".join(pieces) == session.complete([], ids).text == text
    assert "𠮷" in pieces
    assert "🙂" in pieces
    assert pieces.count("") > 4


def test_prompt_ids_are_those_of_encode_prompt(tiny_minicpm):
    """A published MiniCPM base has no BOS in its template: it is asked like the fine-tuned models, with minicpm4."""
    from Firefly.component.checkpoint import load_tokenizer
    from Firefly.component.prompt import encode_prompt
    from Firefly.component.session import open_session
    from Firefly.component.template import use_template

    messages = [{"role": "user", "content": "你好"}]
    session = open_session(script.build_parser().parse_args(["--model", str(tiny_minicpm)]))
    tokenizer = load_tokenizer(tiny_minicpm)
    assert encode_prompt(tokenizer, messages)[0] != tokenizer.bos_token_id
    use_template(tokenizer, "minicpm4")
    assert session.encode(Request(0, messages)) == encode_prompt(tokenizer, messages)
    assert session.encode(Request(0, messages))[0] == tokenizer.bos_token_id
    assert set(session.stop_ids) == {2, tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_an_adapter_answers_like_its_merged_model(tiny_minicpm, adapter, questions, tmp_path):
    from peft import PeftModel

    from Firefly.component.checkpoint import load_causal_lm, load_tokenizer, save_checkpoint

    merged = PeftModel.from_pretrained(load_causal_lm(tiny_minicpm), adapter).merge_and_unload()
    save_checkpoint(merged, tmp_path / "merged", load_tokenizer(tiny_minicpm))
    out = tmp_path / "adapter.jsonl"
    argv = ["--adapter", str(adapter), "--input", str(questions), "--output", str(out), "--max-new-tokens", "12"]
    assert script.main([*argv, "--temperature", "0"]) == 0  # the base comes from adapter_config.json
    assert out.read_bytes() == ask(tmp_path / "merged", questions, tmp_path / "merged.jsonl", "--temperature", "0")
    assert out.read_bytes() != ask(tiny_minicpm, questions, tmp_path / "base.jsonl", "--temperature", "0")
    assert ask(adapter, questions, tmp_path / "as-model.jsonl", "--temperature", "0") == out.read_bytes()


def test_four_bit_loads_on_this_machine(questions, tmp_path):
    """bitsandbytes' CPU kernel wants widths that are multiples of its block of 64, as every published model's are."""
    pytest.importorskip("bitsandbytes")
    from scripts.make_tiny_model import build_tiny_model

    model = build_tiny_model(tmp_path / "wide", QUESTIONS * 9, vocab_size=400, hidden_size=192, num_layers=1)
    out = ask(model, questions, tmp_path / "four", "--temperature", "0", "--load-in-4bit")
    assert len(out.splitlines()) == len(QUESTIONS)


def test_interactive_works_when_piped(tiny_minicpm, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/clear\n你好\n/exit\n"))
    assert (
        script.main(["--model", str(tiny_minicpm), "--interactive", "--max-new-tokens", "5", "--temperature", "0"]) == 0
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_too_long_a_question_is_named_before_anything_is_asked(tiny_minicpm, tmp_path, capsys):
    folder = tmp_path / "short"
    shutil.copytree(tiny_minicpm, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 64
    config.pop("rope_scaling")
    (folder / "config.json").write_text(json.dumps(config))
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "短"}\n' + json.dumps({"prompt": "长" * 200}) + "\n")
    assert (
        script.main(["--model", str(folder), "--input", str(path), "--output", str(tmp_path / "y"), "--no-truncate"])
        == 2
    )
    assert f"{path}:2：提示有 " in capsys.readouterr().err
    assert (tmp_path / "y").read_bytes() == b""


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--prompt", "a"], "没有给出模型"),
        (["--model", "no/such/folder", "--prompt", "a"], "模型文件夹不存在"),
        (["--model", "EMPTY", "--prompt", "a"], "没有 config.json"),
        (["--model", "NOWEIGHTS", "--prompt", "a"], "没有权重文件"),
        (["--model", "TINY", "--prompt", "a", "--template-name", "minicpm5x"], "minicpm5"),
        (["--model", "TINY", "--prompt", "a", "--device", "tpu"], "--device tpu"),
        (["--model", "TINY", "--prompt", "a", "--adapter", "EMPTY"], "没有 adapter_config.json"),
        (["--model", "TINY", "--input", "no.jsonl"], "找不到输入文件"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tiny_minicpm, tmp_path, capsys, argv, says):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "NOWEIGHTS").mkdir()
    shutil.copy(tiny_minicpm / "config.json", tmp_path / "NOWEIGHTS")
    names = {"EMPTY": str(tmp_path / "EMPTY"), "NOWEIGHTS": str(tmp_path / "NOWEIGHTS"), "TINY": str(tiny_minicpm)}
    assert script.main([names.get(word, word) for word in argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("错误：") == 1
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "name",
    ["quick_infer_local.py", "inference_with_transformers.py", "inference_with_vLLM.py", "inference_with_SGLang.py"],
)
def test_help_is_instant_from_any_folder(name, tmp_path):
    start = time.monotonic()
    done = subprocess.run([sys.executable, ROOT / name, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--prompt" in done.stdout
    assert time.monotonic() - start < 2  # 0.1 s when nothing else runs
