"""Which prediction belongs to which truth, and both of them read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from rwkvseg.data.files import MASK_ENDINGS, CaseFiles, list_images, with_groups
from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.io import Label, case_id, read_label
from rwkvseg.data.layout_detection import detect_layout
from rwkvseg.data.layouts import open_data
from rwkvseg.data.reading import AFFINE_TOLERANCE, check_label_values, label_values, read_case_label
from rwkvseg.errors import DataError, GeometryError, MissingExtraError, UsageError
from rwkvseg.inference.evaluation_context import Record, Spacing, digest_of
from rwkvseg.wording import counted


@dataclass(frozen=True)
class Pair:
    """A prediction, its truth and, for the pictures of the report, its image where one is known."""

    case: str
    prediction: Path
    truth: Path
    files: CaseFiles
    """Of the truth."""
    image: CaseFiles | None = None
    group: str | None = None


@dataclass(frozen=True)
class Pairs:
    """What is there to be scored."""

    pairs: tuple[Pair, ...]
    not_predicted: tuple[str, ...]
    """Truths without a prediction."""
    labels: dict[str, int] | None
    """Of the data folder, where it names them."""

    def only(self, cases: Collection[str] | None) -> "Pairs":
        """Leave out all other cases; None keeps all."""
        if cases is None:
            return self
        return Pairs(
            tuple(pair for pair in self.pairs if pair.case in cases),
            tuple(case for case in self.not_predicted if case in cases),
            self.labels,
        )

    @property
    def groups(self) -> dict[str, str | None] | None:
        """Patient or video of every case, where that of each is known."""
        groups = {pair.case: pair.group for pair in self.pairs}
        return None if None in groups.values() else groups

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 over all truths, and over all predictions."""
        return {
            "truth": digest_of(pair.truth for pair in self.pairs),
            "predictions": digest_of(pair.prediction for pair in self.pairs),
        }


def require_label_maps(folder: Path) -> None:
    """Raise DataError where there is no such folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give the folder that holds the label maps.")


def pair_files(
    predictions: Path, truth: Path, images: Sequence[CaseFiles] = (), *, layout: str = "auto"
) -> Pairs:
    """Pair predictions with truths by case id.

    A prediction `x` belongs to the truth `x`, else to `x_mask`, `x_segmentation` or `x_gt`.

    Raises:
        DataError: no predictions, no truths, predictions without truth, or two truths of one case.
    """
    for folder in (predictions, truth):
        require_label_maps(folder)
    predicted = {case_id(path): path for path in list_images(predictions)}
    if not predicted:
        raise DataError(f"{predictions} holds no label maps. Run `rwkvseg predict` into it first.")
    known, labels = _find_truths(truth, predicted, layout)
    orphans = [case for case in predicted if case not in known]
    if orphans:
        some = ", ".join(orphans[:5])
        raise DataError(
            f"{len(orphans)} of {counted(len(predicted), 'prediction')} without truth in {truth}: {some}. "
            "Give the truths of exactly these cases, under the same names."
        )
    pictured = {files.id: files for files in images}
    pairs = []
    for case, path in sorted(predicted.items()):
        files = known[case]
        assert files.label is not None
        pairs.append(
            Pair(case, path, files.label, files, files if files.images else pictured.get(case), files.group)
        )
    return Pairs(tuple(pairs), tuple(sorted(set(known) - set(predicted))), labels)


def _find_truths(
    truth: Path, predicted: Collection[str], layout: str
) -> tuple[dict[str, CaseFiles], dict[str, int] | None]:
    if detect_layout(truth) is not None:
        folder = open_data(truth, layout)
        return {case.id: case for case in folder.cases}, folder.labels
    paths = list_images(truth) or list_images(truth, arrays=True)
    if not paths:
        raise DataError(f"{truth} holds no label maps. Give the folder of the truths or the data folder.")
    found: dict[str, CaseFiles] = {}
    for path in paths:
        name = case_id(path)
        ending = next((end for end in MASK_ENDINGS if end and name.endswith(end)), "")
        case = name if name in predicted else name.removesuffix(ending)
        if case in found:
            raise DataError(f"{found[case].label} and {path} are both truths of case '{case}'. Keep one.")
        found[case] = CaseFiles(case, (), path)
    return {case.id: case for case in with_groups(truth, list(found.values()))}, None


def recorded_images(record: Record) -> tuple[CaseFiles, ...]:
    """Images where `predict` found them; they are only for the pictures, so their absence is no fault."""
    try:
        series = tuple(record.dicom_series.values())
        return find_inputs(Path(record.images), series) if record.images else ()
    except (DataError, MissingExtraError, UsageError):
        return ()


def labels_in_files(pairs: Sequence[Pair]) -> dict[str, int]:
    """Labels by the values found in predictions and truths, where nothing names them."""
    values = {0}
    for pair in pairs:
        for label, _ in (read_label(pair.prediction), read_case_label(pair.files)):
            values |= set(label_values(label))
    if values == {0, 255} or values == {0, 1, 255}:
        values = {0, 1}
    return {"background" if value == 0 else f"label {value}": value for value in sorted(values)}


def read_pair(pair: Pair, labels: Mapping[str, int]) -> tuple[Label, Label, Spacing]:
    """Prediction, truth and spacing (mm; None of pictures).

    Raises:
        DataError: values that no label has, or a file that cannot be read.
        GeometryError: they lie on different grids.
    """
    prediction, affine = read_label(pair.prediction)
    reference, truth_affine = read_case_label(pair.files, labels)
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"{pair.prediction} has size {prediction.shape}, its truth {pair.truth} has {reference.shape}. "
            "Predict on the image's own grid; `rwkvseg predict` does."
        )
    if affine is not None and truth_affine is not None:
        difference = float(np.abs(affine - truth_affine).max())
        if difference > AFFINE_TOLERANCE:
            raise GeometryError(
                f"the affine of {pair.prediction} differs from its truth's by up to {difference:.4g} mm. "
                "Predict on the image's own grid, or mend the header that is wrong."
            )
    spacing = None
    if truth_affine is not None:
        spacing = tuple(float(size) for size in nibabel.affines.voxel_sizes(truth_affine))
    prediction = check_label_values(prediction, labels, pair.prediction)
    return prediction, check_label_values(reference, labels, pair.truth), spacing
