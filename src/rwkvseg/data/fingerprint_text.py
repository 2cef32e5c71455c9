"""A fingerprint as rows of tables for people."""

from collections.abc import Mapping, Sequence

from rwkvseg.data.fingerprint import Fingerprint, along_axes, spread
from rwkvseg.data.intensity_statistics import IntensitySummary
from rwkvseg.wording import counted

Rows = list[tuple[str, ...]]


def overview(found: Fingerprint) -> Rows:
    """What is so of the whole folder: (name, value)."""
    content = found.as_object()
    grid = "pixels" if found.dimensions == 2 else "voxels"
    rows: Rows = [
        ("layout", f"{content['layout']}, {'pictures' if found.dimensions == 2 else 'volumes'}"),
        ("cases", str(content["cases"]) + "".join(f", {name} {n}" for name, n in content["parts"].items())),
        ("patients or videos", str(content["groups"]) if content["groups"] else "not named"),
        ("modality", ", ".join(found.modality) if found.modality else "not stated"),
        ("channels", _told(content["channels"])),
        ("stored as", _told(content["types"])),
        (f"size, {grid}", axes_told(along_axes([case.shape for case in found.cases]), "{:.0f}")),
    ]
    if found.spacings:
        rows += [
            ("spacing, mm", axes_told(content["spacing_mm"], "{:.3g}")),
            ("anisotropy", _spread_told(content["anisotropy"], "{:.2f}")),
            ("orientation", _told(content["orientations"]) or "not stated"),
        ]
    boxes = [case.box_share for case in found.cases if case.box_share is not None]
    rows += [
        ("box of all labels", _spread_told(spread([100 * share for share in boxes]), "{:.1f} %")),
        ("without foreground", counted(content["cases_without_foreground"], "case")),
    ]
    if found.dimensions == 3:
        shares = spread([100 * case.inner_share for case in found.cases])
        rows.append(("within a border of zeros", _spread_told(shares, "{:.1f} %")))
    return rows


def class_rows(found: Fingerprint) -> Rows:
    """One row a label: value, name, share of the voxels, cases that hold it."""
    cases = len(found.cases)
    return [
        (
            str(facts.value),
            facts.name,
            str(facts.voxels),
            f"{100 * facts.share:.3g} %",
            f"{facts.cases} of {cases}",
        )
        for facts in found.classes
    ]


def intensity_rows(found: Fingerprint) -> Rows:
    """One row a channel and region: mean, deviation, range, percentiles."""
    names = {facts.value: facts.name for facts in found.classes}
    rows: Rows = []
    for channel in found.channels:
        rows.append((channel.name, "all", *_numbers(channel.whole)))
        if channel.foreground is not None and len(channel.classes) > 1:
            rows.append((channel.name, "all labels", *_numbers(channel.foreground)))
        rows += [(channel.name, names[value], *_numbers(one)) for value, one in channel.classes.items()]
    return rows


def axes_told(axes: Mapping[str, Sequence[float]] | None, form: str) -> str:
    """Such as: 35 x 50 x 36 (31 to 43 x 40 to 59 x 24 to 47)."""
    if axes is None:
        return "not stated"
    middle = " x ".join(form.format(value) for value in axes["median"])
    if axes["least"] == axes["most"]:
        return f"{middle}, all alike"
    pairs = zip(axes["least"], axes["most"], strict=True)
    ranges = " x ".join(f"{form.format(low)} to {form.format(high)}" for low, high in pairs)
    return f"{middle} ({ranges})"


def _spread_told(found: Mapping[str, float] | None, form: str) -> str:
    if found is None:
        return "none"
    if found["least"] == found["most"]:
        return f"{form.format(found['median'])}, all alike"
    return f"{form.format(found['median'])} ({form.format(found['least'])} to {form.format(found['most'])})"


def _told(counts: Mapping[str, int]) -> str:
    """Such as: RAS, all alike; RAS (20 cases), LPS (1 case)."""
    if len(counts) == 1:
        return f"{next(iter(counts))}, all alike"
    return ", ".join(f"{name} ({counted(number, 'case')})" for name, number in counts.items())


def _numbers(found: IntensitySummary) -> tuple[str, ...]:
    percentiles = (found.percentiles[key] for key in ("0.5", "50", "99.5"))
    return tuple(f"{x:.4g}" for x in (found.mean, found.deviation, found.least, *percentiles, found.most))
