"""TransUNet's layout: slices to train on, whole volumes to test on, and lists that say which.

Synapse: train_npz/case0005_slice000.npz, test_vol_h5/case0001.npy.h5, lists train.txt and test_vol.txt (as
published with TransUNet). ACDC: ACDC_training_slices/patient100_frame13_slice_0.h5 and
ACDC_training_volumes/patient100_frame01.h5, lists train_slices.list, train.list, val.list and test.list (as
published with SSL4MIS).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvseg.data.datasets import DATASETS
from rwkvseg.data.files import CaseFiles, list_images, name_some
from rwkvseg.data.io import case_id
from rwkvseg.errors import DataError
from rwkvseg.wording import counted

SYNAPSE = ("train_npz", "test_vol_h5")
ACDC = ("ACDC_training_slices", "ACDC_training_volumes")
LISTS = {
    "train": ("train_slices.list", "train_slices.txt", "train.list", "train.txt"),
    "val": ("val.list", "valid.list", "val.txt", "valid.txt", "val_vol.txt"),
    "test": ("test.list", "test.txt", "test_vol.txt"),
}
SLICE = re.compile(r"^(?P<volume>.+)_slice_?(?P<number>\d+)$")
GROUP = re.compile(r"^(?:patient|case)_?\d+", re.IGNORECASE)
PATIENT = re.compile(r"^patient(\d+)", re.IGNORECASE)
LAST_TEST, LAST_VAL = (
    20,
    30,
)  # ACDC's patients in the RWKV-UNet paper: 001-020 test, 021-030 val, the rest train


@dataclass(frozen=True)
class TransUNetFolder:
    """Cases by the lists, and the names on them that no file has."""

    cases: tuple[CaseFiles, ...]
    missing: Mapping[Path, tuple[str, ...]]
    """List -> names."""


def is_transunet(root: Path) -> bool:
    """Whether a folder has one of the layout's folders."""
    return any((root / name).is_dir() for name in (*SYNAPSE, *ACDC))


def read_transunet(root: Path) -> list[CaseFiles]:
    """Cases of `list_transunet`.

    Raises:
        DataError: a list names what no file has, or there are no lists and the rule for ACDC fits no name.
    """
    found = list_transunet(root)
    for path, names in found.missing.items():
        raise DataError(
            f"{path} lists {counted(len(names), 'case')} without a file: {name_some(names)}. "
            "Restore the files, or take them off the list."
        )
    return list(found.cases)


def list_transunet(root: Path) -> TransUNetFolder:
    """Cases of the layout with their parts: slices to train on, volumes for the other parts.

    A listed volume stands for its slices in the training part; where there are none, for itself. Without
    lists, the slices of Synapse train and its volumes test, and ACDC is split by patient as in the RWKV-UNet
    paper. Groups are the patients.

    Raises:
        DataError: a case on the lists of two parts; there are no lists and the rule for ACDC fits no name; or
            two files of one case.
    """
    slices, volumes = _files(root, 0), _files(root, 1)
    by_volume: dict[str, list[str]] = defaultdict(list)
    for name in slices:
        by_volume[volume_name(name)].append(name)
    cases: dict[str, CaseFiles] = {}
    missing = {}
    for part, path, names in _parts(root, slices, volumes):
        unknown = []
        for name in names:
            found = _resolve(name, part, slices, volumes, by_volume)
            _refuse_second_part(found, part, cases, path)
            cases |= {case: _case(case, file, part) for case, file in found.items()}
            unknown += [] if found else [name]
        if unknown:
            missing[path] = tuple(unknown)
    return TransUNetFolder(tuple(cases[name] for name in sorted(cases)), missing)


def _refuse_second_part(found: Iterable[str], part: str, cases: Mapping[str, CaseFiles], path: Path) -> None:
    for case in found:
        if case in cases and cases[case].part != part:
            raise DataError(
                f"{path} lists {case}, which is in the part {cases[case].part} already. Keep it on one list."
            )


def volume_name(case: str) -> str:
    """Id of the volume that a slice is of; of anything else, its own id.

    >>> volume_name("case0005_slice012"), volume_name("patient100_frame13_slice_0"), volume_name("case0001")
    ('case0005', 'patient100_frame13', 'case0001')
    """
    match = SLICE.match(case)
    return match["volume"] if match else case


def known_labels(cases: Sequence[CaseFiles], root: Path) -> dict[str, int] | None:
    """Labels of Synapse or ACDC where the names of folders and cases are theirs; else None."""
    for folders, name, pattern in (
        (SYNAPSE, "synapse", r"case\d{4}"),
        (ACDC, "acdc", r"patient\d{3}_frame\d\d"),
    ):
        there = any((root / folder).is_dir() for folder in folders)
        if there and all(re.fullmatch(pattern, volume_name(case.id)) for case in cases):
            return DATASETS[name].labels
    return None


def _files(root: Path, kind: int) -> dict[str, Path]:
    folders = [root / names[kind] for names in (SYNAPSE, ACDC) if (root / names[kind]).is_dir()]
    return {case_id(path): path for folder in folders for path in list_images(folder, arrays=True)}


def _parts(
    root: Path, slices: Mapping[str, Path], volumes: Mapping[str, Path]
) -> Iterable[tuple[str, Path, Sequence[str]]]:
    """Part, where that is said, and the names in it."""
    lists = {part: path for part in LISTS if (path := _find_list(root, part)) is not None}
    for part, path in lists.items():
        yield part, path, _names(path)
    if any((root / name).is_dir() for name in SYNAPSE):
        if "train" not in lists:
            yield "train", root, list(slices)
        if "test" not in lists and "val" not in lists:
            yield "test", root, list(volumes)
    elif not lists:
        patients = dict.fromkeys([*volumes, *map(volume_name, slices)])
        for part in LISTS:
            yield part, root, [name for name in patients if _paper_part(name, root) == part]


def _find_list(root: Path, part: str) -> Path | None:
    folders = [root, root / "lists", *sorted(root.glob("lists_*/")), *sorted(root.glob("lists/*/"))]
    paths = (folder / name for folder in folders for name in LISTS[part])
    return next((path for path in paths if path.is_file()), None)


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {path}: {error}. Write one name a line, as UTF-8.") from error
    return [case_id(Path(line.strip())) for line in lines if line.strip()]


def _paper_part(name: str, root: Path) -> str:
    match = PATIENT.match(name)
    if match is None:
        raise DataError(
            f"{root} has no lists, and '{name}' names no patient, so nothing tells its part. "
            "Add train.list, val.list and test.list."
        )
    patient = int(match[1])
    return "test" if patient <= LAST_TEST else "val" if patient <= LAST_VAL else "train"


def _resolve(
    name: str,
    part: str,
    slices: Mapping[str, Path],
    volumes: Mapping[str, Path],
    by_volume: Mapping[str, Sequence[str]],
) -> dict[str, Path]:
    """Files that a listed name stands for, by case id."""
    of_slices = {case: slices[case] for case in by_volume.get(name, ())}
    of_volume = {name: volumes[name]} if name in volumes else {}
    if name in slices:
        return {name: slices[name]}
    return (of_slices or of_volume) if part == "train" else (of_volume or of_slices)


def _case(name: str, path: Path, part: str) -> CaseFiles:
    match = GROUP.match(name)
    return CaseFiles(name, (path,), path, part, match[0] if match else volume_name(name))
