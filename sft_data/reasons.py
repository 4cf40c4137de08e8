"""Why a record is dropped: a code of one byte in the columns, a name in the reports (quality.label has the Chinese one)."""

_FIELDS = ("instruction", "input", "output")
_GATES = ("empty", "too_short", "too_long", "low_chinese", "refusal", "advertisement", "drop_pattern", "too_many_urls")
REASONS = (
    *("", "bad_record", "format_marker"),
    *(f"{name}_{why}" for name in _FIELDS for why in _GATES),
    *("pii_phone", "pii_email", "pii_id_card", "pii_bank_card"),
    *("duplicate", "near_duplicate", "near_eval", "in_out"),
)
CODE = {reason: code for code, reason in enumerate(REASONS)} | {None: 0}
KEEP, BAD, MARKER = 0, CODE["bad_record"], CODE["format_marker"]
DUPLICATE, NEAR_DUPLICATE, NEAR_EVAL, IN_OUT = (CODE[name] for name in REASONS[-4:])
