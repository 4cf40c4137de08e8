"""HIT ChatML of ordinary open-data records, from JSON to JSON by compiled code: what chatml.py and orjson make of them.

chatml_lines(data, starts, ends, extra) -> [line]      b"" for what is no ordinary record (parse.py)
"""

import numba
import numpy as np

from .chatml import BEGIN, END, ROLE_TO_NAME
from .kernel import _decode, copied
from .parse import CATEGORY, KIND, KNOWN, ODD, TOPIC, find, keys_of, unescape

_PIECES = [  # as they stand in JSON
    piece.encode()
    for piece in (
        rf'{{"text":"{BEGIN}{ROLE_TO_NAME["user"]}\n',
        rf"\n{END}\n{BEGIN}{ROLE_TO_NAME['assistant']}\n",
        rf'\n{END}"',
        ',"category":"',
        ',"topic":"',
    )
]
_HEAD, _MIDDLE, _TAIL, _CATEGORY, _TOPIC = (np.frombuffer(piece, np.uint8) for piece in _PIECES)
_WHITE = np.array([chr(code).isspace() for code in range(0x3001)])  # what str.strip() takes off; U+3000 is the last
_SHORT = np.zeros(128, np.uint8)  # what stands behind the backslash
_SHORT[[ord(char) for char in '\b\t\n\f\r"\\']] = [ord(char) for char in 'btnfr"\\']
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def chatml_lines(data: bytes, starts: np.ndarray, ends: np.ndarray, extra: bytes) -> list[bytes]:
    """starts, ends: (records,) int64, where each lies in ``data``; they passed the gates and hold no zero-width character.
    extra: a piece of JSON, as `,"source":"firefly"`, that stands behind the text.

    Return the line of each record, with what chatml.carried finds in it; b"" where it is not ordinary.
    """
    spans = np.zeros((len(starts), 2), np.int64)
    # Written as orjson does, no string is longer than it was.
    memory = np.empty(len(data) + len(starts) * (sum(map(len, _PIECES)) + len(extra) + 8), np.uint8)
    scratch = np.empty(int((ends - starts).max(initial=0)) + 4, np.uint8)
    fixed = np.frombuffer(extra, np.uint8)
    used = _chatml_lines(np.frombuffer(data, np.uint8), starts, ends, fixed, scratch, memory, spans)
    written = memory[:used].tobytes()
    return [written[start:end] for start, end in spans.tolist()]


@numba.njit(cache=True, nogil=True)
def _chatml_lines(data, starts, ends, extra, scratch, memory, spans):
    out, found = 0, np.empty((KNOWN, 3), np.int64)
    for record in range(len(starts)):
        if not find(data, starts[record], ends[record], found):
            continue
        asked, about, answer = keys_of(found)
        if asked < 0:
            continue
        spans[record, 0], out = out, copied(_HEAD, memory, out)
        out = _stripped(data, found[asked], scratch, memory, out)
        if about >= 0:
            memory[out], memory[out + 1] = 92, 110  # \n
            after = _stripped(data, found[about], scratch, memory, out + 2)
            out = after if after > out + 2 else out  # nothing but white space is no input
        out = copied(_MIDDLE, memory, out)
        out = _stripped(data, found[answer], scratch, memory, out)
        out = copied(extra, memory, copied(_TAIL, memory, out))
        of = CATEGORY if found[CATEGORY, 0] < found[CATEGORY, 1] else KIND
        out = _carried(data, found[of], _CATEGORY, scratch, memory, out)
        out = _carried(data, found[TOPIC], _TOPIC, scratch, memory, out)
        memory[out], memory[out + 1] = 125, 10  # } and the line's end
        out += 2
        spans[record, 1] = out
    return out


@numba.njit(cache=True, nogil=True)
def _carried(data, place, name, scratch, memory, out):
    if place[0] == place[1]:  # empty, or no such key
        return out
    out = copied(name, memory, out)
    out = _escaped(scratch, 0, unescape(data, place, scratch, 0), memory, out)
    memory[out] = 34
    return out + 1


@numba.njit(cache=True, nogil=True)
def _stripped(data, place, scratch, memory, out):
    """Write a string of ``data`` as JSON, without white space at its ends; return where it ends."""
    if place[2] < ODD:  # as it is, unless an escape stands where white space may be
        start, end = _strip(data, place[0], place[1])
        if start == end or not (data[start] == 92 or (data[end - 2] == 92 and end - 2 >= start)):
            return copied(data[start:end], memory, out)
    start, end = _strip(scratch, 0, unescape(data, place, scratch, 0))
    return _escaped(scratch, start, end, memory, out)


@numba.njit(cache=True, nogil=True)
def _strip(text, start, end):
    """What str.strip() leaves of it, in UTF-8."""
    while start < end:
        code, after = _decode(text, start)
        if code >= len(_WHITE) or not _WHITE[code]:
            break
        start = after
    while end > start:
        last = end - 1
        while text[last] & 0xC0 == 0x80:
            last -= 1
        code, _ = _decode(text, last)
        if code >= len(_WHITE) or not _WHITE[code]:
            break
        end = last
    return start, end


@numba.njit(cache=True, nogil=True)
def _escaped(scratch, at, end, memory, out):
    while at < end:
        byte = scratch[at]
        at += 1
        if byte >= 32 and byte != 34 and byte != 92:
            memory[out] = byte
            out += 1
            continue
        memory[out] = 92
        if _SHORT[byte]:
            memory[out + 1] = _SHORT[byte]
            out += 2
        else:
            memory[out + 1], memory[out + 2], memory[out + 3] = 117, 48, 48  # u00
            memory[out + 4], memory[out + 5] = _HEX[byte >> 4], _HEX[byte & 15]
            out += 6
    return out
