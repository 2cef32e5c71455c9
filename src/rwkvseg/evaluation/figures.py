"""Figures of networks, as PNG, SVG or PDF by the file's suffix. matplotlib is loaded when one is drawn."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg.errors import UsageError
from rwkvseg.output import write_atomically

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
MARKERS = "os^D"
LEADER = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
# where a label's anchor may lie: its side, and points above its spot; far ones last, with a line to the spot
PLACES = tuple(
    (side, end * up) for up in (6, 20, 34) for side in ("left", "right", "center") for end in (1, -1)
)
DECADES = 5  # of the scale of a receptive field


def check_picture_name(path: Path) -> Path:
    """Return the path of a figure.

    Raises:
        UsageError: a format that is not drawn.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is no figure's name. End it in {', '.join(SUFFIXES)}.")
    return path


def draw_fields(fields: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Receptive fields (H, W) side by side, on one logarithmic scale down from each one's strongest pixel."""
    with _figure(path, len(fields), width=3.0, height=3.2) as axes:
        for axis, (label, field) in zip(axes, fields.items(), strict=True):
            strength = np.log10(np.maximum(field / field.max(), 10.0**-DECADES))
            drawn = axis.imshow(strength, cmap="magma", vmin=-DECADES, vmax=0)
            axis.set_title(label, fontsize=9, parse_math=False)
            axis.set(xticks=[], yticks=[])
        axes[0].figure.colorbar(
            drawn, ax=list(axes), label="log10 of the gradient over its largest", shrink=0.8
        )


def draw_sizes(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    fits: Mapping[str, Mapping[str, Mapping[str, float]]],
    path: Path,
    *,
    dimensions: int = 2,
) -> None:
    """Multiply-accumulates, milliseconds and peak memory against the pixels, a dashed line through each."""
    panels = (
        ("macs", 1e9, "multiply-accumulates (G)"),
        ("milliseconds", 1, f"median time of one {'picture' if dimensions == 2 else 'volume'} (ms)"),
        ("peak_bytes", 2**30, "peak memory (GiB)"),
    )
    power = {2: "²", 3: "³"}[dimensions]
    with _figure(path, len(panels), width=4.0, height=3.6) as axes:
        for axis, (key, unit, name) in zip(axes, panels, strict=True):
            for place, (label, measured) in enumerate(rows.items()):
                colour, fit = COLOURS[place % len(COLOURS)], fits[label][key]
                pixels = np.array([row["size"] ** dimensions for row in measured])
                text = f"{label} (exponent {fit['exponent']:.2f})"
                axis.plot(
                    pixels / 1e6, [row[key] / unit for row in measured], "o", ms=4, color=colour, label=text
                )
                line = (fit["at_zero"] + fit["per_pixel"] * pixels) / unit
                axis.plot(pixels / 1e6, line, linestyle="--", linewidth=1, color=colour)
            sizes = [row["size"] for row in measured]
            ticks = [size**dimensions / 1e6 for size in sizes]
            axis.set_xticks(ticks, [f"{size}{power}" for size in sizes], rotation=60, fontsize=7)
            axis.set(xlabel="pixels" if dimensions == 2 else "voxels", ylabel=name, ylim=(0, None))
            # a long label must not leave the axes without room
            axis.legend(frameon=False, fontsize=7).set_in_layout(False)


def draw_tradeoff(points: Sequence[Mapping[str, Any]], front: Sequence[str], path: Path, part: str) -> None:
    """DSC in % against parameters in M (logarithmic), bars of one standard deviation over runs."""
    from matplotlib.ticker import LogLocator, NullLocator

    with _figure(path, 1, width=6.0, height=4.0) as (axis,):
        for place, point in enumerate(points):
            x, y = point["parameters"] / 1e6, 100 * point["dsc"]
            bar = None if point["deviation"] is None else 100 * point["deviation"]
            marker = MARKERS[place // len(COLOURS) % len(MARKERS)]
            axis.errorbar(x, y, yerr=bar, fmt=marker, color=COLOURS[place % len(COLOURS)], capsize=3)
        best = sorted((p["parameters"] / 1e6, 100 * p["dsc"]) for p in points if p["label"] in front)
        axis.plot(*zip(*best, strict=True), color="#999999", linestyle="--", linewidth=1, zorder=0)
        axis.set_xscale("log")
        axis.margins(x=0.25, y=0.2)
        least, most = axis.get_xlim()
        ticks = (1, 2, 5) if most > 10 * least else range(1, 10)  # all nine of a decade would overlap
        axis.xaxis.set_major_locator(LogLocator(subs=ticks))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(xlabel="parameters (M)", ylabel=f"{part} DSC (%), mean over (runs)")
        _write_labels(axis, points)


def _write_labels(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Write each point's label beside it, where it covers no label, point or bar if there is such a place."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axis.figure.draw_without_rendering()
    axis.figure.set_layout_engine("none")  # the axes have their size and keep it
    spots = [(point["parameters"] / 1e6, 100 * point["dsc"]) for point in points]
    bars = [100 * (point["deviation"] or 0.0) for point in points]
    ends = [[(x, y - bar), (x, y + bar)] for (x, y), bar in zip(spots, bars, strict=True)]
    taken = [Bbox(axis.transData.transform(pair)).padded(7) for pair in ends]
    for spot, point in zip(spots, points, strict=True):
        tried: list[tuple[Any, ...]] = []
        for side, up in PLACES:
            offset = ({"left": 6, "right": -6, "center": 0}[side], up)
            label = axis.annotate(
                f"{point['label']} ({len(point['runs'])})",
                spot,
                offset,
                textcoords="offset points",
                fontsize=8,
                parse_math=False,
                horizontalalignment=side,
                verticalalignment="bottom" if up > 0 else "top",
                arrowprops=None if abs(up) <= PLACES[0][1] else LEADER,
            )
            label.get_window_extent()  # puts it in its place
            box = Text.get_window_extent(label)  # without its line
            outside = box.xmin < 0 or box.xmax > axis.figure.bbox.xmax
            tried.append((outside, sum(map(box.overlaps, taken)), len(tried), label, box))
        *_, kept, box = min(tried, key=lambda one: one[:3])
        for *_, label, _ in tried:
            if label is not kept:
                label.remove()
        taken.append(box)


@contextmanager
def _figure(path: Path, number: int, *, width: float, height: float) -> Iterator[Sequence[Any]]:
    from matplotlib.figure import Figure  # loading it takes a second

    check_picture_name(path)
    figure = Figure(figsize=(width * number, height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, number, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    yield axes
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150)
