"""nnU-Net raw and MSD: imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

NIfTI files are copied with their headers; all else is written anew. Pictures become PNG (nnU-Net only).
"""

import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rwkvseg.data.case import Case
from rwkvseg.data.convert.plan import Item, Plan
from rwkvseg.data.convert.result import (
    Done,
    channel_names,
    licence_of,
    numbered,
    unread,
    write_folds,
    write_groups,
)
from rwkvseg.data.convert.scale import choose_scale
from rwkvseg.data.io import VOLUME_SUFFIXES, case_suffix, write_label_map
from rwkvseg.data.nifti import write_nifti
from rwkvseg.data.pictures import write_picture
from rwkvseg.errors import DataError
from rwkvseg.output import write_atomically, write_json

NO_GEOMETRY = "the source holds no spacing and no affine: 1 mm and the axes of the array were written"
QUANTISED = "fractions among the intensities: 65536 steps over each image's range were written"


def write_case(item: Item, case: Case, plan: Plan, root: Path) -> Done:
    """Write the images and the label of one case.

    Raises:
        DataError: a picture for MSD, or channels that no PNG holds.
        LabelError, OutputError: as `write_label_map`.
    """
    volume = len(case.spatial_shape) == 3
    if plan.options.to == "msd" and not volume:
        raise DataError(f"case {item.id} is a picture, MSD holds volumes. Use --to nnunet.")
    suffix = ".nii.gz" if volume else ".png"
    end = "Ts" if item.part == "test" or not item.has_label else "Tr"
    names = [f"{item.id}_{channel:04d}" for channel in range(len(case.image))]
    paths = [root / f"images{end}" / f"{name}{suffix}" for name in names]
    if plan.options.to == "msd":
        paths = [root / f"images{end}" / f"{item.id}{suffix}"]
    lost = unread(item)
    if volume:
        record = geometry(case)
        lost += _write_volume(item, case, paths)
    else:
        record = _write_picture(item, case, paths)
        lost += [] if record.get("exact", True) else [QUANTISED]
    if case.label is not None:
        write_label_map(root / f"labels{end}" / f"{item.id}{suffix}", case.label, case.affine)
    return Done(
        source=item.id,
        ids=(item.id,),
        part=item.part,
        group=item.group,
        labelled=item.has_label,
        channels=len(case.image),
        lost=tuple(lost),
        record=record | {"axes": len(case.spatial_shape)},
    )


def geometry(case: Case) -> dict[str, Any]:
    """Spacing and affine of a case as JSON."""
    affine = None if case.affine is None else case.affine.tolist()
    return {"spacing": None if case.spacing is None else list(case.spacing), "affine": affine}


def _write_volume(item: Item, case: Case, paths: Sequence[Path]) -> list[str]:
    sources = () if item.stacked else item.sources[0].images
    if len(sources) == len(paths) and all(case_suffix(path) in VOLUME_SUFFIXES for path in sources):
        for source, path in zip(sources, paths, strict=True):
            _copy_nifti(source, path)
        return []
    affine = np.eye(4) if case.affine is None else case.affine
    # one file may be for several channels: MSD keeps them along the fourth axis
    images = case.image if len(paths) == len(case.image) else [np.moveaxis(case.image, 0, -1)]
    for values, path in zip(images, paths, strict=True):
        write_nifti(path, values, affine)
    return [NO_GEOMETRY] if case.affine is None else []


def _copy_nifti(source: Path, path: Path) -> None:
    """Copy to `.nii.gz`; what is not compressed yet is."""
    with write_atomically(path) as temporary, source.open("rb") as file:
        if case_suffix(source) == ".nii.gz":
            with temporary.open("wb") as out:
                shutil.copyfileobj(file, out)
            return
        with temporary.open("wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
            shutil.copyfileobj(file, packed)


def _write_picture(item: Item, case: Case, paths: Sequence[Path]) -> dict[str, Any]:
    """Write channels as PNG: a file each where they came so, else one, or three as colours.

    Returns:
        The scale of what is not 8 or 16 bit.
    """
    image, path = case.image, paths[0]
    if len(item.sources[0].images) == len(image) > 1 and image.dtype in (np.uint8, np.uint16):
        for values, own in zip(image, paths, strict=True):
            write_picture(own, values)
        return {}
    if image.dtype == np.uint8 and len(image) == 3:
        write_picture(path, np.ascontiguousarray(np.moveaxis(image, 0, -1)))
        return {}
    if len(image) != 1:
        raise DataError(
            f"case {case.id} has {len(image)} channels of {image.dtype}; PNG holds one, or three of 8 bit. "
            "Convert the pictures to grey or to 8-bit colours."
        )
    if image.dtype in (np.uint8, np.uint16):
        write_picture(path, image[0])
        return {}
    scale = choose_scale(image, image.dtype)
    write_picture(path, scale.apply(image[0]))
    return {"offset": scale.offset, "step": scale.step, "exact": scale.exact}


def finish(root: Path, plan: Plan, done: Sequence[Done]) -> list[str]:
    """Write dataset.json, splits_final.json and groups.csv; what else there is to know.

    Raises:
        DataError: pictures among volumes, or channels and labels that do not fit.
    """
    axes = {case.record["axes"] for case in done}
    if len(axes) > 1:
        raise DataError(
            f"{plan.folder.root} holds pictures and volumes, a {plan.options.to} folder one kind. "
            "Convert them apart, with --split."
        )
    labels, notes = plan.labels, []
    channels = channel_names(plan, done)
    if plan.channels is None:
        called = ", ".join(channels)
        notes.append(f"channels are called {called}; nnU-Net scales one called CT by a rule of its own")
    if sorted(labels.values()) != list(range(len(labels))):
        notes.append(f"label values {sorted(labels.values())} have gaps: nnU-Net wants them renumbered")
    if plan.options.to == "nnunet" and not re.fullmatch(r"Dataset\d{3}_.+", plan.target.name):
        notes.append("nnU-Net wants the folder to be called DatasetNNN_NAME")
    write_json(root / "dataset.json", _description(plan, done, labels, channels))
    folds = write_folds(root, plan, done, val=True)
    write_groups(root, done)
    return notes + ([folds] if folds else [])


def _description(
    plan: Plan, done: Sequence[Done], labels: dict[str, int], channels: Sequence[str]
) -> dict[str, Any]:
    training = [case for case in done if case.labelled and case.part != "test"]
    others = [case for case in done if not case.labelled or case.part == "test"]
    if plan.options.to == "nnunet":
        ending = ".nii.gz" if done[0].record["axes"] == 3 else ".png"
        return {
            "channel_names": numbered(channels),
            "labels": labels,
            "numTraining": len(training),
            "file_ending": ending,
        } | licence_of(plan)
    pairs = [
        {"image": f"./imagesTr/{case.source}.nii.gz", "label": f"./labelsTr/{case.source}.nii.gz"}
        for case in training
    ]
    return {
        "name": plan.target.name,
        "tensorImageSize": "3D",
        "modality": numbered(channels),
        "labels": {str(value): name for name, value in labels.items()},
        "numTraining": len(training),
        "numTest": len(others),
        "training": pairs,
        "test": [f"./imagesTs/{case.source}.nii.gz" for case in others],
    } | licence_of(plan)
