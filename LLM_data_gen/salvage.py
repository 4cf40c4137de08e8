"""Take a damaged answer sample by sample: bare quotes, missing brackets, Chinese punctuation, a cut in the middle.

    salvage(text) -> (samples, problem)         as answers.read_answer gives them

Each sample begins at a brace with a field name, so one that is damaged does not spoil its neighbours, and a sound one
is never altered. A damaged one is read by where its field names stand; json-repair sees only what that leaves.
"""

import json
import re
from typing import Any, NamedTuple

from .answers import FIELDS, NAMES, PROBLEMS, parsed_within, samples_in

_QUOTES = "\"＂“”'‘’"
_CLOSERS = {'"': '"”', "＂": '＂"', "'": "'’", "‘": "‘’'", "’": "‘’'"}  # what may close a string; others: “”"

_KNOWN = "|".join(NAMES)
_KEY = re.compile(
    rf"(?P<open>[{{｛]\s*)?(?:[{_QUOTES}]\s*(?:(?P<known>{_KNOWN})|(?P<other>[a-z0-9_]{{1,30}}))\s*[{_QUOTES}]"
    rf"|(?P<bare>{_KNOWN}))\s*[:：]",
    re.IGNORECASE,
)
_QUOTED_NAME = re.compile(rf"[{_QUOTES}]\s*(?:{_KNOWN})\s*[{_QUOTES}]\s*\\?[:：]", re.IGNORECASE)
# What stands before a brace that opens a sample, and before a field name; in running text neither does.
_BEFORE_OPEN = re.compile(rf"(?:\A|[\[\]}}｝］`,]|[{_QUOTES}]\s*，?|(?:\A|[}}｝\]`])[^{_QUOTES}{{}}\[\]]*)\s*\Z")
_BEFORE_INNER = re.compile(rf"[{_QUOTES}]\s*[:：]\s*\Z")
_BEFORE_KEY = re.compile(rf"(?:[{_QUOTES}\]}}｝0-9]\s*[,，;；]?|,)\s*\Z")
_BEFORE_OTHER = re.compile(r"[\"'\]}0-9el]\s*,\s*\Z")  # e and l: true, false, null
_BEFORE_NUMBER = re.compile(r"[}｝]\s*,\s*\Z")  # {"1": {...}, "2": {...}}
_LOOK_BACK = 200  # characters

_SENTENCE_ENDS = "。？！…；）"
# What may follow a whole sample: brackets, fences, prose. Only after a closed array may the prose hold quotes.
_TAIL = r"\s*(?:[,，;；]\s*)?(?:[\]］]\s*`*\n[^{}]*|[\]］}｝`\n][^\"{}]*)?\Z"
_CLOSED = re.compile(rf"[}}｝]{_TAIL}|\]\s*`*\s*\Z")
_END = re.compile(rf"(?:[{_QUOTES}]|(?<=[{_SENTENCE_ENDS}]))\s*(?:[,，]\s*)?(?:[}}｝]{_TAIL}|\]\s*`*\s*\Z)")
_END_WITHOUT_BRACE = re.compile(rf"[{_QUOTES}]\s*(?:[,，;；]\s*)?\Z")
_ARRAY_ENDS = re.compile(rf"[}}｝{_QUOTES}]\s*(?:[,，]\s*)?[\]］]")
_BEGUN = re.compile(
    rf"(?<=[}}｝])\s*(?:[,，]\s*)?[{{｛]\s*(?:[{_QUOTES}]\w*[{_QUOTES}]?\s*)?\Z"
)  # by a sample cut at once
# JSON has no comments. One that stood within a string takes its closing quote along, so that the rest is no JSON either.
_COMMENTS = re.compile(r'(?<=[\[{}\],"])(?:\s*(?:(?://|#)[^\n]{0,200}(?=\n)|/\*.{0,200}?\*/))+', re.DOTALL)
_ESCAPES = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[\"\\/bfnrt'])|\\|\"")
_CJK = re.compile("[\u3400-\u9fff]")
_BLANKS = re.compile(r"\s{1000,}")  # what a model that has lost its way writes on and on
_MOST_TO_REPAIR = 20_000  # characters; no sample is as long, and json-repair is slow on what it cannot make out


class _Key(NamedTuple):
    start: int  # of its brace, if it has one
    end: int
    name: str | None  # None: not one of the three
    opens: bool


def salvage(text: str) -> tuple[list[Any], str | None]:
    """Return the samples in a text that is not JSON as a whole, and the worst problem among them."""
    bare, comments = _COMMENTS.subn("", text)
    if comments and (found := parsed_within(bare)):
        return found, "repaired"
    text = _BEGUN.sub("", _BLANKS.sub("\n", text))
    groups = _groups(_keys(text))
    named = {group[0].start for group in groups if any(key.name for key in group)}
    if not named:
        return _unescaped(text)
    decoder = json.JSONDecoder(strict=False)  # a raw newline inside a string is common and harmless
    samples, problems, position = [], set(), 0
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        start = group[0].start
        if start < position or start not in named:
            continue  # inside what has been read already, or something else
        try:
            value, position = decoder.raw_decode(text, start)
            found = samples_in(value) if isinstance(value, dict) else []
        except (ValueError, RecursionError):
            found = []
        last = position - 1 if found else start
        if not found:
            position = following[0].start if following else len(text)
            sample, problem = _one_damaged(text, group, position, following is None)
            found = [sample]
            problems.add(problem)
        samples += found
    if text[: min(named)].rstrip().endswith("[") and not _ARRAY_ENDS.search(text, last):
        problems.add("cut_off")  # or between two samples
    return samples, next((problem for problem in PROBLEMS if problem in problems), None)


def _unescaped(text: str) -> tuple[list[Any], str | None]:
    """Read an answer in which every quote is escaped, as if it were the inside of a string."""
    try:
        inner = json.loads(f'"{text}"', strict=False)
    except ValueError:
        inner = text
    return salvage(inner) if len(inner) < len(text) else ([], "no_samples")


def _keys(text: str) -> list[_Key]:
    """Find the field names that stand where JSON has them."""
    keys = []
    for match in _KEY.finditer(text):
        name, start = match["known"] or match["bare"], match.start()
        back = max(0, start - _LOOK_BACK)
        if match["open"]:
            inner = name and _BEFORE_INNER.search(text, back, start)
            opens = bool(not keys or inner or _BEFORE_OPEN.search(text, back, start))
        else:
            opens = bool(not name and _BEFORE_NUMBER.search(text, back, start))
        before = _BEFORE_KEY if match["known"] else _BEFORE_OTHER
        if opens or (not match["open"] and ((name and not keys) or before.search(text, back, start))):
            keys.append(_Key(start, match.end(), NAMES[name.casefold()] if name else None, opens))
    return keys


def _groups(keys: list[_Key]) -> list[list[_Key]]:
    """Put the names of each sample together. Where a brace is missing, the first name tells that a new sample begins."""
    first = next((key.name for key in keys if key.name), None)
    groups: list[list[_Key]] = []
    for key in keys:
        names = [known.name for known in groups[-1]] if groups else []
        if key.opens or not groups or (key.name == first and first in names):
            groups.append([key])
        elif not key.name or key.name not in names:
            groups[-1].append(key)
    return groups


def _one_damaged(text: str, keys: list[_Key], end: int, is_last: bool) -> tuple[Any, str]:
    """Return (sample, "repaired"), or the piece as text with what is wrong."""
    piece = text[keys[0].start : end]
    closed = bool(_CLOSED.search(piece))
    sample = _by_fields(text, keys, end, is_last) or (closed and _by_json_repair(piece)) or None
    if sample:
        return sample, "repaired"
    return piece.rstrip(",，;； \n"), "cut_off" if is_last and not closed else "damaged"


def _by_fields(text: str, keys: list[_Key], end: int, is_last: bool) -> dict[str, Any] | None:
    """Read a sample by where its field names stand: what lies between two of them is a value, whatever quotes it holds."""
    sample: dict[str, Any] = {}
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        segment = text[key.end : following.start if following else end].strip()
        try:
            if following is None:
                segment = segment[: _end_of_value(segment, is_last)]
            value = _value(segment.rstrip(",，;； \n")) if key.name else None
        except ValueError:
            return None
        if key.name:
            if isinstance(value, str) and _QUOTED_NAME.search(value):
                return None  # where this value ends is anybody's guess
            sample[key.name] = value
    return sample


def _end_of_value(text: str, is_last: bool) -> int:
    """Return where the last value of a sample ends: before its brace. ValueError when it has no end."""
    if text.startswith(("[", "{")):
        return json.JSONDecoder().raw_decode(text)[1]
    end = _END.search(text) or (None if is_last else _END_WITHOUT_BRACE.search(text))
    if not end:
        raise ValueError(text)
    return end.start() + (text[end.start()] in _QUOTES)


def _value(text: str) -> Any:
    """Read a value: a string in any quotes, one of which may be missing; or JSON. ValueError when it is neither."""
    quote = text[:1]
    if not quote or quote not in _QUOTES:
        if text[-1:] == '"' and _CJK.match(text):
            return _string(text[:-1])
        return json.loads(text)
    closes = len(text) > 1 and text[-1] in _CLOSERS.get(quote, '“”"')
    if closes and (quote != '"' or text[-1] == '"' or text.count("”") > text.count("“")):
        return _string(text[1:-1])
    if text[-1] in _SENTENCE_ENDS + "”":
        return _string(text[1:])
    raise ValueError(text)


def _string(body: str) -> str:
    """Undo the escapes of a string in which some are missing and some are none: a bare quote or backslash is itself."""

    def escaped(match: re.Match) -> str:
        return {'"': '\\"', "\\": "\\\\", "\\'": "'"}.get(match[0], match[0])

    if (len(body) - len(body.rstrip("\\"))) % 2:
        body = body[:-1]  # its closing quote was escaped
    return json.loads(f'"{_ESCAPES.sub(escaped, body)}"', strict=False)


def _by_json_repair(piece: str) -> dict[str, Any] | None:
    """Leave one damaged sample to json-repair, and take its word only when no Chinese character is lost or added."""
    if len(piece) > _MOST_TO_REPAIR:
        return None
    piece = piece[: max(piece.rfind("}"), piece.rfind("｝")) + 1] or piece
    import json_repair

    try:
        found = samples_in(json_repair.loads(piece, skip_json_loads=True))
    except (ValueError, RecursionError, IndexError):
        return None
    if len(found) != 1 or not isinstance(found[0], dict) or not all(field in found[0] for field in FIELDS):
        return None
    texts = "".join(value for value in found[0].values() if isinstance(value, str))
    whole = _CJK.findall(piece) == _CJK.findall(texts) and not _QUOTED_NAME.search(texts)
    return found[0] if whole else None
