"""JSONL of conversations or documents, read in chunks of whole lines; each record can be found again by its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError
from .prompt import Messages, record_to_messages

CHUNK_BYTES = 1 << 19  # about 500 conversations: small enough to share out evenly, large enough to batch


class Chunk(NamedTuple):
    """Whole lines that follow each other. ``first_line`` counts from 1, ``offset`` is where it starts, in bytes."""

    file: int  # position in the list of files
    path: str
    first_line: int
    offset: int
    lines: list[bytes]


class Place(NamedTuple):
    """Where a record stands: the file's position in the list, line number from 1, byte offset."""

    file: int
    line: int
    offset: int


def list_files(path: str | Path, folder_allowed: bool = False) -> list[str]:
    """Return ``path`` itself, or the .jsonl files under a folder in sorted order where a folder is allowed."""
    if not (folder_allowed and Path(path).is_dir()):
        return [str(path)]
    files = sorted(str(p) for p in Path(path).rglob("*.jsonl") if p.is_file())
    if not files:
        raise UserError(f'{path}：目录里没有 .jsonl 文件；预训练需要一个文件或一个目录，每行一个 {{"text": "..."}}。')
    return files


def read_chunks(files: list[str], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yield the files' lines, ``chunk_bytes`` and the rest of a line at a time; holds no more than one chunk."""
    for number, path in enumerate(files):
        line, offset = 1, 0
        with open(path, "rb") as file:
            while lines := file.readlines(chunk_bytes):
                yield Chunk(number, path, line, offset, lines)
                line += len(lines)
                offset += sum(map(len, lines))


def records_of(chunk: Chunk) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """Yield (place, "file:line", record) for each line that is not blank."""
    offset = chunk.offset
    for number, line in enumerate(chunk.lines, chunk.first_line):
        if line.strip(b"\xef\xbb\xbf \t\r\n"):
            where = f"{chunk.path}:{number}"
            yield Place(chunk.file, number, offset), where, parse_line(line, where)
        offset += len(line)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object on a line, which may start with a BOM.

    Raises:
        UserError: names ``where`` and what is wrong.
    """
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{where}: 不是 UTF-8 文本（可能是 GBK 或二进制文件），请先转成 UTF-8。") from None
    except json.JSONDecodeError as error:
        array = line.lstrip().startswith(b"[")
        hint = "文件像是 JSON 数组，请转成一行一条的 JSONL" if array else "请删去或改正这一行"
        raise UserError(f"{where}: 不是合法的 JSON（{error.msg}，第 {error.colno} 列），{hint}。") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: 每行应是一个 JSON 对象，实际是 {type(record).__name__}。")
    return record


def conversation_of(record: dict[str, Any], where: str) -> Messages:
    """Return a record's messages (docs/FORMATS.md)."""
    try:
        return record_to_messages(record)
    except ValueError as error:
        raise UserError(f"{where}: {error}。") from None


def document_of(record: dict[str, Any], where: str) -> str:
    """Return the text of a pretraining record."""
    if not isinstance(record.get("text"), str):
        raise UserError(f'{where}: 预训练数据的每行应是 {{"text": "..."}}，这一行没有 text 字段或它不是字符串。')
    return record["text"]


def first_conversations(path: str, count: int) -> list[Messages]:
    """Return the first ``count`` conversations of a file."""
    found: list[Messages] = []
    for chunk in read_chunks([path], 1 << 16):
        for _, where, record in records_of(chunk):
            found.append(conversation_of(record, where))
            if len(found) == count:
                return found
    return found


def conversation_at(path: str, line: int, offset: int) -> Messages:
    """Return the conversation whose line starts at byte ``offset``."""
    with open(path, "rb") as file:
        file.seek(offset)
        where = f"{path}:{line}"
        return conversation_of(parse_line(file.readline(), where), where)
