"""Read the label maps of the same cases under several runs, for pictures beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from rwkvseg.data.files import CaseFiles
from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.io import Label
from rwkvseg.data.published import mask_files
from rwkvseg.data.reading import check_label_values, label_values, read_case_label, read_to_show
from rwkvseg.errors import DataError, GeometryError
from rwkvseg.evaluation.evaluations import CaseResult, Evaluated
from rwkvseg.evaluation.pictures import Picture, make_picture, most_wrong_slice

BINARY = {"background": 0, "structure": 1}


def read_compared(
    runs: Sequence[Evaluated], cases: Sequence[str], *, images: Path | None = None
) -> list[list[Picture]]:
    """One list a case: its picture under every run, of volumes the slice most wrong over all runs together.

    Args:
        runs: evaluations of the same cases.
        cases: ids of those to show.
        images: folder of the images; else where they were when the runs were evaluated; grey where unknown.

    Raises:
        DataError: a label map is gone or cannot be read.
        GeometryError: a prediction on another grid than the truth.
    """
    listed = () if images is None else find_inputs(images)
    found = {files.id: files for files in listed}
    return [_read_case(runs, name, found) for name in cases]


def _read_case(runs: Sequence[Evaluated], name: str, images: Mapping[str, CaseFiles]) -> list[Picture]:
    results = [run.cases[name] for run in runs]
    truth, affine = _read_map(_existing([result.truth for result in results], "truth", name))
    spacing = None if affine is None else tuple(float(mm) for mm in nibabel.affines.voxel_sizes(affine))
    predictions = []
    for run, result in zip(runs, results, strict=True):
        path = _existing([result.prediction, _beside(run, result)], f"prediction of {run.label!r}", name)
        prediction, _ = _read_map(path)
        if prediction.shape != truth.shape:
            raise GeometryError(
                f"{path} has size {prediction.shape}, the truth of case {name!r} has {truth.shape}. "
                "Predict and evaluate again."
            )
        predictions.append(prediction)
    image, hung = _read_image(name, results, images, truth.shape)
    index = most_wrong_slice(truth, predictions, spacing) if truth.ndim == 3 else None
    return [
        make_picture(name, image, truth, prediction, result.dsc, spacing=spacing, affine=hung, index=index)
        for prediction, result in zip(predictions, results, strict=True)
    ]


def _beside(run: Evaluated, result: CaseResult) -> Path:
    """Where a run folder that was moved holds its predictions."""
    return run.folder.parent.parent / "predictions" / run.folder.name / result.prediction.name


def _existing(paths: Sequence[Path], what: str, case: str) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise DataError(
        f"the {what} of case {case!r} is no longer at {paths[0]}. "
        "Call from the folder in which it was evaluated, or evaluate again where the files lie now."
    )


def _read_map(path: Path) -> tuple[Label, NDArray[np.float64] | None]:
    label, affine = read_case_label(mask_files(path), BINARY)
    if set(label_values(label)) <= {0, 255}:
        label = check_label_values(label, BINARY, path)
    return label, affine


def _read_image(
    name: str, results: Sequence[CaseResult], images: Mapping[str, CaseFiles], shape: tuple[int, ...]
) -> tuple[NDArray[np.generic], NDArray[np.float64] | None]:
    recorded = [result.image for result in results if result.image is not None and result.image.is_file()]
    known = [images[name]] if name in images else [CaseFiles(name, (path,)) for path in recorded]
    if known:
        image, affine = read_to_show(known[0])
        if image.shape[1:] == shape:
            return image, affine
    return np.full((1, *shape), 128, np.uint8), None
