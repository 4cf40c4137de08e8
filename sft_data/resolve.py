"""Between the passes: find duplicates over all records together, and what is too close to an evaluation record.

drop_duplicates(table, near, exact, sets_of) -> None       sets codes, twins and distances
hold_out(table, size, bits, seed) -> {source: indices}     evaluation records; what is close to one leaves training
"""

from collections.abc import Callable, Iterable

import numpy as np

from .dedup import find_twins, neighbours
from .engine import run_here
from .minhash import find_twins_minhash
from .mixture import draw, held_out
from .reasons import DUPLICATE, NEAR_DUPLICATE, NEAR_EVAL
from .scan import Near
from .table import Table, exact_twins

EVAL_BITS = 6  # to keep an evaluation record's likes out of training; 8 took paraphrases of short answers with them
OLD = ("out", "eval")  # what an earlier run wrote: it stays as it is, and new records give way to it


def drop_duplicates(
    table: Table,
    near: Near | None,
    exact: bool,
    sets_of: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    progress: Callable[[list], Iterable] = list,
    run: Callable = run_here,
) -> None:
    """Keep the first of every group, in order of preference. near: by its marks, ``table.marks[0]``; not ``exact``: only
    what an earlier run wrote already is left out.

    sets_of: the feature sets of records, by their indices among those that passed; asked for MinHash's candidates.
    """
    old = table.rows_of(*OLD)[table.passed]
    everything = np.arange(len(table.passed))
    twin = exact_twins(table.prints)
    if not exact:
        twin[(twin >= 0) & ~old[twin]] = -1
    table.drop_twins(everything, twin, np.zeros(len(twin), np.float32), DUPLICATE, old)
    if near is None:
        return
    alive = table.alive()
    marks = table.marks[0][alive]
    if near.method == "simhash":
        twins = find_twins(marks, int(near.threshold), progress, run)
    else:
        twins = find_twins_minhash(marks, lambda indices: sets_of(alive[indices]), near.threshold, progress, run)
    table.drop_twins(alive, twins.twin, twins.distance, NEAR_DUPLICATE, old)


def hold_out(table: Table, names: list[str], size: float, bits: int, seed: int) -> dict[str, np.ndarray]:
    """Choose evaluation records of each source, {name: indices among those that passed}, and drop from training whatever
    is within ``bits`` of one, by the last of the marks: SimHash over bigrams.
    """
    alive = {name: table.alive(name) for name in names}
    counts = held_out({name: len(indices) for name, indices in alive.items()}, size)
    chosen = {
        name: indices[draw(table.prints[indices], counts[name], seed, f"eval {name}")]
        for name, indices in alive.items()
    }
    evaluated = np.concatenate([*chosen.values(), table.alive("eval")]).astype(np.int64)
    rest = np.setdiff1d(np.concatenate(list(alive.values())), evaluated)
    if len(evaluated):
        close = neighbours(table.marks[-1][rest], table.marks[-1][evaluated], bits)
        table.drop(rest[close], NEAR_EVAL)
        for i in rest[close].tolist():
            far = np.bitwise_count(table.marks[-1][evaluated] ^ table.marks[-1][i])
            table.twin[i], table.distance[i] = evaluated[far.argmin()], far.min()
    return chosen
