"""Predict files: read each case, write its label map beside the others, and say what was done."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles, read_json
from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.layouts import open_data
from rwkvseg.data.splits import PARTS
from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.drawing import draw_prediction
from rwkvseg.evaluation.pictures import make_picture
from rwkvseg.inference.components import count_values, keep_largest, labels_to_keep
from rwkvseg.inference.freed_memory import freed_memory_kept
from rwkvseg.inference.prediction_record import Predicted, PredictionRecord
from rwkvseg.inference.predictor import LabelMap, Predictor, Protocol
from rwkvseg.inference.read_ahead import read_cases
from rwkvseg.inference.result_files import Format, check_format, check_series, write_prediction
from rwkvseg.inference.volume_predictor import OnWindows
from rwkvseg.output import require_writable, write_atomically
from rwkvseg.wording import counted


def predict_files(
    predictor: Predictor,
    inputs: Sequence[CaseFiles],
    out: Path,
    *,
    protocol: Protocol = "strict",
    wanted: Format = "auto",
    overlay: bool = False,
    largest: Sequence[str | int] = (),
    source: str = "",
    trained_on: Collection[str] = (),
    on_case: Callable[[Predicted], None] = lambda _: None,
    on_windows: OnWindows = lambda _done, _total: None,
) -> list[Predicted]:
    """Write `OUT/<case>.png` for pictures and `OUT/<case>.nii.gz` for volumes, and `OUT/prediction.json`.

    The record holds protocol, how results were resized and of which cases, labels, model and where the
    images were, for `evaluate`; of DICOM the series. One of the same model, images and settings that is there
    is gone on with, any other replaced; label maps of the same names are replaced one by one.

    Args:
        predictor: the model.
        inputs: the cases; every one is predicted and written before the next, and read before it too but for
            pictures to a GPU, see `read_cases`.
        out: folder, made when missing.
        protocol: see `Predictor.predict`.
        wanted: format of the label maps, see `write_prediction`.
        overlay: also write `OUT/overlays/<case>.png`, the label map over the image.
        largest: labels of which only the largest connected part is kept, by names or values, or "all"; see
            `keep_largest`.
        source: path of the images as the user gave it, for the record.
        trained_on: ids of the cases that the model was trained on: which of them were predicted is recorded.
        on_case: called after each case, for a progress bar.
        on_windows: called with (done, total) as the windows of a volume go by, see `Predictor.predict`.

    Raises:
        DataError: a case cannot be read, does not fit the network or would not fit into memory; cases before
            it stay written.
        UsageError: the format does not fit a case, `out` is a folder of images or truths, or a label in
            `largest` is not there.
        OutputError: a result cannot be written.
    """
    kept = labels_to_keep(largest, predictor.labels)
    _refuse_data_folder(inputs, out, source, wanted)
    require_writable(out)
    check_series(inputs, predictor.description.preprocessing.channels, wanted)
    record = PredictionRecord(out, predictor, protocol, source, list(kept), trained_on)
    cases = read_cases(predictor, inputs, protocol)
    # not given back between pictures; the plan of a volume sees to it itself
    with record, freed_memory_kept(predictor.keep_memory and not predictor.sees_volumes):
        for files in inputs:
            started = time.perf_counter()
            case, prepared = next(cases)
            check_format(wanted, files, case.spatial_shape)
            prediction = predictor.predict(case, protocol=protocol, prepared=prepared, on_windows=on_windows)
            removed = keep_largest(prediction, kept.values())
            record.begin()
            path = write_prediction(out, files, case, prediction, wanted=wanted, model=predictor.description)
            if overlay:
                _write_overlay(out / "overlays" / f"{files.id}.png", case, prediction)
            highest = max(*predictor.labels.values(), int(prediction.max(initial=0)))
            counts = count_values(prediction, highest + 1)
            pixels = {name: int(counts[value]) for name, value in predictor.labels.items()}
            seconds = time.perf_counter() - started
            gone = {name: removed[value] for name, value in kept.items()}
            done = Predicted(files.id, path, seconds, pixels, gone, predictor.resizes(case))
            record.add(done, files.series)
            on_case(done)
    return record.done


def _refuse_data_folder(inputs: Sequence[CaseFiles], out: Path, source: str, wanted: Format) -> None:
    """Refuse to write among the images or truths: files of one name would be replaced, others mixed up."""
    # a DICOM segmentation may lie beside its series, which it is part of; its name is the case's
    seg = wanted == "dicom-seg"
    files = [path for case in inputs if not (seg and case.series is not None) for path in case.images]
    files += [path for case in inputs for path in case.images if path.name == f"{case.id}.dcm"]
    if source:
        known = (*_labelled_cases(Path(source)), *_labelled_cases(Path(source).absolute().parent))
        files += [case.label for case in known if case.label is not None]
    first = {path.parent: path for path in reversed(files)}
    for folder, path in first.items():
        if out.resolve() == folder.resolve():
            raise UsageError(
                f"the output folder {out} holds data, such as {path.name}, which label maps would replace "
                "or lie among. Choose another --out."
            )


def _write_overlay(path: Path, case: Case, prediction: LabelMap) -> None:
    shown = make_picture(
        case.id, case.image, prediction, prediction, math.nan, spacing=case.spacing, affine=case.affine
    )
    with write_atomically(path) as temporary:
        draw_prediction(shown).save(temporary)


def find_part(inputs: Path, run: Path, part: str) -> list[CaseFiles]:
    """Find in `inputs`, a data folder or its images, the cases of one part of a run's split.

    Raises:
        UsageError: `run` is no run folder, or the part is unknown or empty.
        DataError: cases of the part are not among the inputs, or the split cannot be read.
    """
    path = run / "split.json"
    if not path.is_file():
        raise UsageError(f"--part needs a run folder with split.json, and {run} has none. Give -m RUN.")
    split = read_json(path)
    if part not in PARTS or not split.get(part):
        raise UsageError(
            f"the split of {run} has no cases in the part '{part}'. "
            f"Choose another of {', '.join(name for name in PARTS if split.get(name))}."
        )
    by_id = {files.id: files for files in (*find_inputs(inputs), *_labelled_cases(inputs))}
    missing = [case for case in split[part] if case not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} of {counted(len(split[part]), 'case')} of the part '{part}' not in the input: "
            f"{', '.join(missing[:5])}. Give the data folder that the run was trained on."
        )
    return [by_id[case] for case in split[part]]


def cases_trained_on(model: Path) -> set[str]:
    """Return the ids of the training part of a run folder; none of another model."""
    try:
        return set(map(str, read_json(model / "split.json").get("train", ())))
    except (DataError, TypeError, AttributeError):
        return set()


def _labelled_cases(inputs: Path) -> tuple[CaseFiles, ...]:
    """Cases to train on, which `find_inputs` passes over where a data folder has unlabelled ones too."""
    try:
        return open_data(inputs).cases
    except (DataError, OSError):  # OSError: the folder above the input may be closed to us
        return ()
