"""How much memory a training step takes, worked out without a GPU, without weights and in seconds.

The very model, adapter, batch and loss of a run go through one forward and backward pass as fake tensors (PyTorch's
FakeTensorMode), which have shapes, types and lifetimes but no numbers. What PyTorch would allocate is counted storage
by storage as it comes and goes, so the peak is that of the real graph, recomputed activations and chunks of logits
included. What a kernel takes inside itself, the CUDA context and fragmentation are not in it.
"""

import contextlib
import copy
import dataclasses
import functools
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM, GraniteForCausalLM, Trainer

from .attention import _flash, use_flat_rows, varlen_attention
from .cards import Memory
from .checkpoint import MiniCPMConfig, load_config
from .collator import flatten_batch, pad_batch
from .errors import UserError
from .loss import install_target_loss
from .model import load_for_training
from .resolve import read_json, resolve_model
from .utils import logger


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that are still alive: ``now``, and the ``peak``.

    A fake tensor has no numbers: who asks for one (LongRoPE, for the longest position) is told 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return False if args[0].dtype == torch.bool else 0
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: torch.Tensor) -> int:
        """Count a tensor's storage, once; returns its bytes, or 0 when it was counted before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return 0
        self._seen.add(key)
        weakref.finalize(storage, self._drop, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)
        return size

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def simulate(custom: Any, args: Any, tokenizer: Any, items: list[Any]) -> tuple[Memory, torch.nn.Module]:
    """Return the peak of a step on the micro-batch ``items`` (rows of a dataset, or lists of them), and the fake model.

    custom: CustomizedArguments; args: TrainingArguments, of which precision, checkpointing, accumulation and optimizer
    count. Nothing is sharded: for ZeRO see cards.py.

    Raises:
        UserError: it can't be worked out: the model decides by its numbers what to compute (mixtures of experts), or
            DoRA on NF4.
    """
    custom, args = _without_weights(custom), copy.copy(args)
    offload = custom.gradient_checkpointing_offload or bool((args.gradient_checkpointing_kwargs or {}).get("offload"))
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with torch.device("meta"):
            model = load_for_training(custom, args, tokenizer, load=skeleton).train()
        install_target_loss(model)
        flat = use_flat_rows(model, custom.attn_implementation, custom.padding_free)
        rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
        if not flat:  # pieces of documents then stand in a row each
            rows = sorted(rows, key=lambda row: -len(row["input_ids"]))[: len(items)]
        batch = flatten_batch(rows) if flat else pad_batch(rows, tokenizer.pad_token_id)
        _checkpoint_layers(model, args, offload)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, _as_on_a_gpu():
            _off_meta(model)
            batch = {k: fake.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            return peak_of_step(model, batch, args), model
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{custom.model_name_or_path}：这样的模型和设置，显存不能只凭结构推算（{reason}）；请在要用的显卡上直接运行 --estimate 实测。"
        ) from error
    finally:
        logger.setLevel(level)


def peak_of_step(model: torch.nn.Module, batch: dict[str, Any], args: Any) -> Memory:
    """Run one micro-batch forward and backward, real or fake, and count."""
    live = LiveBytes()
    weights = sum(live.add(t) for t in stored_tensors(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients, elements = sum(p.nbytes for p in trained), sum(p.numel() for p in trained)
    if args.gradient_accumulation_steps > 1:  # from the second micro-batch on they are there from the start
        for p in trained:
            p.grad = torch.empty_like(p)
            live.add(p.grad)
    with live:
        with torch.autocast("cpu", torch.bfloat16, enabled=(args.bf16 or args.fp16) and not args.deepspeed):
            loss = model(**batch, num_items_in_batch=1).loss
        loss.backward()
    in_step = elements * 4 if args.optim == "adamw_torch" else 0  # its foreach form holds sqrt(v) of all at once
    activations = max(live.peak - weights - gradients, in_step, 0)
    return Memory(weights, gradients, round(elements * optimizer_bytes(args)), activations, elements)


def stored_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """What a model holds all the time: parameters, buffers, and the scales of weights in NF4."""
    states = [vars(p)["quant_state"] for p in model.parameters() if "quant_state" in vars(p)]
    scales = [tensor for state in states for s in (state, state.state2) for tensor in (s.absmax, s.code)]
    return [*model.parameters(), *model.buffers(), *scales]


def optimizer_bytes(args: Any) -> float:
    """Bytes of state that the optimizer keeps for a trained weight, found by one real step on a small matrix."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with unset_fake_temporarily(), warnings.catch_warnings(action="ignore"):  # paged ones are not, on a CPU
        weight = torch.nn.Parameter(torch.zeros(512, 512, device=device))
        weight.grad = torch.zeros_like(weight)
        try:
            cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = cls([weight], **kwargs)
            optimizer.step()
        except (ImportError, TypeError, ValueError) as error:
            name = getattr(args.optim, "value", args.optim)
            raise UserError(f"optim={name}：不能推算它占的内存（{error}），请换一个优化器，或实跑几步。") from None
        return state_bytes(optimizer) / weight.numel()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state; tables that all weights share, as 8-bit optimizers have, count once."""
    tensors = (t for state in optimizer.state.values() for t in tree_leaves(state) if isinstance(t, torch.Tensor))
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def skeleton(
    name_or_path: str,
    dtype: torch.dtype,
    quantization_config: Any = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> torch.nn.Module:
    """checkpoint.load_causal_lm without the weights: the model that config.json describes, its Linears in NF4 if asked."""
    config = load_config(resolve_model(name_or_path), trust_remote_code=trust_remote_code)
    if isinstance(config, MiniCPMConfig):
        model = GraniteForCausalLM._from_config(config, dtype=dtype, **kwargs)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code, **kwargs)
    if quantization_config is not None:
        head = model.get_output_embeddings()
        for module in model.modules():
            if type(module) is torch.nn.Linear and module is not head:
                _pack(module, dtype)
    return model


def _pack(linear: torch.nn.Linear, dtype: torch.dtype, block: int = 64, second_block: int = 256) -> None:
    """Make a Linear what bitsandbytes makes of it: NF4 with double quantisation, in place."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    size, shape = linear.weight.numel(), linear.weight.shape
    blocks = -(-size // block)
    second = QuantState(
        torch.empty(-(-blocks // second_block)), code=torch.empty(256), blocksize=second_block, dtype=torch.float32
    )
    state = QuantState(
        torch.empty(blocks, dtype=torch.uint8), shape=shape, code=torch.empty(16), blocksize=block, quant_type="nf4",
        dtype=dtype, offset=torch.empty(()), state2=second,
    )  # fmt: skip
    weight = torch.nn.Parameter(torch.empty(-(-size // 2), 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state, weight.quant_type, weight.compress_statistics, weight.bnb_quantized = state, "nf4", True, True
    linear.__class__, linear.weight, linear.quant_state = Linear4bit, weight, state
    linear.compute_dtype, linear.compute_type_is_set, linear.quant_storage = dtype, True, torch.uint8
    linear.support_avx512bf16_for_cpu = False


def _off_meta(model: torch.nn.Module) -> None:
    """Replace meta tensors, which autocast does not know, by (fake) ones of the CPU, shared ones by shared ones."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    if isinstance(old, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                        vars(new).update(vars(old))  # quant_state
                    made[id(old)] = new
                tensors[name] = made[id(old)]
        if hasattr(module, "quant_state"):
            for state in (module.quant_state, module.quant_state.state2):
                state.absmax, state.code = torch.empty_like(state.absmax, device="cpu"), torch.empty(state.code.shape)
            module.quant_state.offset = torch.empty(())


def _without_weights(custom: Any) -> Any:
    """The same run for what reads the numbers of weights: an adapter of stage 1 by its shape, PiSSA by its rank."""
    if custom.adapter_name_or_path:
        lora = read_json(Path(custom.adapter_name_or_path) / "adapter_config.json")
        custom = dataclasses.replace(
            custom, adapter_name_or_path=None, lora_rank=lora["r"], lora_target_modules=lora["target_modules"],
            use_dora=bool(lora.get("use_dora")),
        )  # fmt: skip
    if custom.pissa_init:
        custom = dataclasses.replace(custom, pissa_init=False, lora_rank=2 * custom.lora_rank)
    return custom


def _checkpoint_layers(model: torch.nn.Module, args: Any, offload: bool) -> None:
    """As transformers.Trainer does; the random state needn't be kept, and what is offloaded is let go."""
    if not args.gradient_checkpointing:
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kwargs = {**(args.gradient_checkpointing_kwargs or {}), "preserve_rng_state": False}
    every = kwargs.pop("every_n_layers", 1)
    kwargs.pop("offload", None)  # a CPU's run was told to leave it
    base.gradient_checkpointing_enable(kwargs, every_n_layers=every)
    if offload:
        base._set_gradient_checkpointing(True, functools.partial(_offloaded, **kwargs), every_n_layers=every)


def _offloaded(*args: Any, **kwargs: Any) -> Any:
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.shape, t.dtype), lambda saved: torch.empty(saved[0], dtype=saved[1])
    ):
        return checkpoint(*args, **kwargs)


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Compute what saves memory otherwise on a CPU with a GPU's operators: attention over flat rows, and dropout.

    There flat rows go through FlashAttention's own (a CPU takes the records one by one, and asks for their lengths),
    and dropout keeps its mask in bytes.
    """

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        query, key, value = query.to(half), key.to(half), value.to(half)
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(input, p, True)[0] if training and 0 < p < 1 else input

    plain, F.dropout = F.dropout, dropout
    AttentionInterface.register("varlen", attention)
    try:
        yield
    finally:
        F.dropout = plain
        AttentionInterface.register("varlen", varlen_attention)
