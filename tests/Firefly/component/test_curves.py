import math
import sys

import numpy as np
import pytest

from Firefly.component.curves import draw_curves, smooth


def test_smooth_is_the_mean_around_each_value():
    assert smooth([1.0, 2.0, 3.0]).tolist() == [1.0, 2.0, 2.0]
    values = [5.0, 1.0, 4.0, 2.0, 8.0, 3.0, math.nan, 6.0]
    expected = [
        np.nanmean(values[max(0, i - min(i, 2)) : i + min(i, 2) + 1]) for i in range(len(values))
    ]  # 2 on each side, as far ahead as back
    assert smooth(values) == pytest.approx(expected)
    assert np.isnan(smooth([math.nan, 1.0])[0])


def history(n=40):
    found = []
    for step in range(1, n + 1):
        found.append({"step": step, "loss": 5 / step, "grad_norm": 100.0 / step, "learning_rate": 1e-4})
        if step % 10 == 0:
            found.append({"step": step, "eval_loss": 6 / step, "eval_loss_HIT": 5 / step, "eval_loss_问答": 7 / step})
    return found


@pytest.mark.parametrize(
    "entries",
    [
        history(),
        history(2),
        history()[:1],
        [{"step": 1, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.0}],
        [{"step": 0, "eval_loss": 3.0}],
        [{"step": 1, "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}] * 9,
    ],
    ids=["whole", "short", "one", "nan", "evaluation only", "zeros"],
)
def test_a_picture_of_any_log(tmp_path, entries):
    assert draw_curves(entries, tmp_path / "loss.png", {"问答": "问答/甲"})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_nothing_to_draw_keeps_the_old_picture(tmp_path):
    (tmp_path / "loss.png").write_bytes(b"old")
    assert not draw_curves([{"step": 3, "train_runtime": 1.0}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() == b"old"


def test_each_line_shows_what_was_logged(tmp_path, monkeypatch):
    """The figure itself, before it becomes a picture."""
    from matplotlib.figure import Figure

    seen = {}
    whole = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.update(figure=self), whole(self, *a, **k)))
    draw_curves(history(), tmp_path / "loss.png")
    top, rate, norm = seen["figure"].axes
    lines = {line.get_label(): line for line in top.get_lines()}
    assert list(lines["held-out"].get_xdata()) == [10, 20, 30, 40]
    assert list(lines["HIT"].get_ydata()) == [0.5, 0.25, 5 / 30, 0.125]
    assert "best held-out: 0.150 at step 40" in lines
    assert list(rate.get_lines()[0].get_ydata()) == [1e-4] * 40
    assert norm.get_yscale() == "log"


def test_without_matplotlib_the_caller_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        draw_curves(history(), tmp_path / "loss.png")
