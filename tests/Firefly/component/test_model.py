"""Loading for training: precision, gradient checkpointing in its variants, optimizers, and NF4 on a CPU."""

import pytest
import torch

from Firefly.component.argument import CustomizedArguments
from Firefly.component.model import load_reference
from Firefly.component.unsloth import why_not_unsloth

IDS = torch.tensor([[1, 300, 41, 270, 19, 333, 84, 12] * 8])


def gradients(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model) -> int:
    """Of what the forward pass keeps for the backward pass, outside of layers that are computed again."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=IDS, labels=IDS, use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_gradient_checkpointing_variants_give_equal_gradients_and_keep_less(load_model, mode):
    variants = {
        "none": {},
        "every second layer": {"gradient_checkpointing_kwargs": {"use_reentrant": False, "every_n_layers": 2}},
        "every layer": {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    }
    found, kept = {}, {}
    for name, change in variants.items():
        model, _, args = load_model(train_mode=mode, gradient_checkpointing=bool(change), **change)
        if change:
            options = dict(args.gradient_checkpointing_kwargs)
            every = options.pop("every_n_layers", 1)
            model.gradient_checkpointing_enable(options, every_n_layers=every)
        found[name], kept[name] = gradients(model), kept_bytes(model)
    assert kept["none"] > kept["every second layer"] > kept["every layer"]
    for name in list(variants)[1:]:
        assert found[name].keys() == found["none"].keys()
        for key, gradient in found["none"].items():
            torch.testing.assert_close(found[name][key], gradient, atol=1e-7, rtol=1e-5, msg=f"{name} {key}")


def test_without_unsloth_training_goes_on_and_says_so(train_main, write_args, capsys):
    assert train_main(["--train_args_file", write_args(use_unsloth=True, max_steps=1)]) == 0
    assert "use_unsloth=true：没有安装 unsloth" in capsys.readouterr().err


def test_what_unsloth_does_not_cover_is_named(tiny_minicpm, monkeypatch):
    """As on a machine that has unsloth and a GPU: MiniCPM is loaded as Granite, which unsloth does not rewrite."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    values = {"train_file": "x", "model_name_or_path": str(tiny_minicpm), "train_mode": "lora"}
    assert "granite" in why_not_unsloth(CustomizedArguments(**values))
    assert "full" in why_not_unsloth(CustomizedArguments(**values | {"train_mode": "full"}))
    assert "use_dora" in why_not_unsloth(CustomizedArguments(**values | {"use_dora": True}))


def test_offload_without_a_gpu_is_said_to_be_pointless(train_main, write_args, capsys):
    args = write_args(gradient_checkpointing=True, gradient_checkpointing_offload=True, max_steps=1)
    assert train_main(["--train_args_file", args]) == 0
    assert "gradient_checkpointing_offload" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="activations of a CPU model are in CPU memory already")
def test_offload_gives_equal_gradients_in_less_memory(load_model):
    found, peaks = [], []
    for offload in (False, True):
        model, _, args = load_model(use_cpu=False, gradient_checkpointing=True, gradient_checkpointing_offload=offload)
        options = dict(args.gradient_checkpointing_kwargs)
        away = options.pop("offload", False)
        model.cuda().gradient_checkpointing_enable(options, offload=away)
        ids = IDS.repeat(64, 1).cuda()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        hidden = model.get_base_model().base_model(input_ids=ids, use_cache=False).last_hidden_state
        peaks.append(torch.cuda.memory_allocated() - start)
        hidden.square().mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert away
    assert peaks[1] < peaks[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_gradients_after_an_evaluation_are_those_before_it(load_model):
    """bitsandbytes repacks NF4 on some CPUs when it evaluates, and gradients would then no longer pass the base."""
    model, _, _ = load_model(train_mode="qlora", gradient_checkpointing=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = gradients(model)
    with torch.no_grad():
        model.eval()(IDS)
    after = gradients(model.train())
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())


def test_the_reference_is_the_start_frozen(load_model, tiny_minicpm, tmp_path):
    from Firefly.component.argument import build_arguments

    model, tokenizer, _ = load_model(train_mode="full", add_tokens=["<|新|>"])
    values = {"train_file": "x", "model_name_or_path": str(tiny_minicpm), "output_dir": str(tmp_path), "use_cpu": True}
    custom, args = build_arguments(values | {"train_mode": "full", "add_tokens": ["<|新|>"]}, "args.json")
    reference = load_reference(custom, args, tokenizer)
    assert not any(p.requires_grad for p in reference.parameters())
    assert not reference.training
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor", "lion_8bit"])
def test_small_optimizers_learn_on_a_cpu(train_main, write_args, tmp_path, optim, capsys):
    code = train_main(["--train_args_file", write_args(optim=optim, max_steps=3, learning_rate=1e-2)])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("optim", "words"),
    [("adamw_16bit", ["adamw_16bit"]), ("adamw_apex_fused", ["adamw_apex_fused"]), ("galore_adamw", ["galore_adamw"])],
)
def test_an_optimizer_that_is_not_there_is_one_sentence(train_main, write_args, optim, words, capsys):
    assert train_main(["--train_args_file", write_args(optim=optim)]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert "Traceback" not in err
