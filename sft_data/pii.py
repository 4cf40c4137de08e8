"""Personal data that names one person: mobile phone, e-mail, ID card and bank card numbers of mainland China.

    check_pii(text) -> str | None      of a normalised text: the first reason to drop it
    find_pii(text) -> list[Found]      of any text: where each item lies in it
    redact_pii(text) -> str            any text with each item replaced by its Chinese name, all else untouched

Landlines and 400 numbers are not looked for: they belong to offices, and an answer may well name one.

Redaction leaves nothing that a second look would find, after ``quality.normalise`` too. That rests on three things. All
that may be an item is looked at, even where two overlap, and what overlaps goes as one. A number begins and ends where its
run of digits does. The fences on both of its sides are the same, so of two numbers with a dot between, neither is one, and
taking away the one never bares the other.
"""

import functools
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

PLACEHOLDERS = {"phone": "[手机号]", "email": "[邮箱]", "id_card": "[身份证号]", "bank_card": "[银行卡号]"}

# Fenced by "no digit" and not by \b: in 手机13812345678联系 Python's \b sees one word. A dot and a digit: a decimal.
_BEFORE, _AFTER = r"(?<![0-9])(?<![0-9]\.)", r"(?![0-9]|\.[0-9])"
_PHONE = re.compile(_BEFORE + r"(?:(?:\+|00)?86[- ]?)?1[3-9][0-9][- ]?[0-9]{4}[- ]?[0-9]{4}" + _AFTER)
# Begins at the @: a pattern that begins at the name tries every start in a long run of letters.
_EMAIL = re.compile(r"(?<=[A-Za-z0-9._%+-])@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,}")
_EMAIL_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-")
_ID_CARD = re.compile(
    _BEFORE
    + r"[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}"
    + f"(?:[0-9]{_AFTER}|[Xx])"  # an X ends a run of digits by itself
)
# Inside a look-ahead, so that a number of a wrong check digit hides no right one that begins within it.
_GROUPS = r"[2-6][0-9]{3}([- ])[0-9]{4}(?:\2[0-9]{4}){2}"
_BANK_CARDS = tuple(
    re.compile(f"{_BEFORE}(?=({number}){_AFTER})")
    for number in (r"[2-6][0-9]{15,18}", _GROUPS, _GROUPS + r"\2[0-9]{1,3}")
)
# Those that quality.normalise takes out; it leaves a joiner after an emoji, where it parts no two digits.
_ZERO_WIDTH = frozenset("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")


class Found(NamedTuple):
    """kind: a key of PLACEHOLDERS; start, end: characters of the text that was given."""

    kind: str
    start: int
    end: int


def check_pii(text: str) -> str | None:
    """Return ``pii_KIND`` of the first kind, in the order of PLACEHOLDERS, of which a normalised text has one."""
    for kind, spans in _FINDERS.items():
        if next(spans(text), None):
            return f"pii_{kind}"
    return None


def find_pii(text: str) -> list[Found]:
    """Find all items in a text that need not be normalised, in order; of items that overlap, the kind of the longest."""
    if not _may_hold_any(text):
        return []
    folded, origins = _fold(text)
    return [Found(kind, origins[start], origins[end - 1] + 1) for kind, start, end in _items(folded, origins)]


def redact_pii(text: str) -> str:
    """Replace each item by its placeholder; a text without any comes back as it is, full-width forms and all."""
    if not _may_hold_any(text):
        return text
    folded, origins = _fold(text)
    pieces, at = [], 0
    for kind, start, end in _items(folded, origins):
        first, last = origins[start], origins[end - 1]
        # Of a character such as ½ (1⁄2), what is not the item's stays: without it a longer number beside would read as one.
        before, after = bisect_left(origins, first), bisect_right(origins, last)
        pieces += [text[at:first], folded[before:start], PLACEHOLDERS[kind], folded[end:after]]
        at = last + 1
    return "".join([*pieces, text[at:]])


def _may_hold_any(text: str) -> bool:
    """Spare most texts the folding: an item has an @ or at least 11 digits."""
    if "@" in text or sum(map(text.count, "0123456789")) >= 11:
        return True
    return any(pattern.search(text) for pattern in _folds_to_item())


@functools.cache
def _folds_to_item() -> tuple[re.Pattern, re.Pattern]:
    """Find a character outside ASCII of which NFKC makes an @ or a digit. Two patterns, as ``re`` is slow at a class that
    goes beyond U+FFFF; the range that those are in holds emoji too.
    """
    chars = (chr(code) for code in range(0x80, 0x10000) if unicodedata.decomposition(chr(code)))
    found = "".join(c for c in chars if re.search("[0-9@]", unicodedata.normalize("NFKC", c)))
    return re.compile(f"[{found}]"), re.compile("[\U0001d7ce-\U0001fbf9]")


def _items(folded: str, origins: list[int]) -> list[Found]:
    """Items by their places in the folded text; those that overlap, or share a character of the text, are made one."""
    spans = ((start, end, kind) for kind, spans in _FINDERS.items() for start, end in spans(folded))
    items: list[Found] = []
    longest = 0
    for start, end, kind in sorted(spans):
        if items and origins[start] <= origins[items[-1].end - 1]:
            last = items.pop()
            kind = kind if end - start > longest else last.kind
            longest = max(longest, end - start)
            start, end = last.start, max(last.end, end)
        else:
            longest = end - start
        items.append(Found(kind, start, end))
    return items


def _fold(text: str) -> tuple[str, list[int]]:
    """Return the text as ``quality.normalise`` would have it, and the place in ``text`` of each of its characters.

    NFKC is taken one character at a time. What that leaves undone is to join a letter with the mark behind it: an e-mail
    address that ends in an accented letter is found with that letter, and nothing is missed.
    """
    chars: list[str] = []
    origins: list[int] = []
    for at, char in enumerate(text):
        for part in char if char.isascii() else unicodedata.normalize("NFKC", char):
            if part in _ZERO_WIDTH or (part.isspace() and chars[-1:] == [" "]):
                continue
            chars.append(" " if part.isspace() else part)
            origins.append(at)
    return "".join(chars), origins


def _phones(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _PHONE.finditer(text))


def _emails(text: str) -> Iterator[tuple[int, int]]:
    for match in _EMAIL.finditer(text):
        start = match.start()
        while start and text[start - 1] in _EMAIL_NAME:
            start -= 1
        yield start, match.end()


def _id_cards(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _ID_CARD.finditer(text) if _id_card_ok(match[0]))


def _bank_cards(text: str) -> Iterator[tuple[int, int]]:
    return (match.span(1) for pattern in _BANK_CARDS for match in pattern.finditer(text) if _luhn_ok(match[1]))


def _id_card_ok(number: str) -> bool:
    """Check digit of GB 11643: ISO 7064 MOD 11-2."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(weight * int(digit) for weight, digit in zip(weights, number, strict=False))
    return "10X98765432"[total % 11] == number[17].upper()


def _luhn_ok(number: str) -> bool:
    """Check digit of ISO/IEC 7812: every second digit from the right is doubled, nines cast out."""
    digits = [int(c) for c in reversed(number) if c.isdigit()]
    return (sum(digits[::2]) + sum(digit * 2 - 9 * (digit > 4) for digit in digits[1::2])) % 10 == 0


_FINDERS = {"phone": _phones, "email": _emails, "id_card": _id_cards, "bank_card": _bank_cards}
