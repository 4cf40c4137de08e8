"""Several LoRA adapters over one base in transformers, and prompts longer than the model takes."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from Firefly.component.generate import load_engine
from Firefly.component.inference import Engine, Request

QUESTIONS = ["你是谁？", "请介绍一下哈尔滨工业大学的校训，以及它的来历。", "威海", "怎样写好一篇作文？"]


@pytest.fixture(scope="module")
def adapters(tiny_minicpm, tmp_path_factory) -> dict[str, Path]:
    """Two adapters of different rank that change answers; one has a name that PEFT itself refuses."""
    import torch
    from peft import LoraConfig, get_peft_model

    from Firefly.component.checkpoint import load_causal_lm

    folders = {}
    for seed, name in enumerate(("style", "v1.5")):
        config = LoraConfig(r=4 + seed, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(tiny_minicpm), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter, weight in model.named_parameters():
            if "lora_" in parameter:
                weight.data.normal_(0, 0.2, generator=generator)
        folders[name] = tmp_path_factory.mktemp("adapter") / name
        model.save_pretrained(folders[name])
    return folders


def load(model: Path, adapters: list[Path] = (), **flags) -> Engine:
    args = Namespace(
        model=str(model),
        adapter=[str(path) for path in adapters],
        template_name="auto",
        device="cpu",
        dtype="float32",
        load_in_4bit=False,
        max_new_tokens=10,
        temperature=0.0,
        top_p=None,
        repetition_penalty=None,
        seed=42,
        batch_size=3,
    )
    vars(args).update(flags)
    return load_engine(args)


def requests(**fields) -> list[Request]:
    return [Request(i, [{"role": "user", "content": q}], fields) for i, q in enumerate(QUESTIONS)]


def answers(engine: Engine, asked: list[Request]) -> list[str]:
    engine.check(asked)
    found = {request.index: completion.text for request, completion in engine.generate(asked)}
    return [found[request.index] for request in asked]


def test_rows_choose_among_adapters_and_the_base(tiny_minicpm, adapters):
    alone = {name: answers(load(tiny_minicpm, [path]), requests()) for name, path in adapters.items()}
    alone["base"] = answers(load(tiny_minicpm), requests())
    assert len(set(map(tuple, alone.values()))) == 3
    engine = load(tiny_minicpm, adapters.values(), use_adapter="style")
    names = ["v1.5", "base", "v1.5", None]  # None: no field, so --use-adapter
    mixed = [
        Request(i, [{"role": "user", "content": QUESTIONS[i]}], {"adapter": name} if name else {})
        for i, name in enumerate(names)
    ]
    assert answers(engine, mixed) == [alone[name or "style"][i] for i, name in enumerate(names)]
    pieces: list[str] = []
    assert engine.stream(mixed[0], pieces.append).text == alone["v1.5"][0]
    assert engine.stream(mixed[1], pieces.append).text == alone["base"][1]
    assert engine.fingerprint["use_adapter"] == "style"


def test_a_long_question_is_answered_from_its_end(tiny_minicpm, tmp_path, capsys):
    folder = tmp_path / "short"
    shutil.copytree(tiny_minicpm, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 64
    config.pop("rope_scaling")
    (folder / "config.json").write_text(json.dumps(config))
    system = {"role": "system", "content": "系统"}
    request = Request(0, [system, {"role": "user", "content": "头" * 100_000 + "你是谁？"}], {}, "x.jsonl:1")
    engine = load(folder)
    engine.check([request])
    assert "1 行的提示超过 54 个 token" in capsys.readouterr().err
    ((same, completion),) = engine.generate([request])
    assert same.index == 0
    assert 50 <= completion.prompt_tokens <= 54
    assert completion.completion_tokens <= 10


def test_a_long_prompt_is_read_in_pieces_and_streams_the_same(tiny_minicpm, adapters, monkeypatch):
    """Between two pieces Ctrl-C and a stopped chat get their turn; in one pass nobody would for minutes."""
    from Firefly.component import generate

    request = Request(0, [{"role": "user", "content": QUESTIONS[1] * 9}], {"adapter": "style"})
    engine = load(tiny_minicpm, adapters.values())
    ((_, batched),) = engine.generate([request])
    monkeypatch.setattr(generate, "PREFILL", 50)
    read, read_ahead = [], generate.read_ahead
    monkeypatch.setattr(generate, "read_ahead", lambda *a: read.append(read_ahead(*a)) or read[-1])
    assert engine.stream(request, lambda piece: None) == batched
    assert batched.prompt_tokens > 200
    (cache,) = read
    assert cache.get_seq_length() == batched.prompt_tokens + batched.completion_tokens - 1


@pytest.mark.parametrize(("base", "said"), [("tiny-minicpm", False), ("stage1-merged", True)])
def test_an_adapter_of_another_base_is_said(tiny_minicpm, adapters, tmp_path, capsys, base, said):
    """A second stage's adapter sits on the merged first stage; on the base itself its answers mean nothing."""
    folder = tmp_path / "stage2"
    shutil.copytree(adapters["style"], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"somewhere/else/{base}"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    load(tiny_minicpm, [folder])
    assert ("是在 somewhere/else/stage1-merged 上训练的" in capsys.readouterr().err) is said


def test_one_long_row_is_not_padded_for_by_many_short_ones(tiny_minicpm, monkeypatch):
    """A row of 30,000 tokens beside 31 of 50 would need the memory of 32 long ones."""
    from Firefly.component import generate

    engine = load(tiny_minicpm, batch_size=4)
    asked = [Request(0, [{"role": "user", "content": QUESTIONS[1] * 20}]), *requests()[1:], *requests()]
    asked = [Request(i, request.messages) for i, request in enumerate(asked)]
    before = answers(engine, asked)
    sizes, generate_batch = [], generate.generate_batch
    monkeypatch.setattr(generate, "BATCH_TOKENS", 400)
    monkeypatch.setattr(generate, "generate_batch", lambda *a: sizes.append(len(a[2])) or generate_batch(*a))
    assert answers(engine, asked) == before
    assert sizes == [1, 4, 3], "the long one alone, the others as many at a time as --batch-size says"


@pytest.mark.parametrize(
    "flags", [{}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.3}], ids=["greedy", "drawn"]
)
def test_rows_leave_a_batch_as_they_end_and_the_others_do_not_notice(tiny_minicpm, tmp_path, flags):
    """Against transformers' own ``generate``, one by one, which is what streaming uses; a tenth of all tokens ends an answer."""
    shutil.copytree(tiny_minicpm, tmp_path / "model")
    vocabulary = json.loads((tmp_path / "model/config.json").read_text())["vocab_size"]
    config = {"eos_token_id": [2, *range(5, vocabulary, 10)], "pad_token_id": 2}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(config))
    engine = load(tmp_path / "model", batch_size=8, max_new_tokens=30, **flags)
    asked = [Request(i, [{"role": "user", "content": q * (i + 1)}], {}) for i, q in enumerate(QUESTIONS * 2)]
    together = {request.index: completion for request, completion in engine.generate(asked)}
    for request in asked:
        assert together[request.index] == engine.stream(request, lambda piece: None)
    assert len({completion.completion_tokens for completion in together.values()}) > 3
