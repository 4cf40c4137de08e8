"""Merge a LoRA or QLoRA adapter into its base and check that the merged model answers as base + adapter did.

    python Firefly/script/merge_lora.py --adapter Firefly/output/minicpm4-0.5b-sft-lora --out models/minicpm4-0.5b-sft

The base is read from the adapter's own config unless --base says otherwise. OUT appears only when it is whole and
has passed the check: it is written as OUT.part, loaded again from disk, compared, and then renamed.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from component.errors import UserError, exit_cleanly

FIREFLY = Path(__file__).resolve().parents[1]
PROMPTS = ["你好，请介绍一下你自己。", "用三句话说明为什么要保护水资源。", "把“学而时习之，不亦说乎”译成现代汉语。"]
ANSWER_TOKENS = 32
DTYPES = ["float32", "float16", "bfloat16"]
# The logits may differ by this share of the largest one, plus this many times what 16-bit rounding alone does to
# base + adapter (nothing in float32). Measured on random models with adapters up to their base's size:
# a right merge is 0.4 to 1.2 roundings away in float16 and bfloat16, and 1e-4 of the largest logit in float32.
SHARE, ROUNDINGS = 1e-3, 3.0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="把 LoRA / QLoRA 适配器合并进底座模型，并核对合并前后的输出。")
    parser.add_argument("--adapter", required=True, help="适配器目录（train.py 的 output_dir 或其中的 checkpoint-N）")
    parser.add_argument("--base", help="底座模型目录或名称，默认取 adapter_config.json 里的 base_model_name_or_path")
    parser.add_argument("--out", required=True, help="合并后的模型目录")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="权重精度，默认 auto：与底座相同")
    parser.add_argument("--device", default="auto", help="auto、cpu 或 cuda，默认 auto")
    parser.add_argument("--overwrite", action="store_true", help="OUT 已存在时替换它")
    parser.add_argument("--no-check", action="store_true", help="不核对合并结果（省一次载入）")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    adapter, out = Path(args.adapter), Path(args.out)
    adapter_config = read_adapter_config(adapter)
    base_name = args.base or find_base(adapter, adapter_config)
    check_out(out, adapter, base_name, args.overwrite)

    import torch
    from component.checkpoint import load_causal_lm, load_tokenizer, save_checkpoint
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(adapter if (adapter / "tokenizer_config.json").exists() else base_name)
    model = load_base_with_adapter(base_name, adapter, adapter_config, args.dtype, device)
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"底座 {base_name}（{dtype}，{device}）+ 适配器 {adapter}", file=sys.stderr)
    if is_qlora(adapter):
        print(
            "QLoRA 适配器：训练时底座是 4 比特，这里合并进同一底座的 16/32 位权重，输出会有细微差别。", file=sys.stderr
        )
    if not args.no_check:
        sequences = greedy_answers(model, tokenizer)
        before = answer_logits(model, sequences)
        exact = answer_logits(model.float(), sequences)

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    merged = merge(model.float(), adapter).to(getattr(torch, dtype))  # summed in float32, rounded once
    save_checkpoint(merged, part, tokenizer)
    report = {"base": str(base_name), "adapter": str(adapter), "dtype": dtype}
    if not args.no_check:
        del model, merged
        after = answer_logits(load_causal_lm(part, dtype="auto").to(device), sequences)
        report |= compare(before, exact, after, part)
    (part / "merge_info.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
    print(out)
    return 0


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of the folder; UserError says what the folder is instead, and what to do."""
    from component.resolve import read_json

    if not adapter.is_dir():
        raise UserError(f"{adapter}：适配器目录不存在，请检查 --adapter。")
    if not (adapter / "adapter_config.json").exists():
        if (adapter / "config.json").exists():
            raise UserError(f"{adapter}：这是完整模型（全参数训练的结果），不需要合并，直接用它推理或接着训练即可。")
        inside = sorted(path.parent.name for path in adapter.glob("*/adapter_config.json"))
        hint = f"，其中的适配器在 {'、'.join(inside)}，请给出其中一个" if inside else "，请检查 --adapter"
        raise UserError(f"{adapter}：没有 adapter_config.json{hint}。")
    if not any((adapter / name).exists() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise UserError(
            f"{adapter}：没有适配器权重 adapter_model.safetensors，训练可能没有保存完，请换一个 checkpoint。"
        )
    return read_json(adapter / "adapter_config.json")


def find_base(adapter: Path, adapter_config: dict[str, Any]) -> str:
    """The base that the adapter names. Training runs inside Firefly/, so a relative path may start there."""
    name = adapter_config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{adapter}/adapter_config.json：没有 base_model_name_or_path，请用 --base 给出底座模型。")
    if not Path(name).is_dir() and (FIREFLY / name).is_dir():
        return str(FIREFLY / name)
    return name


def check_out(out: Path, adapter: Path, base_name: str, overwrite: bool) -> None:
    if out.resolve() in (adapter.resolve(), Path(base_name).resolve()):
        raise UserError(f"{out}：不能写回底座或适配器目录，请换一个 --out。")
    if out.exists() and not overwrite:
        raise UserError(f"{out}：输出目录已存在，加 --overwrite 可替换，或换一个 --out。")


def is_qlora(adapter: Path) -> bool:
    """True when the run's train_args.json, in the adapter's folder or the one above, says train_mode qlora."""
    for folder in (adapter, adapter.parent):
        try:
            return json.loads((folder / "train_args.json").read_text(encoding="utf-8")).get("train_mode") == "qlora"
        except (OSError, ValueError, AttributeError):
            continue
    return False


def load_base_with_adapter(base_name: str, adapter: Path, adapter_config: dict, dtype: str, device: str) -> Any:
    """Base in its own dtype (or ``dtype``) with the adapter attached, in evaluation mode on ``device``."""
    from component.checkpoint import load_causal_lm
    from component.vocabulary import fit_vocabulary
    from peft import PeftModel
    from transformers import GenerationConfig

    model = load_causal_lm(base_name, dtype=dtype)
    if getattr(model.config, "quantization_config", None):
        raise UserError(f"{base_name}：底座是量化过的权重，合并会丢精度；请用 --base 给出未量化的原始模型。")
    rows = adapter_vocab_rows(adapter)
    if rows and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    fit_vocabulary(model, adapter)
    if (adapter / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(adapter)
    if touches_tied_weights(model, adapter_config):
        untie(model)
    try:
        model = PeftModel.from_pretrained(model.to(device), adapter, torch_device=device)
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
    """True when input and output embedding are one tensor and the adapter was trained to change one of the two."""
    head = model.get_output_embeddings()
    if (
        head is None
        or head.weight is not model.get_input_embeddings().weight
        or adapter_config.get("ensure_weight_tying")
    ):
        return False
    named = [adapter_config.get(key) or [] for key in ("modules_to_save", "target_modules")]
    names = {name.split(".")[-1] for part in named for name in ([part] if isinstance(part, str) else part)}
    return bool(names & {"embed_tokens", "lm_head"}) or bool(adapter_config.get("trainable_token_indices"))


def untie(model: Any) -> None:
    """Give the output embedding its own copy, so that merging into one of the two leaves the other alone."""
    import torch

    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def merge(model: Any, adapter: Path) -> Any:
    """The base with the adapter's weights added in; embeddings that are still equal are tied again."""
    import torch

    was_tied = model.config.tie_word_embeddings
    try:
        model = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # safe_merge found NaN
        raise UserError(f"{adapter}：适配器权重里有 NaN（{error}），训练已发散，请换一个更早的 checkpoint。") from error
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if was_tied and not torch.equal(head.weight, embedding.weight):
        untie(model)
    return model


def greedy_answers(model: Any, tokenizer: Any) -> list[tuple[list[int], int]]:
    """For each sample prompt: ids of prompt + greedy answer, and the prompt's length."""
    import torch
    from transformers import GenerationConfig

    own = model.generation_config  # generate() fills gaps from it, so sampling and penalties must go for a moment
    model.generation_config = GenerationConfig(
        max_new_tokens=ANSWER_TOKENS, eos_token_id=own.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    sequences = []
    for text in PROMPTS:
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        inputs = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            out = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        sequences.append((out[0].tolist(), len(ids)))
    model.generation_config = model.get_base_model().generation_config = own
    return sequences


def answer_logits(model: Any, sequences: list[tuple[list[int], int]]) -> Any:
    """Logits (answer_tokens of all sequences, vocab_size), float32 on the CPU, that predict the answers' tokens."""
    import torch

    model.eval()
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1].float().cpu()
            for ids, start in sequences
        ]
    return torch.cat(rows)


def compare(before: Any, exact: Any, after: Any, part: Path) -> dict[str, float]:
    """Print and return how far the merged model is from base + adapter; UserError when it is another model.

    All logits (answer_tokens, vocab_size): ``before`` of base + adapter, ``exact`` the same in float32, ``after`` of
    the merged model read back from ``part``.
    """
    import torch

    if not (torch.isfinite(before).all() and torch.isfinite(exact).all()):
        raise UserError("核对失败：底座加适配器的输出里有 NaN 或 Inf，训练已发散，请换一个更早的 checkpoint。")
    if not torch.isfinite(after).all():
        raise UserError(
            f"核对失败：合并后的输出里有 NaN 或 Inf，请用 --dtype float32 或 bfloat16 重试；结果留在 {part}。"
        )
    difference, scale = (before - after).abs().max().item(), before.abs().max().item()
    equal = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
    bound = SHARE * scale + ROUNDINGS * (before - exact).abs().max().item()
    print(
        f"核对 {len(PROMPTS)} 个提示、{len(before)} 个词元：最大 logit 差 {difference:.3g}"
        f"（允许 {bound:.3g}，最大 logit {scale:.3g}），贪心词元相同 {equal:.1%}",
        file=sys.stderr,
    )
    if difference > bound:
        raise UserError(
            f"核对失败：最大 logit 差 {difference:.3g} 超过允许的 {bound:.3g}，请用 --dtype float32 重试；结果留在 {part}，没有改名。"
        )
    return {"max_logit_difference": difference, "largest_logit": scale, "equal_greedy_tokens": equal}


if __name__ == "__main__":
    sys.exit(main())
