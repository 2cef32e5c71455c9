"""Evaluations and comparisons of predictions on DICOM: the record, and the pictures."""

import json
import re
import shutil

import nibabel
import numpy as np
from dicom_predict_cases import GRIDS, bands

from dicom_cases import write_series
from rwkvseg.data.io import read_label, write_label_map
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.evaluation.evaluations import read_evaluations
from rwkvseg.inference.compare import read_compared
from rwkvseg.inference.evaluate import evaluate
from rwkvseg.inference.predict import predict_files


def test_the_record_names_the_series_and_evaluate_takes_the_nifti(tmp_path):
    written = write_series(tmp_path / "study" / "ct")
    files = find_inputs(tmp_path / "study")
    predict_files(bands(), files, tmp_path / "out", source=str(tmp_path / "study"))
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["dicom_series"] == {"ct": written.series}
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "ct.nii.gz").write_bytes((tmp_path / "out" / "ct.nii.gz").read_bytes())
    result = evaluate(tmp_path / "out", truth, tmp_path / "scores")
    assert result.summary.cases[0].dsc == 1


def pictures_of(report):
    """The pictures of a report, as they stand in it."""
    return re.findall(r"data:image/png;base64,[^\"]+", report.read_text())


def test_reports_and_comparisons_show_dicom(tmp_path):
    """As they show NIfTI of the same voxels, also where another series of the study makes no volume."""
    written = write_series(tmp_path / "study" / "ct", GRIDS["oblique"])
    broken = write_series(tmp_path / "study" / "lacking")
    sorted((tmp_path / "study" / "lacking").iterdir())[len(broken.files) // 2].unlink()
    files = find_inputs(tmp_path / "study", (written.series,))
    predict_files(bands(), files, tmp_path / "out", source=str(tmp_path / "study"))
    case = read_case(files[0])
    for folder in ("images", "truth"):
        (tmp_path / folder).mkdir()
    nibabel.save(nibabel.Nifti1Image(case.image[0], case.affine), tmp_path / "images" / "ct.nii.gz")
    label, affine = read_label(tmp_path / "out" / "ct.nii.gz")
    write_label_map(tmp_path / "truth" / "ct.nii.gz", np.where(label == 3, 1, label), affine)

    recorded = evaluate(tmp_path / "out", tmp_path / "truth", tmp_path / "recorded")
    named = evaluate(tmp_path / "out", tmp_path / "truth", tmp_path / "named", images=tmp_path / "images")
    assert pictures_of(recorded.report) == pictures_of(named.report)
    runs = read_evaluations([str(tmp_path / "recorded"), str(tmp_path / "named")])
    series, volume = (
        read_compared(runs, ["ct"], images=path)[0][0].image
        for path in (tmp_path / "study" / "ct", tmp_path / "images")
    )
    assert np.array_equal(series, volume)
    assert len(np.unique(series)) > 9
    shutil.rmtree(tmp_path / "study")
    gone = evaluate(tmp_path / "out", tmp_path / "truth", tmp_path / "gone")
    assert pictures_of(gone.report) != pictures_of(recorded.report)
