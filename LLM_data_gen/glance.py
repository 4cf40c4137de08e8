"""A glance at the texts of many samples at once, which finds those that have to be looked at one by one.

doubtful(texts, gates) -> list[int]
"""

import numpy as np

from sft_data.quality import Gates, normalise_all, phrases
from sft_data.simhash import code_points

from .answers import FIELDS

_3400, _4DBF, _4E00, _9FFF = map(np.uint32, (0x3400, 0x4DBF, 0x4E00, 0x9FFF))


def doubtful(texts: list[str], gates: Gates) -> list[int]:
    """texts: three of each sample. Those samples of which check_sample may say something: of all others it says None."""
    if not texts:
        return []
    texts = normalise_all(texts)
    sizes, code = np.fromiter(map(len, texts), np.int64, len(texts)), code_points("".join(texts))
    ends = np.cumsum(sizes)
    bounds = np.array([gates.lengths[field] for field in FIELDS]).T  # (2, 3): at least, at most
    # Below a range wraps to far above it.
    others = np.flatnonzero((code - _4E00 > _9FFF - _4E00) & (code - _3400 > _4DBF - _3400))
    before = np.searchsorted(others, np.append(0, ends))
    ratio = 1 - (before[1:] - before[:-1]) / np.maximum(sizes, 1)
    low, high = (np.tile(bound, len(texts) // 3) for bound in bounds)
    bad = np.flatnonzero((sizes < low) | (sizes > high) | (ratio < gates.min_chinese_ratio))
    odd = others[(code[others] == ord("<")) | (code[others] >> 11 == 0xD800 >> 11)]  # markers begin so; half a pair
    places = [*bad.tolist(), *np.searchsorted(ends, odd, side="right").tolist()]
    return sorted({*(place // 3 for place in places), *_with_phrases(texts[2::3])})


def _with_phrases(outputs: list[str]) -> set[int]:
    """Those in which there may be something to find for check_output. No match goes over a line's end."""
    lines, rows, at = "\n".join(outputs).encode(errors="surrogatepass"), [0], 0
    for match in phrases().finditer(lines):
        rows.append(rows[-1] + lines.count(b"\n", at, match.start()))
        at = match.start()
    return set(rows[1:])
