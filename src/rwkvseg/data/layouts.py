"""A folder in, a list of cases out: image folders, masks beside images, nnU-Net raw, MSD, TransUNet.

MSD is the Medical Segmentation Decathlon. docs/reference/data.md shows each layout. Extra files and folders
are passed over.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rwkvseg.data.dicom_files import any_dicom_below, find_dicom, holds_dicom
from rwkvseg.data.files import (
    CaseFiles,
    group_channels,
    groups_file,
    has_channel_numbers,
    list_images,
    pair,
    read_groups,
    read_json,
    refuse_unpaired,
    with_groups,
)
from rwkvseg.data.io import PICTURE_SUFFIXES, VOLUME_SUFFIXES, case_id, case_suffix
from rwkvseg.data.label_names import parse_labels
from rwkvseg.data.published import beside_images, is_beside, pair_folders, read_beside
from rwkvseg.data.reading import read_case
from rwkvseg.data.transunet import is_transunet, known_labels, list_transunet, read_transunet
from rwkvseg.errors import DataError, UsageError
from rwkvseg.wording import counted

__all__ = ["CaseFiles", "DataFolder", "find_inputs", "open_data", "read_case"]

KNOWN = (
    "images/ + masks/; train/, val/, test/ with images/ + masks/ each; x.png + x_mask.png; "
    "imagesTr/ + labelsTr/ with dataset.json (nnU-Net raw, MSD); train_npz/ + test_vol_h5/ or "
    "ACDC_training_slices/ + ACDC_training_volumes/ (TransUNet)"
)
NEAR = 20  # entries of a folder among which a layout is looked for


@dataclass(frozen=True)
class DataFolder:
    """Labelled cases of one folder, sorted by id; `labels` maps name to value, background 0 included."""

    root: Path
    layout: str
    cases: tuple[CaseFiles, ...]
    labels: dict[str, int] | None = None
    licence: str | None = None
    channels: tuple[str, ...] | None = None
    """What the image's channels are called, where that is said."""


def open_data(root: Path, layout: str = "auto") -> DataFolder:
    """List the labelled cases of a data folder without decoding any.

    Args:
        root: the data folder.
        layout: "images", "beside", "nnunet", "msd", "transunet", or "auto" to look.

    Raises:
        DataError: no such folder, nothing in it, an unknown layout, images without label or labels without
            image, label regions or an ignore label.
    """
    root = Path(root)
    _require_folder(root)
    settings = read_json(root / "labels.json") | read_json(root / "dataset.json")
    chosen = (detect_layout(root) or "unknown") if layout == "auto" else layout
    if chosen == "unknown":
        raise unknown_layout(root)
    if chosen not in READERS:
        raise DataError(f"unknown layout '{layout}'. Choose one of auto, {', '.join(READERS)}.")
    cases = READERS[chosen](root)
    if not cases:
        raise DataError(f"{root} holds no labelled images in the layout '{chosen}'. Expected {KNOWN}.")
    named = settings.get("labels")
    labels = known_labels(cases, root) if chosen == "transunet" else None
    licence = settings.get("licence", settings.get("license"))
    return DataFolder(
        root=root,
        layout=chosen,
        cases=with_groups(root, cases),
        labels=labels if named is None else parse_labels(named, root),
        licence=str(licence) if licence else None,
        channels=_channel_names(settings),
    )


def _channel_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """From nnU-Net's {"0": name}, or MSD's under the key modality."""
    named = settings.get("channel_names", settings.get("modality"))
    return tuple(str(name) for name in named.values()) if isinstance(named, dict) and named else None


def held_back(folder: DataFolder) -> tuple[CaseFiles, ...]:
    """Cases that `open_data` passes over: imagesTs, with the labels in labelsTs, and parts without masks."""
    root = folder.root
    if folder.layout == "images":
        pairs = (pair for pair in pair_folders(root) if pair.part and not pair.masks.is_dir())
        cases = [case for pair in pairs for case in _unlabelled(pair.images, pair.part)]
    elif folder.layout in ("nnunet", "msd"):
        truths = list_images(root / "labelsTs") if (root / "labelsTs").is_dir() else []
        labels = {case_id(path): path for path in truths}
        found = _unlabelled(root / "imagesTs", as_channels=folder.layout == "nnunet")
        cases = [replace(case, label=labels.get(case.id), part="test") for case in found]
    else:
        return ()
    path = groups_file(root)
    groups = {} if path is None else read_groups(path)
    return tuple(replace(case, group=groups.get(case.id)) for case in cases)


def find_inputs(path: Path, series: Sequence[str] = ()) -> tuple[CaseFiles, ...]:
    """List what to predict: one file, a folder of images, or a data folder's images; labels are not needed.

    Of a data folder the first of imagesTs/, images/ (or what the set calls it), the root itself, the parts'
    images, TransUNet's volumes or else slices, and imagesTr/ that holds anything is taken. A folder that
    holds none of these is searched for DICOM series.

    Args:
        path: file or folder.
        series: which DICOM series, see `find_dicom`; empty for all.

    Raises:
        DataError: no such path, no image in it, a file of unknown format, images among DICOM files, or as
            `find_dicom`.
        UsageError: `series` where there is no DICOM, or as `find_dicom`.
    """
    path = Path(path)
    found = _find_files(path)
    if not found:
        return _find_series(path, series)
    if series:
        raise UsageError(f"--series is of DICOM, {path} holds other images. Leave it out.")
    if path.is_dir() and found[0].images[0].parent == path and holds_dicom(path):
        raise DataError(
            f"{path} holds {counted(len(found), 'picture or NIfTI volume', 'pictures or NIfTI volumes')} "
            "among DICOM files. Put them into folders of their own."
        )
    return found


def _find_series(path: Path, series: Sequence[str]) -> tuple[CaseFiles, ...]:
    cases = tuple(find_dicom(path, series))
    if not cases and path.is_file():
        raise DataError(f"{path} is of no known format. Use NIfTI, DICOM, PNG, JPEG, TIFF, BMP, npz or h5.")
    if not cases:
        raise DataError(f"{path} holds no images. Give a file, a folder of images or DICOM, or {KNOWN}.")
    return cases


def _find_files(path: Path) -> tuple[CaseFiles, ...]:
    """All but DICOM."""
    if path.is_file():
        return () if case_suffix(path) is None else (CaseFiles(case_id(path), (path,)),)
    _require_folder(path)
    for find in (_in_tests, _in_images, _in_root, _in_parts, _in_arrays, _in_training):
        cases = find(path)
        if cases:
            return tuple(sorted(cases, key=lambda case: case.id))
    return ()


def _in_tests(root: Path) -> list[CaseFiles]:
    return _unlabelled(root / "imagesTs")


def _in_images(root: Path) -> list[CaseFiles]:
    return [case for pair in pair_folders(root) if pair.part is None for case in _unlabelled(pair.images)]


def _in_root(root: Path) -> list[CaseFiles]:
    if detect_layout(root) == "beside":
        return [CaseFiles(case_id(path), (path,)) for path in beside_images(root)]
    return _unlabelled(root)


def _in_parts(root: Path) -> list[CaseFiles]:
    return [case for pair in pair_folders(root) if pair.part for case in _unlabelled(pair.images, pair.part)]


def _in_arrays(root: Path) -> list[CaseFiles]:
    if not is_transunet(root):
        return [CaseFiles(case_id(path), (path,)) for path in list_images(root, arrays=True)]
    cases = list_transunet(root).cases
    return [case for case in cases if case.part == "test"] or list(cases)


def _in_training(root: Path) -> list[CaseFiles]:
    return _unlabelled(root / "imagesTr")


def _unlabelled(folder: Path, part: str | None = None, *, as_channels: bool | None = None) -> list[CaseFiles]:
    paths = list_images(folder) if folder.is_dir() else []
    # among pictures IMG_0001 is a name like any other, so channel numbers count only where nnU-Net says so
    volumes = all(case_suffix(path) in VOLUME_SUFFIXES for path in paths)
    says = (volumes or _says_nnunet(folder.parent)) if as_channels is None else as_channels
    if has_channel_numbers(paths) and says:
        return [CaseFiles(case, channels, part=part) for case, channels in group_channels(paths).items()]
    names = [f"{part}_{case_id(path)}" if part else case_id(path) for path in paths]
    last = volumes and _has_channels_last(folder.parent)
    return [
        CaseFiles(name, (path,), part=part, channels_last=last)
        for name, path in zip(names, paths, strict=True)
    ]


def _has_channels_last(root: Path) -> bool:
    """Whether dataset.json names several modalities, which MSD keeps along the fourth axis of its images."""
    modality = read_json(root / "dataset.json").get("modality")
    return isinstance(modality, dict) and len(modality) > 1


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    if not path.is_dir():
        raise DataError(
            f"{path} is a file where a data folder is needed. Give the folder that holds the data."
        )


def _says_nnunet(root: Path) -> bool:
    return "channel_names" in read_json(root / "dataset.json")


def detect_layout(root: Path) -> str | None:
    """Which layout a folder follows by the names in it; None: none.

    Raises:
        DataError: its dataset.json cannot be read.
    """
    if (root / "imagesTr").is_dir():
        return "nnunet" if _says_nnunet(root) or _only_channels_pair(root) else "msd"
    if pair_folders(root):
        return "images"
    if is_transunet(root):
        return "transunet"
    return "beside" if is_beside(root) else None


def unknown_layout(root: Path) -> DataError:
    """What to raise of a folder that follows none: its cure, or where near it one begins."""
    told = f"{root} follows no known layout"
    if (root / "imagesTs").is_dir():
        return DataError(
            f"{root} holds imagesTs/ without imagesTr/, images without labels. Move those that have labels "
            "to imagesTr/, put the labels into labelsTr/ and name them in dataset.json."
        )
    for near in (root.absolute().parent, *_below(root)):
        with suppress(DataError, OSError):
            if detect_layout(near) not in (None, "beside"):
                return DataError(f"{told}, but {near} does. Give that folder.")
    if any_dicom_below(root):
        return DataError(
            f"{root} holds DICOM files, which come without labels. Write its series to DST/imagesTs with "
            f"`rwkvseg data convert {shlex.quote(str(root))} DST --to nnunet --label NAME=VALUE`, move those "
            "that have labels to DST/imagesTr, and put the labels into DST/labelsTr."
        )
    return DataError(f"{told}. Expected {KNOWN}.")


def _below(root: Path) -> Iterator[Path]:
    """Folders in `root` and in those; unpacking an archive often adds one or two."""
    with suppress(OSError):
        below = [path for path in sorted(root.iterdir())[:NEAR] if path.is_dir()]
        yield from below
        for folder in below:
            yield from (path for path in sorted(folder.iterdir())[:NEAR] if path.is_dir())


def _only_channels_pair(root: Path) -> bool:
    """Whether images are called CASE_0000 though no label is (nnU-Net version 1, without channel_names)."""
    images = list_images(root / "imagesTr")
    labels = (
        {case_id(path) for path in list_images(root / "labelsTr")} if (root / "labelsTr").is_dir() else set()
    )
    return has_channel_numbers(images) and not any(case_id(path) in labels for path in images)


def _read_image_folders(root: Path) -> list[CaseFiles]:
    cases = []
    for folders in pair_folders(root):
        if folders.part in (None, "train"):
            _require_folder(folders.masks)
        if folders.masks.is_dir():  # challenges often keep the masks of the other parts
            cases += pair(folders.images, folders.masks, part=folders.part)
    return cases


def _read_nnunet(root: Path) -> list[CaseFiles]:
    images, labels = _training_folders(root)
    found = group_channels(list_images(images))
    truth = {case_id(path): path for path in list_images(labels)}
    refuse_unpaired(
        images,
        labels,
        [case for case in found if case not in truth],
        [case for case in truth if case not in found],
    )
    expected = len(read_json(root / "dataset.json").get("channel_names", ()))
    number = len(next(iter(found.values()), ()))
    if found and expected and number != expected and not _in_one_picture(found):
        raise DataError(
            f"{images} has {counted(number, 'channel')} a case, dataset.json names {expected}. "
            "Make them agree."
        )
    return [CaseFiles(case, channels, truth[case]) for case, channels in found.items()]


def _in_one_picture(found: Mapping[str, Sequence[Path]]) -> bool:
    """Whether cases are pictures, whose one file may hold three channels (red, green, blue)."""
    return all(len(paths) == 1 and case_suffix(paths[0]) in PICTURE_SUFFIXES for paths in found.values())


def _read_msd(root: Path) -> list[CaseFiles]:
    listed, last = read_json(root / "dataset.json").get("training"), _has_channels_last(root)
    if not listed:
        return [replace(case, channels_last=last) for case in pair(*_training_folders(root))]
    if not isinstance(listed, list) or not all(map(_is_entry, listed)):
        raise DataError(
            f"'training' in {root / 'dataset.json'} is no list of pairs. "
            'Write each as {"image": path, "label": path}.'
        )
    cases = []
    for entry in listed:
        image, label = root / entry["image"], root / entry["label"]
        for path in (image, label):
            if not path.is_file():
                raise DataError(
                    f"{path}, listed in dataset.json, does not exist. Restore it or take it off the list."
                )
        cases.append(CaseFiles(case_id(image), (image,), label, channels_last=last))
    return cases


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))


def _training_folders(root: Path) -> tuple[Path, Path]:
    images, labels = root / "imagesTr", root / "labelsTr"
    _require_folder(images)
    _require_folder(labels)
    return images, labels


READERS: dict[str, Callable[[Path], list[CaseFiles]]] = {
    "images": _read_image_folders,
    "beside": read_beside,
    "nnunet": _read_nnunet,
    "msd": _read_msd,
    "transunet": read_transunet,
}
