"""Label maps as files: NIfTI for volumes, PNG for pictures, and of DICOM as it is asked for."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.case import Case
from rwkvseg.data.dicom import Series
from rwkvseg.data.dicom_headers import read_instance
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.io import write_label_map
from rwkvseg.errors import DataError, OutputError, UsageError
from rwkvseg.inference.dicom_seg import import_highdicom, require_references, write_dicom_seg
from rwkvseg.inference.model_file import ModelDescription
from rwkvseg.output import write_folder, write_text
from rwkvseg.wording import counted

SLICES = "slices.csv"
Format = Literal["auto", "nifti", "png", "dicom-seg"]
LabelMap = NDArray[np.integer[Any]]


def check_format(wanted: Format, files: CaseFiles, shape: tuple[int, ...]) -> None:
    """Refuse before the work what could not be written after it.

    Args:
        wanted: the format.
        files: the case.
        shape: its spatial shape.

    Raises:
        UsageError: the format does not fit the case.
        MissingExtraError: highdicom is needed and not installed.
    """
    if wanted == "dicom-seg":
        if files.series is None:
            raise UsageError(f"case {files.id} is no DICOM, so --format dicom-seg cannot be. Use auto.")
        import_highdicom()
    if wanted == "nifti" and len(shape) == 2:
        raise UsageError(
            f"case {files.id} is a picture that lies nowhere, so --format nifti cannot be. Use auto or png."
        )
    if wanted == "png" and len(shape) == 3 and files.series is None:
        raise UsageError(f"case {files.id} is a NIfTI volume, so --format png cannot be. Use auto or nifti.")


def check_series(inputs: Sequence[CaseFiles], channels: int, wanted: Format) -> None:
    """Refuse DICOM before any work that could not be predicted, or not be written, by a file's header.

    Args:
        inputs: all cases.
        channels: of the network.
        wanted: the format.

    Raises:
        DataError: a series has not the network's channels, or lacks what a segmentation refers to.
    """
    for files in inputs:
        instance = read_instance(files.images[0]) if files.series is not None else None
        if instance is None:
            continue
        if instance.is_colour and channels != 3:
            raise DataError(
                f"case {files.id} is in colour (series {instance.number}, a screen shot?), the network takes "
                f"{counted(channels, 'channel')}. "
                "Name the series that are meant by --series."
            )
        if wanted == "dicom-seg":
            require_references(files)


def write_prediction(
    out: Path, files: CaseFiles, case: Case, prediction: LabelMap, *, wanted: Format, model: ModelDescription
) -> Path:
    """Write one label map into the folder `out`, whole or not at all, and return its path.

    "auto" is `<id>.nii.gz` for volumes and `<id>.png` for pictures, "dicom-seg" `<id>.dcm`. "png" of a DICOM
    volume is a folder `<id>` with a picture (row, column) for each slice, numbered along the normal, and
    `slices.csv` that names the file and instance of each; one of an earlier prediction is replaced.

    Raises:
        OutputError: it cannot be written.
        DataError: as `write_dicom_seg`.
    """
    if wanted == "dicom-seg":
        path = out / f"{files.id}.dcm"
        write_dicom_seg(path, files, prediction, model)
        return path
    if prediction.ndim == 3 and wanted == "png":
        return _write_slices(out / files.id, files, prediction)
    path = out / f"{files.id}{'.nii.gz' if prediction.ndim == 3 else '.png'}"
    source = files.images[0]
    is_nifti = files.series is None and source.name.lower().endswith((".nii", ".nii.gz"))
    write_label_map(path, prediction, case.affine, like=source if is_nifti else None)
    return path


def _write_slices(folder: Path, files: CaseFiles, prediction: LabelMap) -> Path:
    if folder.exists() and not (folder / SLICES).is_file():
        raise OutputError(f"{folder} is there and holds no {SLICES} of an earlier prediction. Remove it.")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["picture", "file", "frame", "sop_instance_uid"])
    series = Series.from_files(files.images)
    frames = [(instance, frame) for instance in series.instances for frame in range(instance.shape[0])]
    assert series.stack is not None
    with write_folder(folder) as temporary:
        for k, index in enumerate(series.stack.order):
            instance, frame = frames[index]
            name = f"{k:04d}.png"
            write_label_map(temporary / name, np.ascontiguousarray(prediction[:, :, k].T))
            writer.writerow([name, instance.path, frame + 1, instance.uid])
        write_text(temporary / SLICES, table.getvalue())
    return folder
