"""What became of each case, and the files that every layout of the result has."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvseg.data.convert.plan import Item, Plan
from rwkvseg.data.files import group_in_id, read_json_list
from rwkvseg.data.io import PICTURE_SUFFIXES, case_suffix
from rwkvseg.data.pictures import left_behind
from rwkvseg.errors import DataError
from rwkvseg.output import write_json, write_text
from rwkvseg.wording import counted

SPLITS = "splits_final.json"
HEADERS = "the DICOM headers (patient, study, device): voxels and geometry are kept"


@dataclass(frozen=True)
class Done:
    """One case of the result; as JSON it is a line of the journal."""

    source: str
    """Id in the source (of stacked slices, of their volume)."""
    ids: tuple[str, ...]
    """Ids in the result: several where a volume is cut."""
    part: str | None
    group: str | None
    labelled: bool
    channels: int = 1
    lost: tuple[str, ...] = ()
    """What the target cannot hold of this case."""
    record: dict[str, Any] = field(default_factory=dict)
    """What is noted of it, such as its spacing."""


def unread(item: Item) -> list[str]:
    """What the files of an item hold that no case does, and that a file written anew lacks."""
    if any(files.series is not None for files in item.sources):
        return [HEADERS]
    paths = [path for files in item.sources for path in files.images if case_suffix(path) in PICTURE_SUFFIXES]
    return list(dict.fromkeys(what for path in paths for what in left_behind(path)))


def channel_names(plan: Plan, done: Sequence[Done]) -> tuple[str, ...]:
    """The plan's names of channels, else numbered ones.

    Raises:
        DataError: cases differ in their number of channels, or the names are of another number.
    """
    numbers = Counter(case.channels for case in done)
    if len(numbers) > 1:
        told = ", ".join(f"{cases} with {channels}" for channels, cases in sorted(numbers.items()))
        raise DataError(f"cases differ in their channels: {told}. Convert them apart, or make them agree.")
    number = next(iter(numbers))
    if plan.channels is not None and len(plan.channels) != number:
        raise DataError(
            f"images have {counted(number, 'channel')}, {len(plan.channels)} named: "
            f"{', '.join(plan.channels)}. Name each once with --channel."
        )
    return plan.channels or (("R", "G", "B") if number == 3 else tuple(f"channel {i}" for i in range(number)))


def write_labels(root: Path, plan: Plan, done: Sequence[Done]) -> None:
    """Write labels.json: labels, channel names and licence for layouts that have no place for them.

    Raises:
        DataError: nothing names the channels, and cases differ in their number.
    """
    channels = plan.channels or channel_names(plan, done)
    content: dict[str, Any] = {"labels": plan.labels, "channel_names": numbered(channels)}
    write_json(root / "labels.json", content | licence_of(plan))


def numbered(names: Sequence[str]) -> dict[str, str]:
    """{"0": name, "1": name}, as nnU-Net and MSD write channels."""
    return {str(index): name for index, name in enumerate(names)}


def licence_of(plan: Plan) -> dict[str, str]:
    """The licence under its key, where there is one."""
    return {} if plan.folder.licence is None else {"licence": plan.folder.licence}


def write_groups(root: Path, done: Sequence[Done]) -> None:
    """Write groups.csv where any case has a group, or where volumes were cut into slices."""
    if not any(case.group or "axis" in case.record for case in done):
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "group"))
    for case in done:
        group = case.group or group_in_id(case.source, case.part) or case.source
        writer.writerows((name, group) for name in case.ids)
    write_text(root / "groups.csv", text.getvalue())


def write_folds(root: Path, plan: Plan, done: Sequence[Done], *, val: bool) -> str | None:
    """Write splits_final.json: the source's folds with the ids of the result, else one of train and val.

    Args:
        root: folder of the result.
        plan: what was converted.
        done: its cases.
        val: whether the layout has no other place for the part val.

    Returns:
        Why the source's folds were not carried over, if so.
    """
    path = plan.folder.root / SPLITS
    if plan.options.split is None and path.is_file():
        new = {case.source: case.ids for case in done}
        folds = [_renamed(fold, new) for fold in read_json_list(path) or ()]
        if not folds or None in folds:
            return f"{SPLITS}: it names cases that were not converted"
        write_json(root / SPLITS, folds)
    elif val and any(case.part == "val" for case in done):
        kept = [case for case in done if case.labelled]
        write_json(root / SPLITS, [{part: _ids_of(part, kept) for part in ("train", "val")}])
    return None


def _ids_of(part: str, done: Sequence[Done]) -> list[str]:
    return [name for case in done if case.part == part for name in case.ids]


def _renamed(fold: Any, new: Mapping[str, Sequence[str]]) -> dict[str, list[str]] | None:
    try:
        return {part: [name for case in fold[part] for name in new[case]] for part in ("train", "val")}
    except (KeyError, TypeError):
        return None
