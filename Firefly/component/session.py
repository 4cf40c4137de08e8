"""What every engine must know before it loads weights: which folders, which prompt, which stop tokens, which sampling.

All engines take it from here, so that the same flags send the same token ids and stop at the same tokens.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .adapter import find_base, has_weights
from .errors import UserError
from .inference import DEFAULT_MAX_NEW_TOKENS, Completion, Request
from .minicpm import is_minicpm
from .prompt import encode_prompt
from .resolve import read_json, resolve_model


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. ``temperature`` 0 is greedy; ``top_k`` 0 means the whole vocabulary."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int


@dataclass(frozen=True)
class Session:
    """``adapters`` maps names to folders; ``context`` is the longest sequence in tokens, prompt and answer together."""

    model: str
    model_dir: Path
    adapters: dict[str, Path]
    tokenizer: Any
    stop_ids: tuple[int, ...]
    sampling: Sampling
    context: int

    def encode(self, request: Request) -> list[int]:
        """Return the ids to send. Raises UserError when the chat template refuses the conversation."""
        try:
            return encode_prompt(self.tokenizer, request.messages)
        except UserError:
            raise
        except Exception as error:  # Jinja templates raise what they like, e.g. on roles that do not alternate
            raise UserError(
                f"{request.where}：提示模板不接受这段对话（{error}），请改正消息或换 --template-name。"
            ) from error

    def room(self, prompt_tokens: int) -> int:
        """How many tokens may be generated after a prompt of that length."""
        return min(self.sampling.max_new_tokens, self.context - prompt_tokens)

    def check(self, requests: Iterable[Request]) -> None:
        """Raise UserError for the first request whose prompt leaves no room for an answer."""
        for request in requests:
            length = len(self.encode(request))
            if length >= self.context:
                raise UserError(
                    f"{request.where}：提示有 {length} 个 token，模型最多 {self.context} 个，请缩短这一条。"
                )

    def complete(self, prompt_ids: list[int], new_ids: Iterable[int]) -> Completion:
        """Make the result out of generated ids, cut after the first stop token."""
        kept: list[int] = []
        for token in new_ids:
            kept.append(token)
            if token in self.stop_ids:
                break
        stopped = bool(kept) and kept[-1] in self.stop_ids
        text = self.tokenizer.decode(kept[:-1] if stopped else kept, skip_special_tokens=True)
        return Completion(text, "stop" if stopped else "length", len(prompt_ids), len(kept), tuple(kept))

    def fingerprint(self) -> dict:
        """What must be the same for two runs to share one output file."""
        return {
            "model": str(self.model_dir.resolve()),
            "adapter": ",".join(str(path.resolve()) for path in self.adapters.values()),
            "chat_template": self.tokenizer.chat_template,
            **asdict(self.sampling),
        }


class TextStream:
    """Turn growing ids into text pieces: a piece waits until no character in it is cut in half."""

    def __init__(self, session: Session):
        self.session = session
        self.ids: list[int] = []
        self.start = self.shown = 0  # text of ids[start:shown] is out already

    def add(self, token: int) -> str:
        if token in self.session.stop_ids:
            return ""
        self.ids.append(token)
        decode = self.session.tokenizer.decode
        before = decode(self.ids[self.start : self.shown], skip_special_tokens=True)
        text = decode(self.ids[self.start :], skip_special_tokens=True)
        if text.endswith("\ufffd") or len(text) <= len(before):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return text[len(before) :]


def open_session(args: Namespace) -> Session:
    """Find model, adapters, tokenizer and prompt for the flags, without loading weights. Raises UserError."""
    adapters = parse_adapters(args.adapter or [])
    name = args.model
    if name and _is_adapter(Path(name).expanduser()):
        print(f"{name}：是 LoRA 适配器，加在它记录的基座上。", file=sys.stderr)
        adapters = {Path(name).resolve().name: Path(name)} | adapters
        name = None
    if not name:
        if not adapters:
            raise UserError("没有给出模型：请用 --model 指定模型文件夹或 hub 名称，或用 --adapter 指定适配器。")
        name = find_base(next(iter(adapters.values())), "--model")
    for adapter in adapters.values():
        say_if_other_base(adapter, name)
    model_dir = resolve_model(name)
    tokenizer, stop_word = load_prompt(model_dir, next(iter(adapters.values()), None), args.template_name)
    generation = read_generation_config(model_dir)
    return Session(
        model=name,
        model_dir=model_dir,
        adapters=adapters,
        tokenizer=tokenizer,
        stop_ids=find_stop_ids(tokenizer, generation, stop_word),
        sampling=choose_sampling(args, generation),
        context=read_json(model_dir / "config.json").get("max_position_embeddings") or 2**20,
    )


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def parse_adapters(values: list[str]) -> dict[str, Path]:
    """Turn ``NAME=DIR`` or ``DIR`` (named after its folder) into {name: folder}; UserError when one is no adapter."""
    adapters: dict[str, Path] = {}
    for value in values:
        name, _, path = value.rpartition("=")
        folder = Path(path).expanduser()
        name = name or folder.resolve().name
        if not (folder / "adapter_config.json").exists():
            raise UserError(f"--adapter {value}：没有 adapter_config.json，不是 LoRA 适配器文件夹，请检查路径。")
        if not has_weights(folder):
            raise UserError(f"--adapter {value}：没有权重 adapter_model.safetensors，请换一个训练完成的文件夹。")
        if name in adapters:
            raise UserError(f"--adapter {value}：名字 {name} 用了两次，请写成 名字=文件夹。")
        adapters[name] = folder
    return adapters


def only_adapter(session: Session) -> Path | None:
    """The adapter to answer with; UserError when there are several, which only a server can tell apart."""
    if len(session.adapters) > 1:
        raise UserError(
            f"给了 {len(session.adapters)} 个 --adapter；直接推理只用一个，多个请用 vLLM 或 SGLang 的 --serve。"
        )
    return next(iter(session.adapters.values()), None)


def say_if_other_base(adapter: Path, base: str) -> None:
    """Say when an adapter was trained on a base of another name: a second stage's adapter sits on the merged first stage."""
    recorded = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if recorded and not _names(recorded) & _names(base):
        print(
            f"提示：适配器 {adapter} 是在 {recorded} 上训练的，现在加在 {base} 上；若不是同一个模型，回答不可信。",
            file=sys.stderr,
        )


def _names(model: str) -> set[str]:
    path = Path(model).expanduser()
    return {path.name, path.resolve().name}


def load_prompt(model_dir: Path, adapter: Path | None, template_name: str) -> tuple[Any, str | None]:
    """Return the tokenizer with the chat template to use, and the template's stop word where it names one.

    The adapter's own tokenizer goes first: it holds the template that the adapter was trained with. A published
    MiniCPM template has no BOS though the family's own inference adds one; with "auto" it becomes ``minicpm4``, so
    that a base and its fine-tuned models are asked alike.
    """
    from .checkpoint import load_tokenizer
    from .template import use_template

    own = adapter is not None and (adapter / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(adapter if own else model_dir)
    if template_name == "auto" and is_minicpm(read_json(model_dir / "config.json")) and _lacks_bos(tokenizer):
        print("提示：基座自带的模板没有 BOS，改用 minicpm4 模板，与微调后的模型一致。", file=sys.stderr)
        template_name = "minicpm4"
    return tokenizer, use_template(tokenizer, template_name)


def _lacks_bos(tokenizer: Any) -> bool:
    if not tokenizer.chat_template or tokenizer.bos_token is None or "<|im_start|>" not in tokenizer.chat_template:
        return False
    return encode_prompt(tokenizer, [{"role": "user", "content": "你好"}])[0] != tokenizer.bos_token_id


def read_generation_config(model_dir: Path) -> dict:
    """The model's generation_config.json, or the token ids of its config.json when there is none."""
    path = model_dir / "generation_config.json"
    if path.exists():
        return read_json(path)
    return {"eos_token_id": read_json(model_dir / "config.json").get("eos_token_id")}


def find_stop_ids(tokenizer: Any, generation: dict, stop_word: str | None) -> tuple[int, ...]:
    """Stop tokens: generation_config's eos (one or a list), the tokenizer's, and the template's stop word."""
    eos = generation.get("eos_token_id")
    ids = [*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id]
    if stop_word:
        ids.append(tokenizer.convert_tokens_to_ids(stop_word))
    ids = tuple(dict.fromkeys(i for i in ids if i is not None))
    if not ids:
        raise UserError("模型没有结束符（generation_config.json 和分词器都没有 eos），请用 --template-name 指定模板。")
    return ids


def choose_sampling(args: Namespace, generation: dict) -> Sampling:
    """Flags first, then generation_config.json, then neutral values; a model that does not ask to sample is greedy."""

    def pick(name: str, neutral: float) -> Any:
        given = getattr(args, name)
        return given if given is not None else generation.get(name) or neutral

    samples = generation.get("do_sample", False)
    temperature = args.temperature if args.temperature is not None else pick("temperature", 1.0) if samples else 0.0
    return Sampling(
        max_new_tokens=args.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        temperature=float(temperature),
        top_p=float(pick("top_p", 1.0)),
        top_k=int(generation.get("top_k") or 0) if samples else 0,
        repetition_penalty=float(pick("repetition_penalty", 1.0)),
        seed=args.seed,
    )


def choose_device(args: Namespace) -> tuple[str, Any]:
    """Return (device, torch dtype) for --device and --dtype, saying what falls back. Raises UserError without the GPU."""
    import torch

    has_gpu = torch.cuda.is_available()
    device = args.device if args.device != "auto" else "cuda" if has_gpu else "cpu"
    if not device.startswith(("cpu", "cuda")):
        raise UserError(f"--device {device}：应是 auto、cpu、cuda 或 cuda:编号，请修改。")
    if device.startswith("cuda") and not has_gpu:
        raise UserError(
            f"--device {device}：这台机器上 PyTorch 看不到 GPU，请用 --device cpu，或安装带 CUDA 的 torch。"
        )
    on_gpu = device.startswith("cuda")
    name = args.dtype
    if name == "auto":
        name = "float32" if not on_gpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    elif name == "float16" and not on_gpu:
        print("提示：CPU 不适合 float16，改用 float32。", file=sys.stderr)
        name = "float32"
    elif name == "bfloat16" and not on_gpu:
        print("提示：较老的 CPU 上 bfloat16 很慢，可用 --dtype float32。", file=sys.stderr)
    return device, getattr(torch, name)
