"""A DICOM file or folder in, one case per series out; what the files hold decides, not their names."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from rwkvseg.data.dicom import Series
from rwkvseg.data.dicom_headers import Instance, read_instance
from rwkvseg.data.dicom_parsing import is_dicom, is_marked
from rwkvseg.data.files import CaseFiles, name_some
from rwkvseg.data.io import case_suffix
from rwkvseg.data.notices import say_once
from rwkvseg.errors import DataError, UnreadableFileError, UsageError
from rwkvseg.wording import counted


def find_dicom(path: Path, series: Sequence[str] = ()) -> list[CaseFiles]:
    """List the series below a folder, or of one file, as cases: volumes, and each X-ray or screen shot alone.

    Headers are read, and the geometry of the series that are wanted is checked.

    Args:
        path: file, or folder that is searched through and through; hidden files are passed over.
        series: SeriesInstanceUIDs, series numbers or case ids that are wanted; empty for all.

    Raises:
        UnreadableFileError: a truncated or damaged DICOM file.
        DataError: a series that makes no volume; GeometryError where its slices do not.
        UsageError: `series` names what is not there.
        MissingExtraError: pydicom is not installed.
    """
    if path.is_file():
        root, instances = path.parent, _images(path, [path])
    else:
        root, instances = path, _images(path, _iterate_below(path))
    by_series: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_series[instance.series].append(instance)
    groups = [group for found in by_series.values() for group in _cases(found)]
    names = [path.stem for _ in groups] if path.is_file() else _names(root, groups)
    cases = [
        (CaseFiles(name, tuple(item.path for item in group), series=group[0].series), group)
        for name, group in zip(names, groups, strict=True)
    ]
    wanted = [(files, group) for files, group in cases if _is_wanted(files, group, series)]
    _require_known(series, cases)
    return sorted((_checked(files, group, cases) for files, group in wanted), key=lambda case: case.id)


def any_dicom_below(folder: Path) -> bool:
    """Whether a DICOM file lies anywhere below a folder; the search ends at the first."""
    return any(is_dicom(path) for path in _iterate_below(folder) if case_suffix(path) is None)


def _iterate_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        paths = (Path(place) / name for name in sorted(names) if name[0] != ".")
        yield from (path for path in paths if path.is_file())


def _images(root: Path, paths: Iterable[Path]) -> list[Instance]:
    images: list[Instance] = []
    without_image: list[str] = []
    foreign: list[str] = []
    for path in paths:
        try:
            instance = read_instance(path) if is_dicom(path) else None
        except UnreadableFileError:
            if is_marked(path):
                raise
            foreign.append(path.name)  # what looked like an old file without preamble
            continue
        if instance is not None:
            images.append(instance)
        else:
            (without_image if is_dicom(path) else foreign).append(path.name)
    for names, what in ((foreign, "no DICOM"), (without_image, "DICOM without an image to segment")):
        if names and images:
            say_once(f"{root}: passed over {counted(len(names), 'file')}, {what}: {name_some(names)}")
    if not images and without_image:
        raise DataError(
            f"none of {counted(len(without_image), 'DICOM file')}, such as {without_image[0]}, holds an "
            "image to segment (they are reports, plans, segmentations). Give the folder of the images."
        )
    return images


def _cases(instances: list[Instance]) -> list[list[Instance]]:
    """One volume, or every picture for itself."""
    if any(instance.planes or instance.shape[0] > 1 for instance in instances):
        return [instances]
    return [[instance] for instance in instances]


def _names(root: Path, groups: Sequence[Sequence[Instance]]) -> list[str]:
    """Folder of each case, with number and description of its series where that is not enough."""
    names = [_folder_name(root, group) for group in groups]
    for extend in (_series_name, _file_name):
        counts = Counter(name.lower() for name in names)
        names = [
            f"{name}_{extend(group)}" if counts[name.lower()] > 1 else name
            for name, group in zip(names, groups, strict=True)
        ]
    taken: set[str] = set()
    for position, name in enumerate(names):
        numbers = count(2)
        while names[position].lower() in taken:
            names[position] = f"{name}_{next(numbers)}"
        taken.add(names[position].lower())
    return names


def _folder_name(root: Path, group: Sequence[Instance]) -> str:
    common = Path(os.path.commonpath([instance.path.parent for instance in group]))
    parts = common.relative_to(root).parts
    return _plain("_".join(parts)) or _plain(root.resolve().name) or "dicom"


def _series_name(group: Sequence[Instance]) -> str:
    return _plain(f"{group[0].number} {group[0].description}"[:60])


def _file_name(group: Sequence[Instance]) -> str:
    return _plain(group[0].path.stem)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._")


def _is_wanted(files: CaseFiles, group: Sequence[Instance], series: Sequence[str]) -> bool:
    return not series or bool({files.id, group[0].series, str(group[0].number)} & set(series))


def _require_known(series: Sequence[str], cases: Sequence[tuple[CaseFiles, Sequence[Instance]]]) -> None:
    unknown = [name for name in series if not any(_is_wanted(*case, [name]) for case in cases)]
    if unknown:
        raise UsageError(f"there is no series {', '.join(unknown)}. There are {_tell(cases)}.")


def _tell(cases: Sequence[tuple[CaseFiles, Sequence[Instance]]]) -> str:
    told = [
        f"{files.id} (number {group[0].number}, UID {group[0].series}, "
        f"{counted(sum(instance.shape[0] for instance in group), 'image')})"
        for files, group in cases
    ]
    return "; ".join(told[:8]) + (f"; and {len(told) - 8} more" if len(told) > 8 else "")


def _checked(
    files: CaseFiles, group: list[Instance], cases: Sequence[tuple[CaseFiles, Sequence[Instance]]]
) -> CaseFiles:
    """Files in the order of the slices; a refusal says what else there is to choose."""
    try:
        return CaseFiles(files.id, Series(group).files, series=files.series)
    except DataError as error:
        others = [case for case in cases if case[0] is not files]
        if not others or isinstance(error, UnreadableFileError):
            raise
        raise type(error)(f"{error} Or choose others with --series: {_tell(others)}.") from error
