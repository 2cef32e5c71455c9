"""Names only: which files belong to one case. The building blocks of layouts.py; nothing is decoded here."""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rwkvseg.data.io import case_id, case_suffix, holds_arrays
from rwkvseg.errors import DataError
from rwkvseg.wording import counted

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # nnU-Net's CASE_0000
MASK_ENDINGS = ("", "_mask", "_segmentation", "_gt")
GROUP_FILES = ("groups.csv", "sequences.csv")
GROUP_IN_ID = re.compile(r"^((?:patient|subject|sub|video|seq|sequence|case)[-_]?\d+)[-_].+", re.IGNORECASE)
NO_IMAGE = "_superpixels"  # ISIC's, beside its images


@dataclass(frozen=True)
class CaseFiles:
    """Where one case lies: an image per channel, its label, official part and group (patient, video)."""

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    part: str | None = None
    group: str | None = None
    joined: tuple[Path, ...] = ()
    """Further masks of the same image: label 1 is what any of them marks (BUSI)."""
    instances: bool = False
    """Whether the label map numbers its objects: all of them are label 1 (GlaS)."""
    channels_last: bool = False
    """Whether the image's fourth axis, if it has one, is that of its channels (MSD)."""
    series: str | None = None
    """SeriesInstanceUID, where the images are the files of one DICOM series and no channels."""


def list_images(folder: Path, *, arrays: bool = False) -> list[Path]:
    """Images directly in `folder`, sorted; hidden files and unknown suffixes are passed over.

    With `arrays`, files of arrays instead: other programs leave such files beside their label maps.

    Raises:
        DataError: two files that differ in their suffix only, since both would be the same case.
    """
    paths = sorted(path for path in folder.iterdir() if is_image_name(path, arrays=arrays) and path.is_file())
    by_id: dict[str, Path] = {}
    for path in paths:
        other = by_id.setdefault(case_id(path), path)
        if other is not path:
            raise DataError(f"{other} and {path} have the same name. Remove or rename one of them.")
    return paths


def is_image_name(path: Path, *, arrays: bool = False) -> bool:
    """Whether the name is that of an image (of a file of arrays), and not hidden."""
    known = case_suffix(path) is not None and holds_arrays(path) == arrays
    return known and not path.name.startswith(".") and not case_id(path).endswith(NO_IMAGE)


def require_folder(path: Path) -> None:
    """Raise DataError where there is no such folder."""
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    if not path.is_dir():
        raise DataError(
            f"{path} is a file where a data folder is needed. Give the folder that holds the data."
        )


def pair(images: Path, masks: Path, *, part: str | None = None) -> list[CaseFiles]:
    """Pair pictures and masks by name: `x` with `x`, `x_mask`, `x_segmentation` or `x_gt`.

    With a `part`, ids are `part_x`, as parts may number their files alike.

    Raises:
        DataError: images without mask or masks without image; the first five are named.
    """
    found = {case_id(path): path for path in list_images(images)}
    left = {case_id(path): path for path in list_images(masks)}
    cases, missing = [], []
    for stem, image in found.items():
        names = [stem + ending for ending in MASK_ENDINGS if stem + ending in left]
        if len(names) > 1:
            raise DataError(f"{image} has {len(names)} masks: {', '.join(names)}. Keep one.")
        if not names:
            missing.append(image.name)
            continue
        cases.append(CaseFiles(f"{part}_{stem}" if part else stem, (image,), left.pop(names[0]), part))
    refuse_unpaired(images, masks, missing, [path.name for path in left.values()])
    return cases


def refuse_unpaired(
    images: Path, labels: Path, without_label: Sequence[str], without_image: Sequence[str]
) -> None:
    """Raise DataError when either list is not empty."""
    if without_label:
        raise DataError(
            f"{counted(len(without_label), 'image')} in {images} without label in {labels}: "
            f"{name_some(without_label)}. Add the labels under the same names (of pictures also NAME"
            f"{', NAME'.join(ending for ending in MASK_ENDINGS if ending)}), or move these images out."
        )
    if without_image:
        raise DataError(
            f"{counted(len(without_image), 'label')} in {labels} without image in {images}: "
            f"{name_some(without_image)}. Add the images under the same names, or move these labels out."
        )


def group_channels(paths: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Group CASE_0000, CASE_0001, ... by CASE, channels in order.

    Raises:
        DataError: a name without channel number, or cases that do not all have channels 0..n-1.
    """
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in paths:
        match = CHANNEL.match(case_id(path))
        if not match:
            raise DataError(f"{path} lacks the channel number of the nnU-Net layout. Rename it to CASE_0000.")
        channels[match["case"]][int(match["channel"])] = path
    number = max((len(found) for found in channels.values()), default=0)
    wrong = [case for case, found in channels.items() if sorted(found) != list(range(number))]
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'case lacks', 'cases lack')} some of the channels "
            f"0000..{number - 1:04d}: {name_some(wrong)}. Add those files."
        )
    return {case: tuple(found[index] for index in range(number)) for case, found in channels.items()}


def has_channel_numbers(paths: Sequence[Path]) -> bool:
    """Whether every name ends in a four-digit channel number and every case starts with channel 0000."""
    matches = [CHANNEL.match(case_id(path)) for path in paths]
    known = [match for match in matches if match]
    first = {match["case"] for match in known if match["channel"] == "0000"}
    return bool(paths) and len(known) == len(paths) and first == {match["case"] for match in known}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one.

    Raises:
        DataError: not JSON, or no object.
    """
    if not path.is_file():
        return {}
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object. Write it as {{...}}.")
    if not isinstance(content.get("channel_names", {}), (dict, list)):
        raise DataError(f'channel_names in {path} is no list of names. Write it as {{"0": "CT"}}.')
    return content


def read_json_list(path: Path) -> list[Any] | None:
    """Read a JSON list; None where the file holds something else.

    Raises:
        DataError: not JSON.
    """
    content = _parse_json(path)
    return content if isinstance(content, list) else None


def _parse_json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # escapes may stand for half a character
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. Mend it.") from error
    return content


def with_groups(root: Path, cases: Sequence[CaseFiles]) -> tuple[CaseFiles, ...]:
    """Sort by id, and take groups from a `groups.csv` or `sequences.csv` with columns id,group if there.

    Without such a file groups come from ids such as patient007_frame01, if all are so and some share one.

    Raises:
        DataError: the file lists no group for some case.
    """
    ordered = sorted(cases, key=lambda case: case.id)
    path = groups_file(root)
    groups = _groups_in_ids(ordered) if path is None else read_groups(path)
    if path is None and not groups:
        return tuple(ordered)
    missing = [case.id for case in ordered if case.id not in groups]
    if missing:
        raise DataError(
            f"{path} lists no group for {counted(len(missing), 'case')}: {name_some(missing)}. "
            "Add their rows."
        )
    return tuple(replace(case, group=groups[case.id]) for case in ordered)


def _groups_in_ids(cases: Sequence[CaseFiles]) -> Mapping[str, str]:
    found = {case.id: group for case in cases if (group := group_in_id(case.id, case.part))}
    return found if len(set(found.values())) < len(found) == len(cases) else {}


def group_in_id(name: str, part: str | None = None) -> str | None:
    """Patient or video that an id names; the folder of a part, which ids may begin with, is left aside.

    >>> group_in_id("patient007_frame01"), group_in_id("val_patient007_frame01", "val"), group_in_id("7")
    ('patient007', 'patient007', None)
    """
    match = GROUP_IN_ID.match(name.removeprefix(f"{part}_") if part else name)
    return match[1] if match else None


def groups_file(root: Path) -> Path | None:
    """Where a data folder names the groups of its cases, if it does."""
    return next((root / name for name in GROUP_FILES if (root / name).is_file()), None)


def read_groups(path: Path) -> Mapping[str, str]:
    """Read id -> group.

    Raises:
        DataError: it cannot be read, or has not two columns under a header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}. Write it as text (UTF-8) of two columns.") from error
    if not rows or any(len(row) != 2 for row in rows):
        raise DataError(f"{path} must have two columns, id and group, under a header. Mend its rows.")
    return {row[0]: row[1] for row in rows[1:]}


def name_some(names: Iterable[object], number: int = 5) -> str:
    """The first names, and how many more there are.

    >>> name_some("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    listed = [str(name) for name in names]
    more = f" and {len(listed) - number} more" if len(listed) > number else ""
    return ", ".join(listed[:number]) + more
