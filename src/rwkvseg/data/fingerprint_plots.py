"""Plots of a fingerprint, as PNG: sizes and spacings, intensities, classes."""

import io
from collections.abc import Sequence
from typing import Any

from rwkvseg.data.fingerprint import Fingerprint
from rwkvseg.data.intensity_statistics import IntensitySummary

_BLUE, _ORANGE, _INK = "#0072B2", "#D55E00", "#222222"
_WIDTH, _PANEL = 10.0, 2.6  # inches


def draw_plots(found: Fingerprint) -> dict[str, bytes]:
    """File name -> PNG: sizes.png, intensities.png, classes.png."""
    return {
        "sizes.png": size_plot(found),
        "intensities.png": intensity_plot(found),
        "classes.png": class_plot(found),
    }


def size_plot(found: Fingerprint) -> bytes:
    """Histograms over the cases: size along each axis and, of volumes, spacing below it."""
    axes_names = ("rows", "columns") if found.dimensions == 2 else ("axis 0", "axis 1", "axis 2")
    sizes: Sequence[Sequence[float]] = [case.shape for case in found.cases]
    lines = [("pixels" if found.dimensions == 2 else "voxels", sizes)]
    if found.spacings:
        lines.append(("mm", found.spacings))
    figure = _figure(_PANEL * len(lines))
    panels = figure.subplots(len(lines), found.dimensions, squeeze=False)
    for line, (unit, values) in enumerate(lines):
        for axis, name in enumerate(axes_names):
            panel = panels[line][axis]
            panel.hist([row[axis] for row in values], bins=min(30, max(5, len(values) // 4)), color=_BLUE)
            panel.set(xlabel=f"{name}, {unit}", ylabel="cases" if axis == 0 else "")
            _strip(panel)
    return _png(figure)


def intensity_plot(found: Fingerprint) -> bytes:
    """A panel a channel, a box a region: quartiles; whiskers: percentiles 0.5 and 99.5; dot: mean."""
    names = {facts.value: facts.name for facts in found.classes}
    rows = 1 + max(len(channel.classes) for channel in found.channels)
    figure = _figure(0.9 + 0.4 * rows)
    panels = figure.subplots(1, len(found.channels), squeeze=False)[0]
    for panel, channel in zip(panels, found.channels, strict=True):
        regions = [("whole image", channel.whole)]
        regions += [(names[value], one) for value, one in channel.classes.items()]
        for row, (_, summary) in enumerate(regions):
            _draw_box(panel, row, summary, _INK if row == 0 else _BLUE)
        panel.set_ylim(len(regions) - 0.5, -0.5)
        panel.set_yticks(range(len(regions)), [name for name, _ in regions], parse_math=False)
        panel.set_xlabel(f"intensity, {channel.name}", parse_math=False)
        _strip(panel)
    return _png(figure)


def class_plot(found: Fingerprint) -> bytes:
    """Bars a label, without the background: share of all voxels, and of the cases."""
    classes = [facts for facts in found.classes if facts.value]
    figure = _figure(0.9 + 0.35 * max(1, len(classes)))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(classes))
    bars = left.barh(places, [100 * facts.share for facts in classes], color=_ORANGE)
    left.bar_label(bars, [f"{100 * facts.share:.3g} %" for facts in classes], padding=3, fontsize=8)
    left.margins(x=0.15)
    right.barh(places, [100 * facts.cases / len(found.cases) for facts in classes], color=_BLUE)
    left.set(xlabel="share of all voxels, %", ylim=(len(classes) - 0.5, -0.5))
    left.set_yticks(places, [facts.name for facts in classes], parse_math=False)
    right.set(xlabel="cases that hold it, %", xlim=(0, 100))
    _strip(left)
    _strip(right)
    return _png(figure)


def _draw_box(panel: Any, row: int, found: IntensitySummary, colour: str) -> None:
    low, first, middle, third, high = (found.percentiles[key] for key in ("0.5", "25", "50", "75", "99.5"))
    panel.hlines(row, low, high, color=colour, linewidth=1.0)
    panel.barh(row, third - first, left=first, height=0.5, facecolor="white", edgecolor=colour)
    panel.vlines(middle, row - 0.25, row + 0.25, color=colour, linewidth=2.0)
    panel.scatter([found.mean], [row], s=16, color=_ORANGE, zorder=3)


def _figure(height: float) -> Any:
    # the figure's own classes instead of pyplot, which keeps global state and may want a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _strip(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
