"""Plots of reports, as PNG: how scores are spread over cases, and weights of scan orders over a training."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.evaluation.protocols import ClassScore

_BLUE, _ORANGE, _GREEN, _INK = "#0072B2", "#D55E00", "#009E73", "#222222"
_PANELS_A_ROW = 4


def distribution_plot(scores: Sequence[ClassScore], unit: str) -> bytes:
    """Draw DSC in % and HD95 in `unit` per class as PNG; cases with an empty mask are crosses.

    Box: quartiles and median; whiskers: the last point within 1.5 quartile distances. Points are spread
    across the box by a fixed seed. No global setting of matplotlib is touched.
    """
    # the figure's own classes instead of pyplot, which keeps global state and may want a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {score.label: score.name for score in sorted(scores, key=lambda score: score.label)}
    height = 1.3 + 0.55 * len(names)
    figure = Figure(figsize=(10, height), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, scale, attribute in ((left, 100.0, "dsc"), (right, 1.0, "hd95")):
        for row, label in enumerate(names):
            members = [score for score in scores if score.label == label]
            _draw_row(axes, row, members, attribute, scale)
    left.set(xlabel="DSC (%)", xlim=(-3, 103), ylim=(len(names) - 0.5, -0.5))
    left.set_yticks(range(len(names)), list(names.values()), parse_math=False)
    right.set(xlabel=f"HD95 ({unit})")
    right.set_xlim(left=min(0.0, right.get_xlim()[0]))
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_row(axes: Any, row: int, members: Sequence[ClassScore], attribute: str, scale: float) -> None:
    scored = [score for score in members if not math.isnan(getattr(score, attribute))]
    values = np.array([scale * getattr(score, attribute) for score in scored])
    found = np.array([score.outcome == "scored" for score in scored], dtype=bool)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if values.size == 0:
        axes.text(0.5, row, "no case scored", transform=axes.get_yaxis_transform(), va="center", ha="center")
        return
    _draw_box(axes, row, values)
    heights = row + np.random.default_rng(row).uniform(-0.18, 0.18, values.size)
    axes.scatter(values[found], heights[found], s=14, color=_BLUE, alpha=0.55, linewidths=0, zorder=3)
    axes.scatter(values[~found], heights[~found], s=26, color=_ORANGE, marker="x", linewidths=1.4, zorder=4)


def _draw_box(axes: Any, row: int, values: NDArray[np.float64]) -> None:
    first, median, third = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (third - first)
    within = values[(values >= first - reach) & (values <= third + reach)]
    axes.hlines(row, within.min(), first, color=_INK, linewidth=1.0)
    axes.hlines(row, third, within.max(), color=_INK, linewidth=1.0)
    axes.barh(row, third - first, left=first, height=0.5, facecolor="none", edgecolor=_INK, linewidth=1.0)
    axes.vlines(median, row - 0.25, row + 0.25, color=_INK, linewidth=2.0)


def fusion_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw one panel a block: the weight of each scan order against the epoch, as PNG.

    rows: epoch (-1 before the first), block, and a weight under the name of each order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(row["block"] for row in rows))
    columns = min(_PANELS_A_ROW, len(blocks))
    lines = -(-len(blocks) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines + 0.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    orders = [key for key in rows[0] if key not in ("epoch", "block")]
    for panel, block in zip(axes, blocks, strict=False):
        own = [row for row in rows if row["block"] == block]
        for order, colour in zip(orders, (_BLUE, _ORANGE, _GREEN), strict=False):
            weights = [row[order] for row in own]
            panel.plot([int(row["epoch"]) + 1 for row in own], weights, ".-", color=colour, label=order)
        panel.set_title(block, fontsize=8, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    for panel in axes[len(blocks) :]:
        panel.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("weight", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
