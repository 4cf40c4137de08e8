"""What gates and dedup need to know of many texts at once, compiled: the figures of quality.normalise and chinese_ratio,
bit for bit, at 1/20 of their time.

    measure(data, ends, counts) -> Measures             texts of a batch of records, and how many belong to each record
    joined(memory, spans) -> (lines, ends)              parts of them, a line each

NFKC goes through a table, one code point at a time. That is exact as long as no code point can join with, or be moved
before, the one in front of it (Unicode Standard Annex 15, section 9): a record that holds such a one, or a zero-width
character, is marked ``rough`` and is for the plain functions.
"""

import functools
import itertools
import unicodedata
from typing import NamedTuple

import numba
import numpy as np

KEEP, SPACE, REPLACE, ROUGH = range(4)
AT, DIGITS, LINK = 1, 2, 4  # what a text must hold for an e-mail address, a number that names somebody, a link
_LIMIT = 0x30000  # code points from here on are rough
# All but ideographs, Hangul syllables, private use: most code points by far, none of which NFKC changes.
_CHANGED = (range(0x3400), range(0xA000, 0xAC00), range(0xD7A4, 0xE000), range(0xF900, 0x20000), range(0x2F800, _LIMIT))
_ZERO_WIDTH = (0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF)
_GROWTH = 3  # a replacement of more bytes than this for each of its own makes a text rough


class Measures(NamedTuple):
    """Of a batch of records.

    bodies: normalised UTF-8, a record a line, its texts with a space between; uint8
    spans: (texts, 2) int64, where each text lies in ``bodies``
    chars, chinese: (texts,) int32, characters, and CJK ideographs among them
    flags: (texts,) uint8, AT | DIGITS | LINK
    lines: (records, 2) int64, where each record's body lies
    rough: (records,) bool, True where nothing here holds
    """

    bodies: np.ndarray
    spans: np.ndarray
    chars: np.ndarray
    chinese: np.ndarray
    flags: np.ndarray
    lines: np.ndarray
    rough: np.ndarray


def measure(data: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> Measures:
    """data: texts in UTF-8, one after the other, uint8; ends: (texts,) int64, where each ends; counts: (records,) int64, how
    many texts each record has, at least one.
    """
    last = np.cumsum(counts)
    n, bodies = len(ends), np.empty(_GROWTH * len(data) + 2 * len(ends) + 8, np.uint8)
    spans, chars, chinese = np.zeros((n, 2), np.int64), np.zeros(n, np.int32), np.zeros(n, np.int32)
    flags, lines, rough = np.zeros(n, np.uint8), np.zeros((len(last), 2), np.int64), np.zeros(len(last), bool)
    used = _measure(data, ends, last, *_tables(), bodies, spans, chars, chinese, flags, lines, rough)
    return Measures(bodies[:used], spans, chars, chinese, flags, lines, rough)


def joined(memory: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """These parts of the memory, a line each, and (n,) int64, where each line ends."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0] + 1)
    lines = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    _join(memory, spans, lines)
    return lines, ends


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return kinds (_LIMIT,) uint8; starts (_LIMIT,) int32 into replacements, uint32: a count, then code points."""
    codes = list(itertools.chain(*_CHANGED))
    chars = list(map(chr, codes))
    parts = [unicodedata.decomposition(char).split() for char in chars]
    joining = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul vowels and finals
    joining |= {int(found[1], 16) for found in parts if len(found) == 2 and not found[0].startswith("<")}
    kinds, starts, replacements = np.zeros(_LIMIT, np.uint8), np.zeros(_LIMIT, np.int32), [0]
    for code, char, found in zip(codes, chars, parts, strict=True):
        if 0xD800 <= code < 0xE000 or code in _ZERO_WIDTH or code in joining or unicodedata.combining(char):
            kinds[code] = ROUGH
        elif not found:
            kinds[code] = SPACE if char.isspace() else KEEP
        else:
            first, after = unicodedata.normalize("NFKD", char)[0], unicodedata.normalize("NFKC", char)
            grown = len(after.encode()) > _GROWTH * len(char.encode())
            if grown or unicodedata.combining(first) or ord(first) in joining:
                kinds[code] = ROUGH
            elif after == char:
                kinds[code] = KEEP
            elif after.isspace():
                kinds[code] = SPACE
            else:
                kinds[code] = REPLACE if after.split() == [after] else ROUGH
                starts[code] = len(replacements)
                replacements += [len(after), *map(ord, after)]
    return kinds, starts, np.array(replacements, np.uint32)


@numba.njit(cache=True, nogil=True)
def _decode(data, at):
    """The code point that begins at ``at``, and where the next one begins; the UTF-8 is known to be valid."""
    lead = np.uint32(data[at])
    if lead < 0x80:
        return lead, at + 1
    second = np.uint32(data[at + 1] & 0x3F)
    if lead < 0xE0:
        return ((lead & 0x1F) << 6) | second, at + 2
    third = np.uint32(data[at + 2] & 0x3F)
    if lead < 0xF0:
        return ((lead & 0x0F) << 12) | (second << 6) | third, at + 3
    return ((lead & 0x07) << 18) | (second << 12) | (third << 6) | np.uint32(data[at + 3] & 0x3F), at + 4


@numba.njit(cache=True, nogil=True)
def copied(source, memory, out):
    """Write these bytes; return where they end. Both being views of one length, LLVM makes vector code of it: three to ten
    times the speed of a slice's assignment.
    """
    target = memory[out : out + len(source)]
    for i in range(len(source)):
        target[i] = source[i]
    return out + len(source)


@numba.njit(cache=True, nogil=True)
def _encode(code, out, at):
    """Write the UTF-8 of ``code``; return where it ends."""
    if code < 0x80:
        out[at] = code
        return at + 1
    if code < 0x800:
        out[at] = 0xC0 | (code >> 6)
        out[at + 1] = 0x80 | (code & 0x3F)
        return at + 2
    if code < 0x10000:
        out[at] = 0xE0 | (code >> 12)
        out[at + 1] = 0x80 | ((code >> 6) & 0x3F)
        out[at + 2] = 0x80 | (code & 0x3F)
        return at + 3
    out[at] = 0xF0 | (code >> 18)
    out[at + 1] = 0x80 | ((code >> 12) & 0x3F)
    out[at + 2] = 0x80 | ((code >> 6) & 0x3F)
    out[at + 3] = 0x80 | (code & 0x3F)
    return at + 4


@numba.njit(cache=True, nogil=True)
def _join(memory, spans, lines):
    out = 0
    for i in range(len(spans)):
        out = copied(memory[spans[i, 0] : spans[i, 1]], lines, out)
        lines[out] = 10
        out += 1


@numba.njit(cache=True, nogil=True)
def _measure(data, ends, last, kinds, starts, replacements, bodies, spans, chars, chinese, flags, lines, rough):
    at, text, out = 0, 0, 0
    for record in range(len(last)):
        lines[record, 0] = out
        while text < last[record]:
            if out > lines[record, 0]:
                bodies[out] = 32
                out += 1
            spans[text, 0] = out
            n, ideographs, digits, w_run, slashes, waiting = 0, 0, 0, 0, 0, False
            while at < ends[text]:
                if (
                    0xE5 <= data[at] <= 0xE8 and not waiting
                ):  # U+5000 to U+8FFF, most of a Chinese text: kept as they are
                    bodies[out], bodies[out + 1], bodies[out + 2] = data[at], data[at + 1], data[at + 2]
                    at, out, n, w_run, slashes = at + 3, out + 3, n + 1, 0, 0
                    ideographs += 1
                    continue
                code, at = _decode(data, at)
                kind = kinds[code] if code < _LIMIT else np.uint8(ROUGH)
                if kind == ROUGH:
                    rough[record] = True
                    at = ends[text]
                    break
                if kind == SPACE:
                    waiting = n > 0
                    continue
                if waiting:
                    bodies[out] = 32
                    n, out, waiting, w_run, slashes = n + 1, out + 1, False, 0, 0
                first, count = 0, 1
                if kind == REPLACE:
                    first = starts[code] + 1
                    count = np.int64(replacements[first - 1])
                for i in range(first, first + count):
                    if kind == REPLACE:
                        code = replacements[i]
                    out = _encode(code, bodies, out)
                    if code < 0x80:
                        digits += 48 <= code <= 57
                        w_run = w_run + 1 if (code | 32) == 119 else 0
                        slashes = 1 if code == 58 else slashes + 1 if code == 47 and slashes else 0  # of ://
                        if code == 64:
                            flags[text] |= AT
                        if w_run == 3 or slashes == 3:
                            flags[text] |= LINK
                    else:
                        w_run, slashes = 0, 0
                        ideographs += (0x4E00 <= code <= 0x9FFF) or (0x3400 <= code <= 0x4DBF)
                n += count
            if digits >= 11:
                flags[text] |= DIGITS
            chars[text], chinese[text] = n, ideographs
            spans[text, 1] = out
            text += 1
        lines[record, 1] = out
        bodies[out] = 10
        out += 1
    return out
