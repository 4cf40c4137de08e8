"""Tokenise once: ids on disk, memory-mapped, found again by the content of the files and of the tokenizer.

A cache folder holds
    ids.bin    int32, all records end to end, uncut; a token without loss stands as its complement ~id, which is negative
    index.bin  one INDEX entry a record, in file order
    meta.json  the categories and the sizes of the two files; written last
Records are kept whole, so another max_seq_length uses the same folder. It is written beside and renamed; its time of
change is when it was last asked for.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import transformers

from . import prompt, records
from .errors import UserError
from .pool import ordered_map
from .prompt import IGNORE_INDEX, encode_conversations
from .records import Chunk, conversation_of, document_of, read_chunks, records_of

PARALLEL_FROM = 20_000  # below this many lines, starting processes costs more than it saves
UNUSED_SECONDS = 30 * 86400  # a cache that no run has asked for in this time is removed when another is made
STALE_SECONDS = 3600  # a .part folder that nobody has written to for this long is left from a run that was killed

INDEX = np.dtype(
    [("offset", "<i8"), ("line", "<i8"), ("file", "<i4"), ("length", "<i4"), ("targets", "<i4"), ("messages", "<i4"),
     ("category", "<i4")]
)  # fmt: skip

Say = Callable[[str], None]


class Encoded(NamedTuple):
    """What a chunk became: ids as in ids.bin, INDEX entries (category not yet numbered), and their categories."""

    ids: np.ndarray
    index: np.ndarray
    categories: list[str]


class TokenStore:
    """A cache folder, mapped. ``files`` are the paths that it was asked for with, in order.

    ids: (tokens,) int32; index: (records,) INDEX; starts: (records,) int64, where each record begins in ids.

    Raises:
        ValueError, KeyError, OSError: the folder is missing or not whole.
    """

    def __init__(self, folder: Path, files: list[str]):
        self.folder, self.files = folder, files
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for name, size in meta["sizes"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} should have {size} bytes")
        self.categories: list[str] = meta["categories"]
        self.ids, self.index = (
            np.memmap(folder / name, dtype, mode="r").view(np.ndarray)  # a plain array slices three times faster
            for name, dtype in (("ids.bin", np.dtype("<i4")), ("index.bin", INDEX))
        )
        self.starts = np.cumsum(self.index["length"], dtype=np.int64) - self.index["length"]

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple:
        return TokenStore, (self.folder, self.files)  # a data loader's worker maps the files again

    def read(self, start: int, length: int) -> dict[str, np.ndarray]:
        """Return the row of ``length`` tokens at ``start``: input_ids and labels, (length,) int32."""
        stored = self.ids[start : start + length]
        no_loss = stored < 0
        return {"input_ids": np.where(no_loss, ~stored, stored), "labels": np.where(no_loss, IGNORE_INDEX, stored)}

    def where(self, record: int) -> str:
        """Return "file:line" of a record."""
        return f"{self.files[self.index['file'][record]]}:{self.index['line'][record]}"

    def messages(self, record: int) -> prompt.Messages:
        """Read a conversation again from its file."""
        entry = self.index[record]
        return records.conversation_at(self.files[entry["file"]], int(entry["line"]), int(entry["offset"]))


def tokenize_once(
    files: list[str],
    tokenizer: Any,
    *,
    task: str = "sft",
    mask_history: bool = False,
    num_workers: int = 1,
    cache_dir: str | None = None,
    say: Say = print,
) -> TokenStore:
    """Return the tokens of ``files``: from the cache where it has them, else made now, by several processes.

    task: "sft" reads conversations (``mask_history``: loss on the last answer only), "pretrain" reads documents.

    Raises:
        UserError: the first line that can't be used; no record at all; a cache folder that can't be written.
    """
    if task == "pretrain" and tokenizer.eos_token_id is None:
        raise UserError("预训练要在每篇文档后加结束符，而这个分词器没有 eos_token；请换一个分词器。")
    hashed = [_hash_file(path) for path in files]
    key = _key([digest for digest, _ in hashed], tokenizer, task, mask_history)
    root = Path(cache_dir or Path(os.environ.get("FIREFLY_CACHE") or Path.home() / ".cache" / "firefly") / "tokens")
    folder = root.expanduser() / f"{Path(files[0]).stem[:40]}-{key}"
    name = files[0] if len(files) == 1 else f"{Path(files[0]).parent} 等 {len(files)} 个文件"
    if store := _open(folder, files):
        with contextlib.suppress(OSError):  # a cache may be shared, and read only
            os.utime(folder)
        say(f"{name}：{len(store)} 条，用上次分词的缓存 {folder}")
        return store
    if folder.exists():
        say(f"{folder}：缓存不完整，重新分词")
    _remove_old(folder.parent, say)
    encode = functools.partial(_encode_documents if task == "pretrain" else _encode_dialogues, tokenizer)
    started = time.monotonic()
    with _part_folder(folder) as part:
        n_lines = sum(lines for _, lines in hashed)
        encode = functools.partial(_encode_chunk, encode, mask_history)
        _write(part, ordered_map(encode, _with_bar(files, n_lines), num_workers if n_lines >= PARALLEL_FROM else 1))
        if not (part / "index.bin").stat().st_size:
            raise UserError(f"{name}: 文件里没有一条记录，请检查上一步（chatml2conversation.py）的输出。")
        _move_in(part, folder, files)
    store = TokenStore(folder, files)
    say(f"{name}：{len(store)} 条，分词用了 {time.monotonic() - started:.1f} 秒，缓存在 {folder}")
    return store


def _hash_file(path: str) -> tuple[bytes, int]:
    """Return the digest of a file's content and the number of its lines."""
    digest, lines, last = hashlib.blake2b(digest_size=16), 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines, last = lines + block.count(b"\n"), block[-1:]
    return digest.digest(), lines + (last != b"\n")


def _key(digests: list[bytes], tokenizer: Any, task: str, mask_history: bool) -> str:
    """Return what names a cache: everything that the ids and labels follow from, this code included."""
    parts = [*digests, task, mask_history, tokenizer.chat_template, transformers.__version__, tokenizers.__version__]
    parts += [Path(module).read_bytes() for module in (prompt.__file__, records.__file__, __file__)]
    if tokenizer.is_fast:
        parts.append(tokenizer.backend_tokenizer.to_str())  # tokenizer.json as it is in memory, added tokens and all
    else:
        parts += [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items())]
        paths = [getattr(tokenizer, name, None) for name in tokenizer.vocab_files_names]
        parts += [Path(path).read_bytes() for path in paths if path and Path(path).is_file()]
    parts.append(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()))
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _open(folder: Path, files: list[str]) -> TokenStore | None:
    """Return the store, or None where there is no whole one."""
    try:
        return TokenStore(folder, files)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_old(root: Path, say: Say) -> None:
    """Remove what killed runs left unfinished, and caches that were not used for long; a run that has one mapped keeps
    its pages.
    """
    for part in root.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - max(p.stat().st_mtime for p in (part, *part.iterdir())) > STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
    for meta in root.glob("*/meta.json"):
        folder = meta.parent
        ours = (folder / "ids.bin").exists() and (folder / "index.bin").exists()
        with contextlib.suppress(OSError):
            if ours and time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                say(f"{folder}：{UNUSED_SECONDS // 86400} 天没有用过的分词缓存，已删去")


@contextlib.contextmanager
def _part_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside ``folder``, of this process alone, that is gone afterwards whatever happens."""
    part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent}：不能写分词缓存（{error.strerror}），请用 token_cache_dir 换一个目录。"
        ) from None
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, chunks: Iterator[Encoded]) -> None:
    """Append the chunks as they come; only one is held at a time."""
    numbers: dict[str, int] = {}
    with open(part / "ids.bin", "wb") as ids, open(part / "index.bin", "wb") as index:
        for chunk in chunks:
            chunk.index["category"] = [numbers.setdefault(name, len(numbers)) for name in chunk.categories]
            ids.write(chunk.ids.data)
            index.write(chunk.index.data)
        for file in (ids, index):
            file.flush()
            os.fsync(file.fileno())
        sizes = {"ids.bin": ids.tell(), "index.bin": index.tell()}
    meta = json.dumps({"sizes": sizes, "categories": list(numbers)}, ensure_ascii=False)
    (part / "meta.json").write_text(meta + "\n", encoding="utf-8")


def _move_in(part: Path, folder: Path, files: list[str]) -> None:
    """Rename; where another process was faster, keep what it made."""
    damaged = part.with_name(f"{part.stem}.damaged.part")
    if folder.exists() and _open(folder, files) is None:
        with contextlib.suppress(OSError):  # another process may be clearing it too
            folder.rename(damaged)
    try:
        part.rename(folder)
    except OSError:
        if _open(folder, files) is None:
            raise
    shutil.rmtree(damaged, ignore_errors=True)


def _with_bar(files: list[str], n_lines: int) -> Iterator[Chunk]:
    from tqdm import tqdm

    with tqdm(total=n_lines, desc="分词", unit="条", disable=None) as bar:
        for chunk in read_chunks(files):
            yield chunk
            bar.update(len(chunk.lines))


def _encode_chunk(encode: Callable[..., list], mask_history: bool, chunk: Chunk) -> Encoded:
    """Parse, render and tokenise; runs in a worker, to which only bytes go and from which only arrays come."""
    found = list(records_of(chunk))
    pairs, n_messages = encode(found, mask_history) if found else ([], [])
    index = np.zeros(len(found), INDEX)
    stored = [np.empty(0, np.int32)]
    for entry, (place, _, _), (ids, labels), count in zip(index, found, pairs, n_messages, strict=True):
        ids, labels = np.asarray(ids, np.int32), np.asarray(labels, np.int32)
        no_loss = labels == IGNORE_INDEX
        stored.append(np.where(no_loss, ~ids, ids))
        entry["file"], entry["line"], entry["offset"] = place
        entry["length"], entry["targets"], entry["messages"] = len(ids), (~no_loss[1:]).sum(), count
    return Encoded(np.concatenate(stored), index, [str(r.get("category") or "General") for _, _, r in found])


def _encode_dialogues(tokenizer: Any, found: list, mask_history: bool) -> tuple[list, list[int]]:
    """Return (ids, labels) of each conversation, and how many messages each has."""
    conversations = [conversation_of(record, where) for _, where, record in found]
    try:
        pairs = encode_conversations(tokenizer, conversations, mask_history)
    except Exception:  # one by one, to find which and say why
        pairs = [
            _encode_one(tokenizer, messages, where, mask_history)
            for messages, (_, where, _) in zip(conversations, found, strict=True)
        ]
    return pairs, [len(messages) for messages in conversations]


def _encode_one(tokenizer: Any, messages: prompt.Messages, where: str, mask_history: bool) -> tuple[list, list]:
    import jinja2

    try:
        return encode_conversations(tokenizer, [messages], mask_history)[0]
    except (ValueError, jinja2.TemplateError) as error:
        raise UserError(f"{where}: 对话模板无法渲染这条记录：{error}。") from None


def _encode_documents(tokenizer: Any, found: list, _mask_history: bool) -> tuple[list, list[int]]:
    """Return (ids, labels) of each document, its end token last; every token is a target."""
    texts = [document_of(record, where) for _, where, record in found]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    rows = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    return [(ids, ids) for ids in rows], [0] * len(rows)
