"""What became of one source of records: what was read, what was dropped and why, what is kept."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError


@dataclass
class Source:
    """read == len(lines) + sum(dropped.values()) at every moment between records."""

    name: str
    read: int = 0
    dropped: Counter = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)  # messages of the first five unreadable records
    lines: list[bytes] = field(default_factory=list)  # kept records, as they will be written
    signatures: list[int] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def drop_bad(self, error: UserError) -> None:
        """Count an unreadable record (--skip-bad) and remember where the first five are."""
        self.drop("bad_record")
        if len(self.bad) < 5:
            self.bad.append(str(error))

    def counts(self) -> dict[str, Any]:
        """The source's part of the report; every record read is accounted for."""
        dropped = {reason: n for reason, n in sorted(self.dropped.items()) if n}
        assert self.read == len(self.lines) + sum(dropped.values()), (self.name, self.read, dropped)
        return {
            "read": self.read,
            "dropped": dropped,
            "duplicates": dropped.get("duplicate", 0) + dropped.get("near_duplicate", 0),
            "kept": len(self.lines),
            "bad_records": self.bad,
        }
