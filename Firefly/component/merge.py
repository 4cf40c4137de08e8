"""Put an adapter on the base it was trained for, and merge it in: one layer at a time, summed in float32, rounded once."""

import warnings
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_causal_lm
from .errors import UserError
from .vocabulary import fit_vocabulary


def load_base(base_name: str, dtype: str) -> Any:
    """The base in its own dtype (``auto``) or in ``dtype``; UserError when its weights are quantised."""
    model = load_causal_lm(base_name, dtype=dtype)
    if getattr(model.config, "quantization_config", None):
        raise UserError(f"{base_name}：底座是量化过的权重，合并会丢精度；请用 --base 给出未量化的原始模型。")
    return model


def attach(model: Any, adapter: Path, adapter_config: dict[str, Any], device: str) -> Any:
    """``model`` on ``device`` with the adapter on top, ready for evaluation; UserError when the two do not fit."""
    from peft import PeftModel
    from transformers import GenerationConfig

    rows = adapter_vocab_rows(adapter)
    if rows and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    fit_vocabulary(model, adapter)
    if (adapter / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(adapter)
    if touches_tied_weights(model, adapter_config):
        untie(model)
    base_name = model.name_or_path
    model = model if getattr(model, "quantization_method", None) else model.to(device)
    try:
        model = PeftModel.from_pretrained(model, adapter, torch_device=device)
    except (RuntimeError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{adapter}：适配器装不进底座 {base_name}（{text}），请用 --base 给出训练它时的底座。"
        ) from error
    if not hasattr(model.base_model, "merge_and_unload"):
        raise UserError(
            f"{adapter}：{adapter_config.get('peft_type')} 类型的适配器无法合并，请在推理时用 --adapter 直接加载。"
        )
    return model.eval()


def adapter_vocab_rows(adapter: Path) -> int | None:
    """Rows of the embedding that the adapter carries whole (its run resized the vocabulary), or None."""
    path = adapter / "adapter_model.safetensors"
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    ends = ("embed_tokens.weight", "embed_tokens.base_layer.weight", "lm_head.weight")
    try:
        with safe_open(path, "pt") as file:
            whole = [name for name in list(file.keys()) if name.endswith(ends)]
            return file.get_slice(whole[0]).get_shape()[0] if whole else None
    except SafetensorError as error:
        raise UserError(f"{path}：适配器权重损坏或不完整（{error}），请换一个 checkpoint。") from None


def touches_tied_weights(model: Any, adapter_config: dict[str, Any]) -> bool:
    """True when input and output embedding are one tensor and the adapter was trained to change only one of the two.

    Rows of new tokens (trainable_token_indices) are shared by both unless they name the output embedding apart.
    """
    head = model.get_output_embeddings()
    if (
        head is None
        or head.weight is not model.get_input_embeddings().weight
        or adapter_config.get("ensure_weight_tying")
    ):
        return False
    named = [adapter_config.get(key) or [] for key in ("modules_to_save", "target_modules")]
    names = {name.split(".")[-1] for part in named for name in ([part] if isinstance(part, str) else part)}
    rows = adapter_config.get("trainable_token_indices")
    apart = isinstance(rows, dict) and len({tuple(ids) for ids in rows.values()}) > 1
    only_head = isinstance(rows, dict) and {name.split(".")[-1] for name in rows} == {"lm_head"}
    return bool(names & {"embed_tokens", "lm_head"}) or apart or only_head


def untie(model: Any) -> None:
    """Give the output embedding its own copy, so that merging into one of the two leaves the other alone."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def merge(model: Any, adapter: Path, dtype: torch.dtype) -> Any:
    """The base with the adapter's weights added in, in ``dtype``; embeddings that are still equal are tied again.

    Only one layer at a time is float32, so a model of 16 bits stays at two bytes a parameter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    was_tied = model.config.tie_word_embeddings
    try:
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.float()
                layer.merge(safe_merge=True)
                layer.to(dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already merged")
            model = model.merge_and_unload(safe_merge=True).to(dtype)
    except ValueError as error:  # safe_merge found NaN
        raise UserError(f"{adapter}：适配器权重里有 NaN（{error}），训练已发散，请换一个更早的 checkpoint。") from error
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if was_tied and not torch.equal(head.weight, embedding.weight):
        untie(model)
    return model
