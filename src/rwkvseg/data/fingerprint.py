"""The fingerprint of a data folder: its sizes, spacings, intensities and classes, in numbers and as JSON.

docs/how-to/plan-a-recipe.md says what each number means; fingerprint_reader.py finds them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from rwkvseg.data.case_facts import CaseFacts
from rwkvseg.data.intensity_statistics import IntensitySummary
from rwkvseg.data.layouts import DataFolder


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """How often one label occurs."""

    value: int
    name: str
    voxels: int
    cases: int
    """Those that hold it."""
    share: float
    """Of all voxels of all cases."""


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """Intensities of one channel in every region, in the file's units."""

    name: str
    whole: IntensitySummary
    foreground: IntensitySummary | None
    """Of all labelled voxels."""
    classes: dict[int, IntensitySummary]
    """By label value."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A case that could not be read, and why; the sentence names the file."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a data folder holds, in numbers; axes are the files' own."""

    folder: DataFolder
    labels: dict[str, int] | None
    """Name -> value; where nothing names them, names made from the values; None if the values have gaps."""
    named: bool
    """Whether the folder itself names its labels."""
    modality: tuple[str, ...] | None
    """Of each channel, where dataset.json says so."""
    cases: tuple[CaseFacts, ...]
    channels: tuple[ChannelFacts, ...]
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def dimensions(self) -> int:
        """2 for pictures, 3 for volumes."""
        return len(self.cases[0].shape)

    @property
    def classes(self) -> list[ClassFacts]:
        """Every label that is named or occurs, background first."""
        names = {value: name for name, value in (self.labels or {}).items()}
        total = sum(sum(case.voxels.values()) for case in self.cases)
        values = sorted(names.keys() | {value for case in self.cases for value in case.voxels})
        found = []
        for value in values:
            numbers = [case.voxels[value] for case in self.cases if value in case.voxels]
            name = names.get(value, f"value {value}")
            found.append(ClassFacts(value, name, sum(numbers), len(numbers), sum(numbers) / total))
        return found

    @property
    def spacings(self) -> list[tuple[float, ...]]:
        """Of the cases that have one."""
        return [case.spacing for case in self.cases if case.spacing is not None]

    def as_object(self) -> dict[str, Any]:
        """Everything, for JSON."""
        boxes = [case.box_share for case in self.cases if case.box_share is not None]
        return {
            "folder": self.folder.root.resolve().name,
            "layout": self.folder.layout,
            "dimensions": self.dimensions,
            "cases": len(self.cases),
            "parts": {str(part): n for part, n in self.counted("part").items() if part is not None},
            "groups": len({case.group for case in self.cases if case.group is not None}),
            "modality": None if self.modality is None else list(self.modality),
            "channels": {str(number): n for number, n in self.counted("channels").items()},
            "types": self.counted("dtype"),
            "size": along_axes([case.shape for case in self.cases]),
            "spacing_mm": along_axes(self.spacings),
            "anisotropy": spread([max(mm) / min(mm) for mm in self.spacings]),
            "orientations": {k: n for k, n in self.counted("orientation").items() if k is not None},
            "labels": self.labels,
            "classes": [_class_object(facts) for facts in self.classes],
            "cases_without_foreground": len(self.cases) - len(boxes),
            "labelled_box_share": spread(boxes),
            "nonzero_box_share": spread([case.inner_share for case in self.cases]),
            "intensities": [_channel_object(channel, self.classes) for channel in self.channels],
            "unreadable": [{"id": case.id, "why": case.why} for case in self.unreadable],
            "each": [case.as_object() for case in self.cases],
        }

    def counted(self, key: str) -> dict[Any, int]:
        """Number of cases by one of their facts, the most frequent first."""
        return dict(Counter(getattr(case, key) for case in self.cases).most_common())


def along_axes(rows: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Median, least and most along each axis; None of no rows.

    >>> along_axes([(2, 8), (4, 7), (6, 9)])
    {'median': [4.0, 8.0], 'least': [2.0, 7.0], 'most': [6.0, 9.0]}
    """
    if not rows:
        return None
    table = np.asarray(rows, dtype=np.float64)
    found = {"median": np.median(table, axis=0), "least": table.min(axis=0), "most": table.max(axis=0)}
    return {key: [round(float(value), 6) for value in values] for key, values in found.items()}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and most; None of no values."""
    if not values:
        return None
    found = {"median": median(values), "least": min(values), "most": max(values)}
    return {key: round(float(value), 6) for key, value in found.items()}


def _class_object(facts: ClassFacts) -> dict[str, Any]:
    return {
        "label": facts.value,
        "name": facts.name,
        "voxels": facts.voxels,
        "share": float(f"{facts.share:.6g}"),
        "cases": facts.cases,
    }


def _channel_object(channel: ChannelFacts, classes: Sequence[ClassFacts]) -> dict[str, Any]:
    names = {facts.value: facts.name for facts in classes}
    return {
        "channel": channel.name,
        "all": channel.whole.as_object(),
        "foreground": None if channel.foreground is None else channel.foreground.as_object(),
        "classes": {names[value]: found.as_object() for value, found in channel.classes.items()},
    }
