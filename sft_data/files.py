"""Write records in the form that the file's name asks for: one writer for every script.

    write_lines(path) -> context manager giving an object with write(line: bytes)   a line as dump_line gives it
    refuse_existing(paths, overwrite, has_append=False) -> None                     UserError when one is there already
    copy_records(path, out) -> None                                                 what is there, into such a writer

``.json`` is one JSON array, a record a line; ``.parquet`` is a table; any other name is JSONL. JSON and JSONL may also
end in ``.gz`` or ``.zst``. Equal lines give equal bytes, and whatever fails leaves an existing file as it was.
"""

import contextlib
import gzip
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, Protocol

from .errors import UserError
from .jsonl import dump_line, open_unpacked, read_records, skip_blanks, zstd_library
from .storage import Renames, file_exists, is_remote, write_atomically

_BUFFER = 1 << 20
_ROWS, _BYTES = 8192, 64 << 20  # a row group ends at whichever comes first: memory is bounded, and so are bytes equal


class Lines(Protocol):
    def write(self, line: bytes) -> Any: ...


@contextlib.contextmanager
def write_lines(path: str | os.PathLike, waiting: Renames | None = None) -> Iterator[Lines]:
    """Open ``path`` for records, one ``write`` each; it takes its place when the block ends well (write_atomically)."""
    kind, packing = form_of(path)
    if kind == "parquet":
        with write_atomically(path, waiting) as file, _spill(path) as lines:
            yield lines
            _write_parquet(path, lines, file)
        return
    with write_atomically(path, waiting) as file, _packed(file, packing) as packed:
        if kind == "json":
            array = _Array(packed)
            yield array
            array.close()
        else:
            yield packed


def form_of(path: str | os.PathLike) -> tuple[str, str]:
    """Return ("json" | "jsonl" | "parquet", "" | "gz" | "zst"), from the name alone."""
    name = os.fspath(path).lower()
    packing = next((ending for ending in ("gz", "zst") if name.endswith(f".{ending}")), "")
    name = name.removesuffix(f".{packing}")
    if name.endswith(".parquet"):
        if packing:
            raise UserError(f"{path}：parquet 自带压缩，不再套 .{packing}；请去掉 .{packing}。")
        return "parquet", ""
    return ("json" if name.endswith(".json") else "jsonl"), packing


def refuse_existing(paths: Iterable[str | os.PathLike], overwrite: bool, has_append: bool = False) -> None:
    """Raise UserError when one of ``paths`` is there and may not be replaced; ``has_append``: the script adds, too."""
    for path in paths:
        # a directory is left to the writer, which says what it is
        if not overwrite and file_exists(path) and not os.path.isdir(path):
            add = "，要接在它后面加 --append" if has_append else ""
            raise UserError(f"{path}：文件已经存在，没有改动它；要替换它加 --overwrite{add}，或换一个输出路径。")


def copy_records(path: str | os.PathLike, out: Lines) -> None:
    """Write the records of ``path`` to ``out``, an object of write_lines(path): lines of JSONL byte for byte."""
    if form_of(path)[0] == "jsonl":
        with open_unpacked(path) as file:
            skip_blanks(file)
            if file.peek(1)[:1] == b"{":  # or else it is an array, or a table, under the name of JSONL
                last = b"\n"
                while chunk := file.read(_BUFFER):
                    out.write(chunk)
                    last = chunk[-1:]
                if last != b"\n":
                    out.write(b"\n")
                return
    for _, obj in read_records(path):
        out.write(dump_line(obj))


class _Array:
    """The lines of one JSON array: what stands before a line depends on whether one came before it."""

    def __init__(self, file: BinaryIO):
        self.file, self.before = file, b"[\n"

    def write(self, line: bytes) -> None:
        self.file.write(self.before + line.rstrip(b"\n"))
        self.before = b",\n"

    def close(self) -> None:
        self.file.write(b"[]\n" if self.before == b"[\n" else b"\n]\n")


@contextlib.contextmanager
def _packed(file: BinaryIO, packing: str) -> Iterator[BinaryIO]:
    if not packing:
        yield file
        return
    # gzip: no name and no time in the header, or equal input would not give equal bytes
    packer = gzip.GzipFile("", "wb", 6, file, 0) if packing == "gz" else zstd_library().ZstdFile(file, "wb")
    with io.BufferedWriter(packer, _BUFFER) as buffered:
        yield buffered


def _spill(path: str | os.PathLike) -> BinaryIO:
    """A file without a name beside ``path``, where there is room for it; gone with the process, even after kill -9."""
    folder = None if is_remote(path) else os.path.dirname(os.path.abspath(path))
    return tempfile.TemporaryFile(buffering=_BUFFER, dir=folder)


def _write_parquet(path: str | os.PathLike, lines: BinaryIO, file: BinaryIO) -> None:
    """Read the lines twice: which columns there are is known only after the last one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields: dict[str, pa.Field] = {}
    for block in _blocks(lines):
        for name in dict.fromkeys(chain.from_iterable(block)):
            found = pa.field(name, _column(path, name, block).type)
            fields[name] = _merged(path, fields.get(name, found), found)
    schema = pa.schema(list(fields.values()))
    for field in schema:
        try:  # what no table can hold, an object without keys for one, is known from the schema alone
            pq.ParquetWriter(io.BytesIO(), pa.schema([field])).close()
        except pa.ArrowNotImplementedError as error:
            raise _no_column(path, field.name, error) from None
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in _blocks(lines):
            columns = [_column(path, field.name, block, field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=_ROWS)


def _blocks(lines: BinaryIO) -> Iterator[list[dict[str, Any]]]:
    import orjson

    lines.seek(0)
    block, size = [], 0
    for line in lines:
        block.append(orjson.loads(line))
        size += len(line)
        if len(block) == _ROWS or size >= _BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _column(path: str | os.PathLike, name: str, block: list[dict[str, Any]], kind: Any = None) -> Any:
    import pyarrow as pa

    try:
        return pa.array([row.get(name) for row in block], kind)
    except (pa.ArrowException, OverflowError) as error:
        raise _no_column(path, name, error) from None


def _merged(path: str | os.PathLike, one: Any, other: Any) -> Any:
    import pyarrow as pa

    try:
        return pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0)
    except pa.ArrowException as error:
        raise _no_column(path, one.name, error) from None


def _no_column(path: str | os.PathLike, name: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(
        f"{path}：字段 {name} 写不成 parquet 的一列（{reason}）；各条记录里它的类型要一致，请改正，或把输出改为 .jsonl。"
    )
