"""What the report's page says of the output itself, gathered while its rows go by: counts, and a few rows to read.

seen = Seen(seed)
seen.add(row, texts)       each row of the file, in its order; texts: (role, content) of its messages
seen.drawn()               (row, its messages): every row is as likely to be drawn as any other
"""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sft_data.chatml import ROLE_TO_NAME, parse_chatml

SAMPLES = 12  # to read


class Seen:
    """lengths: role -> {characters: how many texts}; topics: topic -> how many rows."""

    def __init__(self, seed: int = 0):
        self.count = 0
        self.lengths = {role: Counter() for role in ROLE_TO_NAME}
        self.topics: Counter[str] = Counter()
        self._drawn: list[tuple[int, dict[str, Any]]] = []
        self._chance = random.Random(seed)

    def add(self, row: dict[str, Any], texts: Iterable[tuple[str, str]]) -> None:
        for role, text in texts:
            self.lengths[role][len(text)] += 1
        if isinstance(row.get("topic"), str):
            self.topics[row["topic"]] += 1
        # Reservoir sampling (Vitter 1985, algorithm R).
        place = self.count if self.count < SAMPLES else int(self._chance.random() * (self.count + 1))
        if place < SAMPLES:
            self._drawn[place : place + 1] = [(self.count, row)]
        self.count += 1

    def drawn(self) -> list[tuple[dict[str, Any], list[dict[str, str]]]]:
        """In the order of the file."""
        rows = [row for _, row in sorted(self._drawn, key=lambda one: one[0])]
        return [(row, parse_chatml(row["text"])) for row in rows]
