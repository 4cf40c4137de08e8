#!/usr/bin/env python3
"""Fetch the open data and a model: resumes where it stopped, verifies size and hash, says what to do offline.

    python data/download.py --firefly --endpoint mirror
    python data/download.py --model openbmb/MiniCPM4-0.5B --endpoint modelscope

Every file is checked against the size and the hash that the hub publishes (SHA-256 for large files, git's blob
SHA-1 for small ones); a file that is already there and right is not fetched again.
"""

import argparse
import errno
import fnmatch
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python sees data/ only

from sft_data.errors import UserError, exit_cleanly  # noqa: E402
from sft_data.jsonl import read_records  # noqa: E402

ENDPOINTS = {"hf": "https://huggingface.co", "mirror": "https://hf-mirror.com"}
FIREFLY = ("QingyiSi/Alpaca-CoT", "firefly/firefly_no_belle.json")  # 902 MB, a JSON array of instruction/input/output
FIREFLY_MODELSCOPE = ("AI-ModelScope/firefly-train-1.1M", "firefly-train-1.1M.jsonl")  # JSONL of kind/input/target
# The same weights in other formats, which nothing here reads; left out only when safetensors are there.
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.msgpack", "*.h5", "*.gguf")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="下载开源数据或模型：断点续传，按网站公布的大小和哈希校验，已下载好的不重复下载。",
        epilog="hf 也认环境变量 HF_ENDPOINT；需要登录的仓库请先设 HF_TOKEN。modelscope 需要 pip install modelscope。",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--firefly", action="store_true", help="firefly_no_belle.json（902 MB），放到 data/raw/firefly/")
    what.add_argument("--model", metavar="ID", help="模型，如 openbmb/MiniCPM4-0.5B，放到 models/ 下同名的目录")
    parser.add_argument("--endpoint", default="hf", metavar="NAME", help="hf、mirror、modelscope 或一个网址（默认 hf）")
    parser.add_argument("--out", metavar="DIR", type=Path, help="上级目录（默认：数据 data/raw，模型 models）")
    return parser


def endpoint_url(name: str) -> str:
    """Return the address of a hub by its short name; an address stands for itself."""
    if name == "hf":
        return os.environ.get("HF_ENDPOINT") or ENDPOINTS["hf"]
    if name in ENDPOINTS:
        return ENDPOINTS[name]
    if name.startswith(("http://", "https://")):
        return name.rstrip("/")
    raise UserError(f"--endpoint {name}：应为 hf、mirror、modelscope，或以 http:// 开头的网址。")


def list_files(api: Any, repo: str, repo_type: str, path: str | None) -> list[Any]:
    """Return the hub's entries (rfilename, size, blob_id, lfs): of one path, or of the whole repository."""
    files = api.repo_info(repo, repo_type=repo_type, files_metadata=True).siblings or []
    if path:
        files = [file for file in files if file.rfilename == path]
    elif any(file.rfilename.endswith(".safetensors") for file in files):
        files = [file for file in files if not any(fnmatch.fnmatch(file.rfilename, other) for other in OTHER_WEIGHTS)]
    if not files:
        raise UserError(f"{repo}：仓库里没有{' ' + path if path else '任何文件'}；请核对名字，或换一个 --endpoint。")
    return files


def mismatch(path: Path, file: Any) -> str | None:
    """Return why ``path`` is not the file that the hub describes, None when it is."""
    size = path.stat().st_size
    if size != file.size:
        return f"大小是 {size} 字节，应为 {file.size}"
    # Git names a small file by the SHA-1 of a header and its content; a large one (LFS) has its SHA-256 published.
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(f"blob {size}\0".encode())
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    expected = file.lfs.sha256 if file.lfs else file.blob_id
    return None if digest.hexdigest() == expected else f"{digest.name} 是 {digest.hexdigest()}，应为 {expected}"


def set_aside(path: Path) -> Path:
    """Move a file that failed its check out of the way; it is not ours to delete."""
    bad = path.with_name(path.name.removesuffix(".part") + ".bad")
    os.replace(path, bad)
    return bad


def fetch(url: str, local: Path, file: Any) -> None:
    """Fetch ``url`` to ``local`` by way of ``local``.part, going on where an earlier run stopped; verify, then rename.

    huggingface_hub's own hf_hub_download (2.4) deletes its partial file when it is interrupted, so a download of
    902 MB would start anew each time; its http_get, used here, takes the position to go on from.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = local.with_name(local.name + ".part")
    local.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        have = 0
        part.unlink()
    if have:
        print(f"  接着已有的 {have / 1e6:.1f} MB 下载", file=sys.stderr)
    with open(part, "ab") as stream:
        http_get(url, stream, resume_size=have, headers=build_hf_headers(), expected_size=file.size)
    if reason := mismatch(part, file):
        bad = set_aside(part)
        raise UserError(f"{local}：校验不符（{reason}），已存为 {bad.name}；请再运行一次，或换 --endpoint。")
    os.replace(part, local)


def download_hub(repo: str, repo_type: str, path: str | None, folder: Path, endpoint: str) -> list[Path]:
    """Fetch and verify one file or all files of a repository; return their local paths."""
    from huggingface_hub import HfApi, hf_hub_url

    with explaining(repo, endpoint, folder):
        files = list_files(HfApi(endpoint=endpoint), repo, repo_type, path)
        for number, file in enumerate(files, 1):
            local = folder / file.rfilename
            say = f"[{number}/{len(files)}] {local}（{file.size / 1e6:.1f} MB）"
            if local.exists() and (reason := mismatch(local, file)):
                print(f"{say}：已有的文件不对（{reason}），改名为 {set_aside(local).name}，重新下载", file=sys.stderr)
            if local.exists():
                print(f"{say}：已存在，校验通过", file=sys.stderr)
                continue
            print(f"{say}：下载中……", file=sys.stderr)
            fetch(hf_hub_url(repo, file.rfilename, repo_type=repo_type, endpoint=endpoint), local, file)
            print(f"{say}：校验通过", file=sys.stderr)
    return [folder / file.rfilename for file in files]


@contextmanager
def explaining(repo: str, endpoint: str, folder: Path) -> Iterator[None]:
    """Turn the hub library's errors into a sentence that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{repo}：需要先在网站上同意条款，再用 HF_TOKEN=你的令牌 运行同一条命令。") from None
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):  # raised for "no network and not in the cache"
            raise offline(repo, endpoint, folder, error) from None
        raise UserError(
            f"{repo}：在 {endpoint} 上找不到；请核对名字（形如 组织/仓库），或换一个 --endpoint。"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UserError("环境变量 HF_HUB_OFFLINE 禁止了联网：请先 unset HF_HUB_OFFLINE，再运行同一条命令。") from None
    except errors.HFValidationError:
        raise UserError(f"{repo}：不是合法的仓库名，应形如 openbmb/MiniCPM4-0.5B。") from None
    except (errors.HTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise
        raise offline(repo, endpoint, folder, error) from None


def offline(repo: str, endpoint: str, folder: Path, error: Exception) -> UserError:
    others = " 或 ".join(name for name in ("mirror", "modelscope", "hf") if endpoint not in (name, ENDPOINTS.get(name)))
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return UserError(
        f"从 {endpoint} 下载 {repo} 没有成功（{first_line}）；已下载的部分会保留，联网后用同一条命令接着下载；也可换 "
        f"--endpoint {others}，或在能上网的电脑上运行本命令，再把文件拷到 {folder}。"
    )


def download_modelscope(repo: str, path: str | None, folder: Path) -> list[Path]:
    """Fetch through the modelscope library, which resumes and checks SHA-256 by itself."""
    try:
        from modelscope.hub.file_download import dataset_file_download
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError:
        raise UserError("--endpoint modelscope 需要 modelscope 库：请运行 pip install modelscope 后重试。") from None
    try:
        if path:
            return [Path(dataset_file_download(repo, path, local_dir=str(folder)))]
        return [Path(snapshot_download(repo, local_dir=str(folder)))]
    except (KeyboardInterrupt, UserError):
        raise
    except Exception as error:  # the library raises its own, requests' and plain ones; each means "not fetched"
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise offline(repo, "modelscope", folder, error) from None


def check_records(path: Path) -> None:
    """Read the first and the last record: a page of HTML or a cut file must not pass as data."""
    import orjson

    next(iter(read_records(path)))
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 20)))
        tail = file.read().rstrip().removesuffix(b"]").rstrip()
    start = len(tail)
    while (start := tail.rfind(b"{", 0, start)) >= 0:
        try:
            orjson.loads(tail[start:])
            return
        except orjson.JSONDecodeError:
            continue
    raise UserError(f"{path}：最后一条记录不完整，文件没有下载完；请删去它后再运行一次。")


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    modelscope = args.endpoint == "modelscope"
    if args.firefly:
        folder = args.out or ROOT / "data" / "raw"
        if modelscope:
            paths = download_modelscope(*FIREFLY_MODELSCOPE, folder / "firefly")
        else:
            paths = download_hub(FIREFLY[0], "dataset", FIREFLY[1], folder, endpoint_url(args.endpoint))
        check_records(paths[0])
        result = paths[0]
    else:
        result = (args.out or ROOT / "models") / args.model.rstrip("/").rpartition("/")[2]
        if modelscope:
            download_modelscope(args.model, None, result)
        else:
            download_hub(args.model, "model", None, result, endpoint_url(args.endpoint))
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
