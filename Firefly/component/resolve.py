"""From the name a user gives (folder, hub id) to a checked model folder. Imports only the standard library at the top."""

import json
import os
from pathlib import Path

from .errors import UserError

FIREFLY = Path(__file__).resolve().parents[1]  # training runs inside it: relative paths that it wrote start there
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What a path of this project starts with: no hub is asked for models/one-not-merged-yet.
_OUR_FOLDERS = (".", "..", "~", "data", "models", "output", "work")
# Other frameworks' copies of the same weights, which a hub snapshot would download for nothing.
_NOT_NEEDED = ["*.gguf", "*.msgpack", "*.h5", "*.onnx", "onnx/*", "original/*", "*.pth", "consolidated*"]


def read_json(path: Path) -> dict:
    """Read a JSON object; UserError names the file when it is missing, not UTF-8, or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}：文件不存在，请检查路径。") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}：不是 UTF-8 文本，请重新下载这个文件。") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}：不是完整的 JSON（{error.msg}），请重新下载这个文件。") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}：内容应是一个 JSON 对象，实际是 {type(value).__name__}，请重新下载这个文件。")
    return value


def resolve_model(name_or_path: str | os.PathLike) -> Path:
    """Return the local folder of a model, downloading a hub id first.

    A folder is taken as it is. Anything of the form ``owner/name`` is fetched from Hugging Face (HF_ENDPOINT and the
    HF cache apply), or from ModelScope when USE_MODELSCOPE=1. Raises UserError when nothing usable is there.
    """
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_model_folder(folder)
        return folder
    if folder.is_file():
        raise UserError(f"{name}：这是一个文件，请给出模型文件夹（含 config.json 和权重）。")
    if not _looks_like_hub_id(name):
        raise UserError(
            f"{name}：模型文件夹不存在，请检查路径；底座先用 python data/download.py --model 下载，训练好的先用 merge_lora.py 合并。"
        )
    folder = Path(_download(name))
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless ``folder`` has config.json and whole weights; the message lists what is there."""
    there = sorted(p.name for p in folder.iterdir())
    listing = "、".join(there[:8]) + (" 等" if len(there) > 8 else "") if there else "空"
    if "config.json" not in there:
        if "adapter_config.json" in there:
            raise UserError(
                f"{folder}：这是 LoRA 适配器，不是完整模型；请把它作为 adapter 给出，或先用 Firefly/script/merge_lora.py 合并。"
            )
        raise UserError(f"{folder}：没有 config.json（目录内容：{listing}），请检查路径或重新下载模型。")
    weights = [name for name in WEIGHT_FILES if name in there]
    if not weights:
        raise UserError(
            f"{folder}：没有权重文件 model.safetensors（目录内容：{listing}），请重新下载，例如 python data/download.py。"
        )
    shards = [weights[0]]
    if weights[0].endswith(".index.json"):
        shards = sorted(set(read_json(folder / weights[0]).get("weight_map", {}).values()))
    for shard in shards:
        _check_weight_file(folder / shard)


def _check_weight_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}：索引里有这个权重分片，文件却不在，请重新下载。")
    with path.open("rb") as file:
        if file.read(16).startswith(b"version https://"):
            raise UserError(f"{path}：只是 git-lfs 指针，不是权重本身，请先执行 git lfs pull 或重新下载。")


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in _OUR_FOLDERS and "\\" not in name


def _download(name: str) -> str:
    if os.environ.get("USE_MODELSCOPE", "").lower() in ("1", "true", "yes"):
        return _download_modelscope(name)
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, ignore_patterns=_NOT_NEEDED)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}：本地没有这个文件夹，从 Hugging Face 下载也失败（{reason[:160]}）；"
            "请联网重试，设 HF_ENDPOINT 用镜像，设 USE_MODELSCOPE=1 用魔搭，或在别处下载后给出文件夹路径。"
        ) from None


def _download_modelscope(name: str) -> str:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError("USE_MODELSCOPE=1：还没有安装 modelscope，请先 pip install modelscope。") from None
    try:
        return snapshot_download(name)
    except Exception as error:  # modelscope raises its own and requests' errors, all meaning "not fetched"
        raise UserError(
            f"{name}：从魔搭（ModelScope）下载失败（{str(error)[:160]}）；请检查网络和模型名，或给出本地文件夹路径。"
        ) from None
