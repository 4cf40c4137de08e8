"""Held-out losses of several models on the same records: figures per source, and paired differences, with intervals."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from . import bootstrap
from .errors import UserError
from .eval_records import HeldOut


@dataclass(frozen=True)
class Losses:
    """What was measured. sums, tokens: (records, models) float64, cross-entropy and target tokens of each record.

    sources: of each record. groups: models with the same number predict the same tokens, so their losses compare.
    """

    names: list[str]
    sources: list[str]
    groups: dict[str, int]
    sums: np.ndarray
    tokens: np.ndarray


def loss_report(held: HeldOut, sums: list[list[float]], seed: int, leaked: Collection[str] = ()) -> dict:
    """What is reported of one set of records.

    Args:
        sums: for each model, the summed loss of each record.
        leaked: where the records stand that leaked and count all the same. The differences without them come along,
            and where none is left, none is a gain.
    """
    counts = [[sum(x != -100 for x in labels[1:]) for _, labels in pairs] for pairs in held.encoded.values()]
    for name, values in zip(held.encoded, sums, strict=True):
        if bad := [held.records[i].where for i, value in enumerate(values) if not math.isfinite(value)]:
            raise UserError(
                f"模型 {name} 在 {len(bad)} 条记录上的损失不是有限的数（第一条是 {bad[0]}）：权重坏了，或精度不够，可试 --dtype float32。"
            )
    names, sources = list(held.encoded), [record.source for record in held.records]
    losses = Losses(names, sources, held.groups, np.array(sums, float).T, np.array(counts, float).T)
    models, differences = analyse(losses, seed)
    clean = [i for i, record in enumerate(held.records) if record.where not in leaked]
    report = {
        "read": held.read,
        "evaluated": len(held.records),
        "dropped": held.dropped,
        "truncated": held.truncated,
        "notes": held.notes,
        "models": models,
        "differences": differences,
    }
    if len(clean) < len(sources):
        report["without_leaked"] = {"records": len(clean), "differences": analyse(losses, seed, clean)[1]}
        unseen = {losses.sources[i] for i in clean} | ({None} if clean else set())
        for row in differences:
            if row["verdict"] == "better" and row["source"] not in unseen:
                row["verdict"] = "leaked"
    return report


def analyse(losses: Losses, seed: int, only: Sequence[int] | None = None) -> tuple[dict[str, dict], list[dict]]:
    """Return each model's figures, over all and ``by_source``, and the differences of the pairs, over all and by source.

    Records are what is resampled: the tokens of one answer hang together. ``only``: of these records.
    """
    rows = range(len(losses.sources)) if only is None else only
    if not rows:
        return {}, []
    models, differences = _analyse_rows(losses, rows, None, seed)
    found = sorted({losses.sources[i] for i in rows})
    for result in models.values():
        result["by_source"] = {}
    for source in found:
        parts, more = _analyse_rows(losses, [i for i in rows if losses.sources[i] == source], source, seed)
        for name, part in parts.items():
            models[name]["by_source"][source] = part
        if len(found) > 1:
            differences += more
    return models, differences


def _analyse_rows(
    losses: Losses, rows: Sequence[int], source: str | None, seed: int
) -> tuple[dict[str, dict], list[dict]]:
    width, count = len(losses.names), len(rows)
    sums, tokens = losses.sums[list(rows)], losses.tokens[list(rows)]
    totals = bootstrap.resample(np.hstack([sums, tokens]), seed)
    draws = totals[:, :width] / totals[:, width:]  # (resamples, models)
    models = {}
    for i, name in enumerate(losses.names):
        targets = int(tokens[:, i].sum())
        models[name] = _figures(math.fsum(sums[:, i]) / targets, bootstrap.interval(draws[:, i], count)) | {
            "records": count,
            "target_tokens": targets,
        }
    differences = []
    for before, after in bootstrap.pairs_to_compare(losses.names):
        if losses.groups[before] != losses.groups[after]:
            continue
        a, b = losses.names.index(before), losses.names.index(after)
        bounds = bootstrap.interval(draws[:, b] - draws[:, a], count)
        differences.append(
            {
                "metric": "loss",
                "source": source,
                "before": before,
                "after": after,
                "difference": models[after]["loss"] - models[before]["loss"],
                "interval": bounds,
                "records": count,
                "verdict": bootstrap.judge(bounds, count, lower_is_better=True),
            }
        )
    return models, differences


def _figures(loss: float, bounds: list[float] | None) -> dict:
    return {
        "loss": loss,
        "loss_interval": bounds,
        "perplexity": _perplexity(loss),
        "perplexity_interval": bounds and [round(_perplexity(x), 6) for x in bounds],
    }


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700))
