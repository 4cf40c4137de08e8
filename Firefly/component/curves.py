"""loss.png: training and held-out loss, learning rate and gradient norm of a run, drawn from the trainer's log."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from .watch import History, best_evaluation, series

BLUE, ORANGE, GREY = "#2563a8", "#d9541e", "#5f6b7a"
SOURCES = ("#2a9d8f", "#8e5bb5", "#c9930a", "#c2447d", "#5a7d2a", "#3fa7d6", "#8c5a3c")
CJK_FONTS = (
    "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei",
    "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS",
)  # fmt: skip


def smooth(values: list[float]) -> np.ndarray:
    """Mean over a window around each value, which has no lag: an eighth of the values wide, less at both ends.

    NaN and inf are left out of the means.
    """
    array = np.asarray(values, float)
    known = np.isfinite(array)
    sums, counts = (np.concatenate([[0.0], np.cumsum(x)]) for x in (np.where(known, array, 0.0), known))
    here = np.arange(len(array))
    reach = np.minimum(max(2, len(array) // 16), here)  # a loss falls fast at the start: as far ahead as back
    low, high = here - reach, np.minimum(here + reach + 1, len(array))
    with np.errstate(invalid="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])


def draw_curves(history: History, path: str | os.PathLike, source_names: dict[str, str] | None = None) -> bool:
    """Draw a TrainerState's log_history to ``path`` (PNG), written beside and renamed.

    Args:
        source_names: what to call the source of each ``eval_loss_KEY``; its key where not given.

    Returns:
        False when there is nothing to draw yet.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, and no display is looked for

    steps, losses = series(history, "loss")
    if not steps and not best_evaluation(history):
        return False
    figure = Figure(figsize=(9, 8), dpi=120, layout="constrained")
    top, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    _draw_losses(top, history, steps, losses, source_names or {})
    _draw_line(rate, *series(history, "learning_rate"), "learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rate.set_ylim(bottom=0)
    norms = series(history, "grad_norm")
    _draw_line(norm, *norms, "gradient norm")
    positive = [value for value in norms[1] if math.isfinite(value) and value > 0]
    if positive and max(positive) > 20 * min(positive):
        norm.set_yscale("log")
    norm.set_xlabel("step")
    norm.xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    for axes in (top, rate, norm):
        axes.grid(color="#e3e7ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    part = Path(f"{path}.part")
    figure.savefig(part, format="png")
    os.replace(part, path)
    return True


def _draw_losses(axes: Any, history: History, steps: list[int], losses: list[float], names: dict[str, str]) -> None:
    many = len(steps) > 5
    if steps:
        faint = {"alpha": 0.25, "linewidth": 1} if many else {"marker": "o", "markersize": 3}
        axes.plot(steps, losses, color=BLUE, label=None if many else "train", **faint)
    if many:
        axes.plot(steps, smooth(losses), color=BLUE, linewidth=2, label="train (smoothed)")
    keys = list(dict.fromkeys(key for entry in history for key in entry if key.startswith("eval_loss_")))
    cjk = _cjk_font()
    for number, key in enumerate(keys):
        name = names.get(key.removeprefix("eval_loss_"), key.removeprefix("eval_loss_"))
        label = name if name.isascii() or cjk else f"source {number + 1}"
        style = "--" if number < len(SOURCES) else ":"
        axes.plot(
            *series(history, key), style, color=SOURCES[number % len(SOURCES)], linewidth=1.2, marker=".", label=label
        )
    if best := best_evaluation(history):
        axes.plot(*series(history, "eval_loss"), color=ORANGE, linewidth=2, marker="o", markersize=4, label="held-out")
        axes.plot(*best, marker="*", markersize=14, color=ORANGE, markeredgecolor="white", linestyle="", zorder=5,
                  label=f"best held-out: {best[1]:.3f} at step {best[0]}")  # fmt: skip
    axes.set_ylabel("loss")
    axes.set_title("Training and held-out loss", loc="left", color="#222b36")
    axes.legend(frameon=False, fontsize=9, prop={"family": ["DejaVu Sans", *cjk], "size": 9})


def _draw_line(axes: Any, steps: list[int], values: list[float], name: str) -> None:
    axes.plot(steps, [value if math.isfinite(value) else math.nan for value in values], color=GREY, linewidth=1.4)
    axes.set_ylabel(name)


def _cjk_font() -> list[str]:
    """The first font of this machine that has Chinese, in a list, or an empty one."""
    from matplotlib import font_manager

    here = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in CJK_FONTS if name in here][:1]
