"""What the evaluation scripts share: NAME=VALUE flags, and files written beside and renamed. Standard library only."""

from pathlib import Path

from .errors import UserError


def parse_named(values: list[str], flag: str, example: str) -> dict[str, str]:
    """Turn NAME=VALUE into {name: value}, in order; UserError for another form or a name used twice."""
    named: dict[str, str] = {}
    for value in values:
        name, _, rest = value.partition("=")
        if not name or not rest:
            raise UserError(f"{flag} {value}：应写成 名字=路径，例如 {example}。")
        if "/" in name or not name.isprintable() or len(name.encode()) > 100:  # files are named after it
            raise UserError(f"{flag} {value}：名字应简短，不含 / 和看不见的字符，请换一个名字，例如 {example}。")
        if name in named:
            raise UserError(f"{flag} {value}：名字 {name} 用了两次，请换一个名字。")
        named[name] = rest
    return named


def make_folder(path: str) -> None:
    """Make an output folder if need be; UserError when a file of that name is there, or nothing can be written in it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path}：这是一个文件，请给出文件夹。") from None
    probe = Path(path) / ".writable"
    probe.touch()
    probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file. Lone surrogates become question marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="replace")
    part.replace(path)
