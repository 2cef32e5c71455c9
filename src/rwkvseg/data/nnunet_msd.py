"""Folders with imagesTr/, labelsTr/ and dataset.json: nnU-Net raw, and MSD."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    require_folder,
)
from rwkvseg.data.io import PICTURE_SUFFIXES, case_id, case_suffix
from rwkvseg.errors import DataError
from rwkvseg.wording import counted


def read_nnunet(root: Path) -> list[CaseFiles]:
    """Labelled cases of an nnU-Net raw folder, channels in files of their own.

    Raises:
        DataError: files do not pair up, channels lack, or dataset.json counts others.
    """
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


def read_msd(root: Path) -> list[CaseFiles]:
    """Labelled cases of an MSD folder: those that dataset.json lists, else all.

    Raises:
        DataError: a damaged list, or files that are listed and not there, or do not pair up.
    """
    settings = read_json(root / "dataset.json")
    listed, last = settings.get("training"), has_channels_last(settings)
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
    require_folder(images)
    require_folder(labels)
    return images, labels


def is_nnunet(root: Path) -> bool:
    """Whether a folder with imagesTr/ is nnU-Net's: dataset.json says so, or the names do."""
    return says_nnunet(root) or _only_channels_pair(root)


def says_nnunet(root: Path) -> bool:
    """Whether dataset.json names channels as nnU-Net does."""
    return "channel_names" in read_json(root / "dataset.json")


def _only_channels_pair(root: Path) -> bool:
    """Whether images are called CASE_0000 though no label is (nnU-Net version 1, without channel_names)."""
    images = list_images(root / "imagesTr")
    labels = (
        {case_id(path) for path in list_images(root / "labelsTr")} if (root / "labelsTr").is_dir() else set()
    )
    return has_channel_numbers(images) and not any(case_id(path) in labels for path in images)


def has_channels_last(settings: Mapping[str, Any]) -> bool:
    """Whether dataset.json names several modalities, which MSD keeps along the fourth axis of its images."""
    modality = settings.get("modality")
    return isinstance(modality, dict) and len(modality) > 1
