"""A folder in, a list of cases out: image folders, nnU-Net raw, Medical Segmentation Decathlon (MSD).

docs/reference/data.md shows each layout. Extra files and folders are passed over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvseg.data.files import (
    CaseFiles,
    group_channels,
    has_channel_numbers,
    list_images,
    pair,
    read_json,
    refuse_unpaired,
    with_groups,
)
from rwkvseg.data.io import VOLUME_SUFFIXES, case_id, case_suffix
from rwkvseg.data.reading import read_case
from rwkvseg.errors import DataError

__all__ = ["CaseFiles", "DataFolder", "find_inputs", "open_data", "read_case"]

PARTS = ("train", "val", "test")
_LARGEST_VALUE = 65535  # that a label map can hold, see `write_label_map`
KNOWN = (
    "images/ + masks/; train/, val/, test/ with images/ + masks/ each; "
    "or imagesTr/ + labelsTr/ with dataset.json (nnU-Net raw, MSD)"
)


@dataclass(frozen=True)
class DataFolder:
    """Labelled cases of one folder, sorted by id; `labels` maps name to value, background 0 included."""

    root: Path
    layout: str
    cases: tuple[CaseFiles, ...]
    labels: dict[str, int] | None = None
    licence: str | None = None


def open_data(root: Path, layout: str = "auto") -> DataFolder:
    """List the labelled cases of a data folder without decoding any.

    Args:
        root: the data folder.
        layout: "images", "nnunet", "msd", or "auto" to look.

    Raises:
        DataError: no such folder, nothing in it, an unknown layout, images without label or labels without
            image, label regions or an ignore label.
    """
    root = Path(root)
    _require_folder(root)
    settings = read_json(root / "dataset.json")
    chosen = _detect(root, settings) if layout == "auto" else layout
    if chosen not in READERS:
        raise DataError(f"unknown layout '{layout}'. Choose one of auto, {', '.join(READERS)}.")
    cases = READERS[chosen](root)
    if not cases:
        raise DataError(f"{root} holds no labelled images in the layout '{chosen}'. Expected {KNOWN}.")
    named = settings.get("labels", read_json(root / "labels.json").get("labels"))
    licence = settings.get("licence", settings.get("license"))
    return DataFolder(
        root=root,
        layout=chosen,
        cases=with_groups(root, cases),
        labels=None if named is None else parse_labels(named, root),
        licence=str(licence) if licence else None,
    )


def find_inputs(path: Path) -> tuple[CaseFiles, ...]:
    """List what to predict: one file, a folder of images, or a data folder's images; labels are not needed.

    Of a data folder the first of imagesTs/, images/, the parts' images/ and imagesTr/ that holds anything is
    taken.

    Raises:
        DataError: no such path, no image in it, or a file of unknown format.
    """
    path = Path(path)
    if path.is_file():
        if case_suffix(path) is None:
            raise DataError(f"{path} is of no known format. Use NIfTI, PNG, JPEG, TIFF or BMP.")
        return (CaseFiles(case_id(path), (path,)),)
    _require_folder(path)
    for folder in (path / "imagesTs", path / "images", path, path / "imagesTr"):
        cases = _unlabelled(folder)
        if not cases and folder == path:
            cases = [case for part in PARTS for case in _unlabelled(path / part / "images", part)]
        if cases:
            return tuple(sorted(cases, key=lambda case: case.id))
    raise DataError(f"{path} holds no images. Give a file, a folder of images, or {KNOWN}.")


def _unlabelled(folder: Path, part: str | None = None) -> list[CaseFiles]:
    paths = list_images(folder) if folder.is_dir() else []
    # among pictures IMG_0001 is a name like any other, so channel numbers count only where nnU-Net says so
    volumes = all(case_suffix(path) in VOLUME_SUFFIXES for path in paths)
    if has_channel_numbers(paths) and (volumes or _says_nnunet(folder.parent)):
        return [CaseFiles(case, channels, part=part) for case, channels in group_channels(paths).items()]
    return [
        CaseFiles(f"{part}_{case_id(path)}" if part else case_id(path), (path,), part=part) for path in paths
    ]


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    if not path.is_dir():
        raise DataError(
            f"{path} is a file where a data folder is needed. Give the folder that holds the data."
        )


def _says_nnunet(root: Path) -> bool:
    return "channel_names" in read_json(root / "dataset.json")


def _detect(root: Path, settings: dict[str, Any]) -> str:
    if (root / "imagesTr").is_dir():
        return "nnunet" if "channel_names" in settings or _only_channels_pair(root) else "msd"
    if (root / "images").is_dir() or any((root / part / "images").is_dir() for part in PARTS):
        return "images"
    raise DataError(f"{root} follows no known layout. Expected {KNOWN}.")


def _only_channels_pair(root: Path) -> bool:
    """Whether images are called CASE_0000 though no label is (nnU-Net version 1, without channel_names)."""
    images = list_images(root / "imagesTr")
    labels = (
        {case_id(path) for path in list_images(root / "labelsTr")} if (root / "labelsTr").is_dir() else set()
    )
    return has_channel_numbers(images) and not any(case_id(path) in labels for path in images)


def _read_image_folders(root: Path) -> list[CaseFiles]:
    if (root / "images").is_dir():
        _require_folder(root / "masks")
        return pair(root / "images", root / "masks")
    cases = []
    for part in PARTS:
        images, masks = root / part / "images", root / part / "masks"
        if part == "train" and images.is_dir():
            _require_folder(masks)
        if images.is_dir() and masks.is_dir():  # challenges often keep the masks of the other parts
            cases += pair(images, masks, part=part)
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
    if found and expected and number != expected:
        raise DataError(
            f"{images} has {number} channels a case, dataset.json names {expected}. Make them agree."
        )
    return [CaseFiles(case, channels, truth[case]) for case, channels in found.items()]


def _read_msd(root: Path) -> list[CaseFiles]:
    listed = read_json(root / "dataset.json").get("training")
    if not listed:
        return pair(*_training_folders(root))
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
        cases.append(CaseFiles(case_id(image), (image,), label))
    return cases


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))


def _training_folders(root: Path) -> tuple[Path, Path]:
    images, labels = root / "imagesTr", root / "labelsTr"
    _require_folder(images)
    _require_folder(labels)
    return images, labels


def parse_labels(named: Any, root: Path) -> dict[str, int]:
    """Name -> value from nnU-Net's {name: value} or MSD's {"value": name}; `root` is for the message.

    Raises:
        DataError: regions, an ignore label, no whole numbers, or a value used twice.
    """
    if not isinstance(named, dict):
        raise DataError(f"the labels in {root} are no JSON object. Write them as name: value.")
    if any(isinstance(value, list) for value in named.values()) or "ignore" in named:
        raise DataError(
            f"the labels in {root} use nnU-Net's regions or ignore label, which are not supported. "
            "Give each structure one value."
        )
    try:
        values_first = all(isinstance(value, str) and str(key).isdigit() for key, value in named.items())
        labels = (
            {str(v): int(k) for k, v in named.items()}
            if values_first
            else {k: _as_value(v) for k, v in named.items()}
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"the labels in {root} are not name: value. Mend dataset.json.") from error
    if not all(0 <= value <= _LARGEST_VALUE for value in labels.values()):
        raise DataError(
            f"the labels in {root} have values outside 0..{_LARGEST_VALUE}: {str(labels)[:200]}. "
            "Renumber the structures from 1 up."
        )
    if 0 not in labels.values():
        labels = {"background": 0} | labels
    if len(set(labels.values())) != len(labels):
        raise DataError(f"two labels in {root} share a value: {labels}. Give each its own.")
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _as_value(value: Any) -> int:
    """Whole numbers, also as text; int() alone would cut 1.5 and take True."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)


READERS: dict[str, Callable[[Path], list[CaseFiles]]] = {
    "images": _read_image_folders,
    "nnunet": _read_nnunet,
    "msd": _read_msd,
}
