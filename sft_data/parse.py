"""The three texts of an open-data record, taken out of its JSON by compiled code, a block of records at a time.

    parse(data, starts, ends) -> (ordinary, Columns)      what is no ordinary record is left to orjson and the plain functions

Ordinary is an object with instruction, output and perhaps input, or with input and target, whose values are all strings;
other keys may stand beside them. A string is read as RFC 8259 has it: escapes, well-formed UTF-8 (RFC 3629), no control
characters. At anything else, well-formed or not, the record is passed over: to say what is wrong is not for this.
"""

import numba
import numpy as np

from .kernel import _encode, copied
from .screen import Columns

_FORMS = ("instruction", "input", "output", "target")
_CARRIED = ("category", "kind", "topic")  # beside the text, see chatml.carried
_NOT_PLAIN = ("history", "system", "text", "conversation", "conversations", "messages")  # another form, see formats.py
_KEYS = [key.encode() for key in (*_FORMS, *_CARRIED, *_NOT_PLAIN)]
_LETTERS = np.frombuffer(b"".join(_KEYS), np.uint8)
_ENDS = np.cumsum([len(key) for key in _KEYS])
_INSTRUCTION, _INPUT, _OUTPUT, _TARGET, CATEGORY, KIND, TOPIC = range(len(_FORMS) + len(_CARRIED))
ODD = 1 << 32  # what a \\u or \\/ counts, for it may be written in another way
KNOWN = len(_FORMS) + len(_CARRIED)


def parse(data: bytes, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, Columns]:
    """Return which records are ordinary, (records,) bool, and the fields of those, untidied but for an empty input.

    starts, ends: (records,) int64, where each lies in ``data``.
    """
    letters, n = np.frombuffer(data, np.uint8), len(starts)
    memory, text_ends = np.empty(len(letters) + 4, np.uint8), np.empty(3 * n, np.int64)
    kinds, counts = np.empty(3 * n, np.int8), np.zeros(n, np.int64)
    used = _parse(letters, starts, ends, memory, text_ends, kinds, counts)
    last = int(text_ends[used - 1]) if used else 0
    return counts > 0, Columns(memory[:last], text_ends[:used], kinds[:used], counts[counts > 0])


@numba.njit(cache=True, nogil=True)
def _parse(data, starts, ends, memory, text_ends, kinds, counts):
    used, out, found = 0, 0, np.empty((KNOWN, 3), np.int64)
    for record in range(len(starts)):
        if not find(data, starts[record], ends[record], found):
            continue
        at, place, good = out, used, True
        for kind, key in enumerate(keys_of(found)):
            if key < 0 or (kind == 1 and found[key, 0] == found[key, 1]):
                continue
            before = at
            at = unescape(data, found[key], memory, at)
            if kind == 1 and not says_something(memory, before, at):
                good = False
                break
            text_ends[place], kinds[place] = at, kind
            place += 1
        if good:
            counts[record] = place - used
            out, used = at, place
    return used


@numba.njit(cache=True, nogil=True)
def keys_of(found):
    """Which keys hold the instruction, the input and the output; -1: none does. All -1: the record is not ordinary."""
    if found[_OUTPUT, 0] < 0 and found[_TARGET, 0] >= 0:
        return (_INPUT, -1, _TARGET) if found[_INPUT, 0] >= 0 else (-1, -1, -1)
    if found[_OUTPUT, 0] < 0 or found[_INSTRUCTION, 0] < 0:
        return -1, -1, -1
    return _INSTRUCTION, _INPUT if found[_INPUT, 0] >= 0 else -1, _OUTPUT


@numba.njit(cache=True, nogil=True)
def find(data, at, end, found):
    """Fill ``found``, (KNOWN, 3) int64, with where the values of the known keys lie, between their quotes, and how many escapes
    they have (-1: no such key); False when the record is not ordinary. A key that comes twice has its last value, as for
    other parsers.
    """
    found[:] = -1
    at = _skip(data, at, end)
    if at == end or data[at] != 123:  # {
        return False
    at = _skip(data, at + 1, end)
    while at < end and data[at] == 34:
        key_start = at + 1
        at, escapes = _string_end(data, at + 1, end)
        if at < 0:
            return False
        key = _key(data, key_start, at)
        at = _skip(data, at + 1, end)
        if key == -2 or at == end or data[at] != 58:  # :
            return False
        at = _skip(data, at + 1, end)
        if at == end or data[at] != 34:
            return False
        start = at + 1
        at, escapes = _string_end(data, at + 1, end)
        if at < 0:
            return False
        if key >= 0:
            found[key, 0], found[key, 1], found[key, 2] = start, at, escapes
        at = _skip(data, at + 1, end)
        if at < end and data[at] == 44:  # ,
            at = _skip(data, at + 1, end)
            if at == end or data[at] != 34:
                return False
        elif at < end and data[at] == 125:  # }
            return _skip(data, at + 1, end) == end
        else:
            return False
    return False


@numba.njit(cache=True, nogil=True)
def _skip(data, at, end):
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _key(data, start, end):
    """Index of a known key; -1: a key that says nothing; -2: one that makes the record another form, or has an escape."""
    for i in range(start, end):
        if data[i] == 92:
            return -2
    first = 0
    for k in range(len(_ENDS)):
        if _ENDS[k] - first == end - start:
            i = 0
            while i < end - start and _LETTERS[first + i] == data[start + i]:
                i += 1
            if i == end - start:
                return k if k < KNOWN else -2
        first = _ENDS[k]
    return -1


@numba.njit(cache=True, nogil=True)
def _string_end(data, at, end):
    """Where the closing quote is, and the number of escapes before it; -1 when there is none, or a control character, an
    escape that is none, or bytes that are no UTF-8 come before it.
    """
    escapes = 0
    while at < end:
        byte = data[at]
        if 0xE1 <= byte <= 0xEC or byte == 0xEE or byte == 0xEF:  # first, for it is most of a Chinese text
            if at + 2 >= end or data[at + 1] & 0xC0 != 0x80 or data[at + 2] & 0xC0 != 0x80:
                return -1, 0
            at += 3
        elif byte < 0x80:
            if byte == 34:
                return at, escapes
            if byte < 32:
                return -1, 0
            at += 1
            if byte == 92:
                escapes += ODD if at < end and (data[at] == 117 or data[at] == 47) else 1
                at = _escape_end(data, at, end)
                if at < 0:
                    return -1, 0
        else:
            at = _rare_end(data, at, end)
            if at < 0:
                return -1, 0
    return -1, 0


@numba.njit(cache=True, nogil=True)
def _escape_end(data, at, end):
    if at == end:
        return -1
    byte = data[at]
    if byte == 117:  # u, and half of a pair is not for us
        if at + 4 >= end or 0xD800 <= _hex(data, at + 1) < 0xE000 or _hex(data, at + 1) < 0:
            return -1
        return at + 5
    for known in (34, 92, 47, 98, 102, 110, 114, 116):  # " \\ / b f n r t
        if byte == known:
            return at + 1
    return -1


@numba.njit(cache=True, nogil=True)
def _hex(data, at):
    """The number that four hexadecimal digits make, or -1."""
    code = 0
    for i in range(at, at + 4):
        byte = data[i]
        if 48 <= byte <= 57:
            digit = byte - 48
        elif 97 <= byte | 32 <= 102:
            digit = (byte | 32) - 87
        else:
            return -1
        code = code << 4 | digit
    return code


@numba.njit(cache=True, nogil=True)
def _rare_end(data, at, end):
    """Where a character ends that begins with neither an ASCII byte nor the usual first of three; -1: it is malformed."""
    byte = data[at]
    if 0xC2 <= byte <= 0xDF:
        low, high, more = 0x80, 0xBF, 1
    elif byte == 0xE0:
        low, high, more = 0xA0, 0xBF, 2
    elif byte == 0xED:
        low, high, more = 0x80, 0x9F, 2
    elif byte == 0xF0:
        low, high, more = 0x90, 0xBF, 3
    elif 0xF1 <= byte <= 0xF3:
        low, high, more = 0x80, 0xBF, 3
    elif byte == 0xF4:
        low, high, more = 0x80, 0x8F, 3
    else:
        return -1
    if at + more >= end or not low <= data[at + 1] <= high:
        return -1
    for i in range(at + 2, at + more + 1):
        if data[i] & 0xC0 != 0x80:
            return -1
    return at + more + 1


@numba.njit(cache=True, nogil=True)
def unescape(data, place, memory, out):
    """Write a string that ``find`` has found, ``place`` its row; return where it ends in ``memory``."""
    at, end, escapes = place
    if not escapes:
        return copied(data[at:end], memory, out)
    while at < end:
        byte = data[at]
        at += 1
        if byte != 92:
            memory[out] = byte
            out += 1
            continue
        byte = data[at]
        at += 1
        if byte == 117:
            out = _encode(np.uint32(_hex(data, at)), memory, out)
            at += 4
            continue
        if byte == 110:
            byte = 10
        elif byte == 116:
            byte = 9
        elif byte == 114:
            byte = 13
        elif byte == 98:
            byte = 8
        elif byte == 102:
            byte = 12
        memory[out] = byte
        out += 1
    return out


@numba.njit(cache=True, nogil=True)
def says_something(memory, at, end):
    """Whether a text surely is not empty once it is tidied: it has a visible ASCII character or a usual ideograph."""
    while at < end and not (32 < memory[at] < 127 or 0xE5 <= memory[at] <= 0xE8):
        at += 1
    return at < end
