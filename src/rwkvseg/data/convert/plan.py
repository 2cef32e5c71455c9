"""What is to be converted: the cases of the result, each with the files that it is made from."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rwkvseg.data.case import Case
from rwkvseg.data.dicom_headers import read_instance
from rwkvseg.data.files import CaseFiles, name_some
from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.layout_detection import detect_layout
from rwkvseg.data.layouts import DataFolder, held_back, open_data
from rwkvseg.data.reading import label_values, read_case, read_case_label
from rwkvseg.data.splits import read_split
from rwkvseg.data.transunet import SLICE
from rwkvseg.errors import DataError, GeometryError
from rwkvseg.wording import counted

Layout = Literal["nnunet", "msd", "images", "transunet"]
LAYOUTS: tuple[Layout, ...] = ("nnunet", "msd", "images", "transunet")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a data folder is converted."""

    to: Layout
    layout: str = "auto"
    """Of the source, see `open_data`."""
    split: Path | None = None
    """Split file that gives the parts; cases that it does not name are left out."""
    fold: int | None = None
    labels: dict[str, int] | None = None
    """Name -> value; else those of the source."""
    channels: tuple[str, ...] | None = None
    """Names of the image's channels; else those of the source."""
    window: tuple[float, float] | None = None
    """Intensities to clip to where the target's are scaled (images, transunet)."""


@dataclass(frozen=True)
class Item:
    """One case of the result: its source, or the slices that it is stacked from, in order."""

    id: str
    sources: tuple[CaseFiles, ...]
    part: str | None
    group: str | None
    stacked: bool = False

    @property
    def has_label(self) -> bool:
        """Whether there is a label."""
        return self.sources[0].label is not None


@dataclass(frozen=True)
class Plan:
    """The source and everything that is made from it."""

    folder: DataFolder
    target: Path
    options: Options
    items: tuple[Item, ...]
    labels: dict[str, int]
    channels: tuple[str, ...] | None
    notes: tuple[str, ...]


def make_plan(
    source: Path,
    target: Path,
    options: Options,
    on_case: Callable[[int, int], object] = lambda _done, _total: None,
) -> Plan:
    """List what is to be done; where nothing names the labels, every label map is read for its values.

    Raises:
        DataError: as `open_data` and `read_split`, slices that make no volume, or labels that nothing tells.
        UsageError: as `read_split`.
    """
    folder, cases = _open(source, options.layout)
    whole = len(cases)
    if options.split is not None:
        split = read_split(options.split, cases, options.fold)
        part_of = split.part_of
        cases = [replace(case, part=part_of[case.id]) for case in cases if case.id in part_of]
    elif any(case.part for case in cases):
        cases = [replace(case, part=case.part or "train") for case in cases]
    stacks = folder.layout == "transunet" and options.to in ("nnunet", "msd")
    items = _stacked(cases) if stacks else [_alone(case) for case in cases]
    _require_own_names(items)
    if options.to == "images":
        _require_folders(items)
    left_out, notes = whole - len(cases), []
    if left_out:
        notes.append(f"{counted(left_out, 'case')} that the split does not name left out")
    labels = options.labels or folder.labels
    if labels is None and not any(case.label for case in cases):
        labels = {"background": 0}
        notes.append("no case has a label, and nothing names any")
    if labels is None:
        labels = _labels_by_value(cases, folder.root, on_case)
        notes.append(f"nothing names the labels: they are called {', '.join(labels)}")
    return Plan(
        folder=folder,
        target=target,
        options=options,
        items=tuple(sorted(items, key=lambda item: item.id)),
        labels=labels,
        channels=options.channels or folder.channels,
        notes=tuple(notes),
    )


def _open(source: Path, layout: str) -> tuple[DataFolder, list[CaseFiles]]:
    """The data folder and all its cases; of a folder of images alone, these as inputs."""
    if layout == "auto" and source.is_dir() and detect_layout(source) is None:
        cases = [replace(case, part="test") for case in find_inputs(source)]
        return DataFolder(source, "inputs", (), channels=_modality(cases)), cases
    folder = open_data(source, layout)
    return folder, [*folder.cases, *held_back(folder)]


def _modality(cases: Sequence[CaseFiles]) -> tuple[str, ...] | None:
    """What the channel of DICOM series is called, where all are grey and of one modality."""
    found = [read_instance(case.images[0]) for case in cases if case.series is not None]
    names = {"" if one is None or one.is_colour else one.modality for one in found}
    alike = len(found) == len(cases) and len(names) == 1
    return tuple(names) if alike and names != {""} else None


def _labels_by_value(
    cases: Sequence[CaseFiles], root: Path, on_case: Callable[[int, int], object]
) -> dict[str, int]:
    """Names for the values that label maps hold; 0 and 255 are 0 and 1, as everywhere."""
    values = {0}
    for number, case in enumerate(cases, 1):
        values |= set() if case.label is None else set(label_values(read_case_label(case)[0]))
        on_case(number, 2 * len(cases))
    if {1, 255} <= values:
        raise DataError(
            f"the label maps of {root} hold 1 and 255, and nothing names them. "
            "Name the labels with --label NAME=VALUE."
        )
    if values == {0}:
        raise DataError(
            f"nothing names the labels of {root}, and its label maps hold background only. "
            "Name them with --label NAME=VALUE."
        )
    found = [0, 1] if values == {0, 255} else sorted(values)
    return {"background" if value == 0 else f"label {value}": value for value in found}


def _require_own_names(items: Sequence[Item]) -> None:
    twice = [name for name, number in Counter(item.id for item in items).items() if number > 1]
    if twice:
        raise DataError(
            f"{counted(len(twice), 'name is that', 'names are those')} of two cases, in different parts: "
            f"{name_some(twice)}. Rename one of each."
        )


def _require_folders(items: Sequence[Item]) -> None:
    """Refuse what image folders cannot hold: two cases of one name, or a part with and without masks."""
    names = Counter((item.part, stem_in_part(item.id, item.part)) for item in items)
    twice = [f"{part}/{name}" for (part, name), number in names.items() if number > 1]
    if twice:
        raise DataError(
            f"{counted(len(twice), 'file would be that', 'files would be those')} of two cases: "
            f"{name_some(twice)}. Rename one of each."
        )
    for part in {item.part for item in items}:
        lacking = [item.id for item in items if item.part == part and not item.has_label]
        if lacking and len(lacking) < sum(item.part == part for item in items):
            raise DataError(
                f"{counted(len(lacking), 'case')} of the part {part} without label, others with one: "
                f"{name_some(lacking)}. "
                "Give a split file that leaves them out, or has them in a part of their own."
            )


def _alone(case: CaseFiles) -> Item:
    return Item(case.id, (case,), case.part, case.group)


def _stacked(cases: Sequence[CaseFiles]) -> list[Item]:
    """Slices put together to the volumes that they were cut from; volumes as they are."""
    found: dict[str, dict[int, CaseFiles]] = defaultdict(dict)
    items = []
    for case in cases:
        match = SLICE.match(case.id)
        if match is None:
            items.append(_alone(case))
        else:
            found[match["volume"]][int(match["number"])] = case
    for name, slices in found.items():
        numbers = sorted(slices)
        lacking = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
        if lacking:
            raise DataError(
                f"volume {name} lacks {len(lacking)} of its slices: {name_some(lacking)}. "
                "Restore them, or convert to images, which keeps slices as they are."
            )
        parts = {slices[number].part for number in numbers}
        if len(parts) > 1:
            told = ", ".join(sorted(map(str, parts)))
            raise DataError(
                f"the slices of volume {name} are in {len(parts)} parts: {told}. "
                "Give a split file that keeps volumes whole."
            )
        first = slices[numbers[0]]
        sources = tuple(slices[number] for number in numbers)
        items.append(Item(name, sources, first.part, first.group, stacked=True))
    return items


def read_item(item: Item, plan: Plan) -> Case:
    """Read the case of an item, slices stacked along the last axis, labels checked.

    Raises:
        DataError, GeometryError, LabelError: as `read_case`.
    """
    cases = [read_case(files, plan.labels) for files in item.sources]
    return _stack(item.id, cases) if item.stacked else cases[0]


def _stack(name: str, cases: Sequence[Case]) -> Case:
    shapes = {case.spatial_shape for case in cases}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise GeometryError(
            f"the slices of volume {name} have the shapes {name_some(sorted(shapes))}. "
            "Export them again so that all have the same two axes."
        )
    labels: list[Any] = [case.label for case in cases]
    return Case(
        id=name,
        image=np.stack([case.image for case in cases], axis=-1),
        label=None if any(label is None for label in labels) else np.stack(labels, axis=-1),
    )


def stem_in_part(name: str, part: str | None) -> str:
    """Name of a case within the folder of its part: ids of parted folders start with the part.

    >>> stem_in_part("train_7", "train"), stem_in_part("7", "train")
    ('7', '7')
    """
    return re.sub(f"^{part}_", "", name) if part else name
