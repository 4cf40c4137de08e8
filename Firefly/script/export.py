"""Export a whole model (base or merged) for tools that do not know MiniCPM: as plain Granite, or as GGUF for Ollama.

    python Firefly/script/export.py --model models/minicpm4-0.5b-sft --format granite --out models/minicpm4-0.5b-granite
    python Firefly/script/export.py --model models/minicpm4-0.5b-sft --format gguf --outtype q8_0 --out models/minicpm4-0.5b-gguf

granite: the same weights under a config.json that transformers, vLLM and SGLang know by themselves, no .py files.
gguf: one file for llama.cpp, and a Modelfile: cd OUT && ollama create NAME -f Modelfile. OUT appears only when it is whole.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from component.errors import UserError, exit_cleanly

# What makes a model; a training folder also has optimizers, logs and checkpoints.
MODEL_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "LICENSE*",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="把 MiniCPM 导出成普通 Granite 模型（不认识 MiniCPM 的工具也能读），或 GGUF 加 Ollama 的 Modelfile。"
    )
    parser.add_argument("--model", required=True, help="完整模型的目录或名称；LoRA 适配器请先用 merge_lora.py 合并")
    parser.add_argument("--format", required=True, choices=["granite", "gguf"], help="导出的格式")
    parser.add_argument("--out", required=True, help="导出的目录")
    parser.add_argument(
        "--outtype",
        choices=["auto", "f32", "f16", "bf16", "q8_0"],
        default="auto",
        help="GGUF 的权重精度，默认 auto：与模型相同；q8_0 约为 16 位的一半大小",
    )
    parser.add_argument("--overwrite", action="store_true", help="OUT 已存在时替换它")
    return parser


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise UserError(f"{out}：输出目录已存在，加 --overwrite 可替换，或换一个 --out。")
    from component.resolve import resolve_model

    folder = resolve_model(args.model)
    inside = (out.resolve(), *out.resolve().parents)
    if folder.resolve() in inside or out.resolve() in folder.resolve().parents:
        raise UserError(f"{out}：不能写进模型自己的目录或替换它的上级目录，请换一个 --out。")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    export_granite(folder, part) if args.format == "granite" else export_gguf(folder, part, args.outtype)
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
    print(out)
    return 0


def export_granite(folder: Path, part: Path) -> None:
    """Copy weights and tokenizer, with config.json in Granite's words. Copies, not links: either side may be changed."""
    from component.minicpm import fast_tokenizer_config, is_minicpm, to_granite, write_json
    from component.resolve import read_json

    config = read_json(folder / "config.json")
    if not is_minicpm(config):
        raise UserError(f"{folder}：不是 MiniCPM（{config.get('model_type')}），transformers 本来就认识它，不必导出。")
    write_json(part / "config.json", to_granite(config))
    for source in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}):
        shutil.copyfile(source, part / source.name)
    path = part / "tokenizer_config.json"
    if path.exists() and (part / "tokenizer.json").exists():
        write_json(path, fast_tokenizer_config(read_json(path)))


def export_gguf(folder: Path, part: Path, outtype: str) -> None:
    """Write NAME.gguf and the Modelfile."""
    from component.checkpoint import load_tokenizer
    from component.gguf_export import write_gguf
    from component.modelfile import write_modelfile
    from component.session import load_prompt
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer, name = load_tokenizer(folder), folder.resolve().name
    if tokenizer.chat_template:  # the prompt that this project's own inference sends
        tokenizer, _ = load_prompt(folder, None, "auto")
    write_gguf(folder, tokenizer, part / f"{name}.gguf", outtype, name)
    if not write_modelfile(part / "Modelfile", f"{name}.gguf", folder, tokenizer):
        print(
            "注意：模型的对话模板不是 ChatML，Modelfile 里没有 TEMPLATE；请按 Ollama 的文档自己写，或用 llama.cpp 的 --jinja。",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
