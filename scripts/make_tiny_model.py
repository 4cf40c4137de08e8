"""Build a tiny MiniCPM on the spot: own tokenizer, MiniCPM's config.json in the published form, seeded weights.

It stands in for MiniCPM4-0.5B where there is no network and no GPU: every script treats it like the real model. With
--pretrain-steps it first learns a little Chinese from the corpus, so that fine-tuning has something to start from.

    python scripts/make_tiny_model.py --out models/tiny-minicpm --corpus data/samples/general_samples.json --pretrain-steps 300
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from Firefly.component.errors import UserError, exit_cleanly
from Firefly.component.minicpm import write_json
from scripts.tiny_pretrain import pretrain, read_corpus

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>"]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
MIN_VOCAB = len(SPECIAL_TOKENS) + len(BYTE_TOKENS) + 64
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Runs of Chinese, words with their leading space, single digits, everything else character by character.
_PIECES = r"\p{Han}+| ?[^\P{L}\p{Han}]+|\p{N}|\s|[^\s\p{L}\p{N}]"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="现场生成一个极小的 MiniCPM 模型（含分词器），用于无网络、无显卡时走通全流程。"
    )
    parser.add_argument("--out", required=True, help="输出的模型目录")
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="语料文件：.jsonl、.json 或 .txt")
    parser.add_argument(
        "--vocab-corpus",
        nargs="+",
        default=[],
        metavar="FILE",
        help="只用来训练分词器、不用来预训练的语料，例如之后要微调的数据",
    )
    parser.add_argument("--vocab-size", type=int, default=2500, help="词表大小，默认 2500")
    parser.add_argument("--hidden-size", type=int, default=192, help="隐藏维度，64 的倍数，默认 192")
    parser.add_argument("--num-layers", type=int, default=4, help="层数，默认 4")
    parser.add_argument("--seed", type=int, default=42, help="随机种子，默认 42")
    parser.add_argument("--pretrain-steps", type=int, default=0, help="先在语料上预训练多少步，默认 0（随机权重）")
    parser.add_argument("--batch-size", type=int, default=8, help="预训练每步的行数，默认 8")
    parser.add_argument("--seq-length", type=int, default=256, help="预训练每行的词元数，默认 256")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="预训练学习率，默认 3e-3")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="权重精度，默认 float32")
    parser.add_argument("--overwrite", action="store_true", help="输出目录已存在时替换它")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise UserError(f"{out}：输出目录已存在，加 --overwrite 可替换，或换一个 --out。")
    start = time.time()
    texts, vocab_texts = (
        [t for path in paths for t in read_corpus(Path(path))] for paths in (args.corpus, args.vocab_corpus)
    )
    print(f"语料：{len(texts)} 篇，{sum(map(len, texts))} 字", file=sys.stderr)
    build_tiny_model(
        out,
        texts,
        vocab_texts=vocab_texts,
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        seed=args.seed,
        pretrain_steps=args.pretrain_steps,
        batch_size=args.batch_size,
        seq_length=args.seq_length,
        learning_rate=args.learning_rate,
        dtype=args.dtype,
    )
    print(f"用时 {time.time() - start:.1f} 秒", file=sys.stderr)
    print(out)
    return 0


def build_tiny_model(
    out_dir: str | os.PathLike,
    texts: list[str],
    *,
    vocab_texts: Iterable[str] = (),
    vocab_size: int = 2500,
    hidden_size: int = 192,
    num_layers: int = 4,
    seed: int = 42,
    pretrain_steps: int = 0,
    batch_size: int = 8,
    seq_length: int = 256,
    learning_rate: float = 3e-3,
    layer_std: float = 0.05,
    dtype: str = "float32",
) -> Path:
    """Write a tiny MiniCPM folder and return it; ``out_dir`` appears only when it is whole, replacing an older one.

    ``vocab_texts`` teach the tokenizer alone: the pretrained model has not seen them. ``layer_std``: standard deviation of the layers' weights. 0.2 makes an untrained model's answers depend on the
    whole prompt (for tests); the default trains better.
    """
    import torch
    from transformers import GenerationConfig, GraniteForCausalLM
    from transformers.utils import logging as transformers_logging

    from Firefly.component.checkpoint import load_config, save_checkpoint

    if hidden_size % 64 or hidden_size <= 0:  # heads of 32 dimensions; NF4 on a CPU works in blocks of 64 columns
        raise UserError(f"--hidden-size {hidden_size}：应是 64 的正整数倍，例如 192。")
    out_dir = Path(out_dir)
    part = out_dir.with_name(out_dir.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tokenizer = train_tokenizer([*texts, *vocab_texts], vocab_size)
    write_json(part / "config.json", minicpm_config(len(tokenizer), hidden_size, num_layers, dtype))
    model = GraniteForCausalLM(load_config(part)).float()
    _draw_weights(model, seed, layer_std)
    if pretrain_steps > 0:
        pretrain(model, tokenizer, texts, pretrain_steps, batch_size, seq_length, learning_rate, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 3], pad_token_id=2, do_sample=True, temperature=0.8, top_p=0.8
    )
    transformers_logging.disable_progress_bar()
    save_checkpoint(model.to(getattr(torch, dtype)), part, tokenizer)
    transformers_logging.enable_progress_bar()
    if out_dir.exists():
        shutil.rmtree(out_dir)
    part.rename(out_dir)
    return out_dir


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a BPE tokenizer in Llama's manner: characters, and bytes for characters that the vocabulary lacks."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from Firefly.component.checkpoint import VerbatimTokenizer

    if vocab_size < MIN_VOCAB:
        raise UserError(f"--vocab-size {vocab_size}：太小，至少 {MIN_VOCAB}（含 256 个字节和 5 个特殊符号）。")
    room = vocab_size - len(SPECIAL_TOKENS) - len(BYTE_TOKENS)
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES.replace(" ?", "▁?")), behavior="isolated")
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=room, limit_alphabet=room * 4 // 5, show_progress=False)
    )
    learned = json.loads(trained.to_str())["model"]
    tokens = SPECIAL_TOKENS + BYTE_TOKENS + sorted(learned["vocab"], key=learned["vocab"].get)
    if len(learned["vocab"]) < 16:
        raise UserError("--corpus：语料太少，训练不出分词器，请给出至少几百字的文本。")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return VerbatimTokenizer(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        extra_special_tokens=["</s>", "<|im_end|>", "<|im_start|>"],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def minicpm_config(vocab_size: int, hidden_size: int, num_layers: int, dtype: str) -> dict[str, Any]:
    """config.json with the keys of the published MiniCPM4-0.5B: no model_type, LongRoPE, eos list, scales as there."""
    heads = hidden_size // 32
    # From 1 up to 50 along the frequencies, as in the published model; both lists alike, as there.
    factors = [50 ** ((1 - math.cos(math.pi * index / 15)) / 2) for index in range(16)]
    return {
        "architectures": ["MiniCPMForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.1,
        "intermediate_size": hidden_size * 8 // 3 // 64 * 64,
        "max_position_embeddings": 32768,
        "num_attention_heads": heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "original_max_position_embeddings": 32768,
        },
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": vocab_size,
        "scale_emb": 12,
        "dim_model_base": hidden_size // 4,
        "scale_depth": 1.4,
    }


def _draw_weights(model: Any, seed: int, layer_std: float) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.1 if "embed_tokens" in name else layer_std, generator=generator)


if __name__ == "__main__":
    sys.exit(main())
