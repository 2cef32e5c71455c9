"""`rwkvseg evaluate --protocol both`, and the line of the table about resizing: recorded, and warned of."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rwkvseg.data.layouts import find_inputs
from rwkvseg.errors import DataError
from rwkvseg.inference.evaluate import evaluate
from rwkvseg.inference.evaluate_both import evaluate_both
from rwkvseg.inference.predict import predict_files
from rwkvseg.inference.predictor import Predictor
from small import files_below


@pytest.fixture(scope="module")
def predicted(small_run, phantom, tmp_path_factory):
    """Label maps of both protocols for two pictures off and one on the network's 32 x 32 grid."""
    root = tmp_path_factory.mktemp("both")
    for number, path in enumerate(sorted((phantom / "images").iterdir())[:3]):
        for kind in ("images", "masks"):
            (root / "data" / kind).mkdir(parents=True, exist_ok=True)
            picture = Image.open(phantom / kind / path.name)
            cut = picture.crop((0, 0, 32, 32)) if number == 0 else picture
            cut.save(root / "data" / kind / path.name)
    predictor = Predictor.from_file(small_run, device="cpu")
    for protocol in ("strict", "transunet"):
        inputs = find_inputs(root / "data")
        predict_files(predictor, inputs, root / protocol, protocol=protocol, source=str(root / "data"))
    return root


def test_how_results_were_resized_is_recorded_beside_them(predicted):
    names = sorted(path.stem for path in (predicted / "data" / "images").iterdir())
    for protocol, words in (("strict", "probabilities"), ("transunet", "nearest neighbour")):
        record = json.loads((predicted / protocol / "prediction.json").read_text())
        assert record["protocol"] == protocol
        assert words in record["resize"]["rule"]
        assert record["resize"]["network_size"] == [32, 32]
        assert record["resize"]["cases"] == names[1:]  # the first has the network's own size


@pytest.mark.parametrize("made_under", ["strict", "transunet"])
@pytest.mark.parametrize("scored_under", ["strict", "transunet"])
def test_the_protocols_of_predict_and_evaluate_must_agree_or_it_is_said(
    predicted, tmp_path, rwkvseg, made_under, scored_under
):
    out = tmp_path / "out"
    arguments = (
        "-p",
        predicted / made_under,
        "-t",
        predicted / "data",
        "-o",
        out,
        "--protocol",
        scored_under,
    )
    code, _, err = rwkvseg("evaluate", *arguments)
    warning = f"predicted under '{made_under}', scored under '{scored_under}'"
    assert code == 0
    context = json.loads((out / "summary.json").read_text())["rwkvseg"]["context"]
    page = (out / "report.html").read_text().replace("&#x27;", "'")
    if made_under == scored_under:
        assert (err, context["warnings"]) == ("", [])
        assert "scored under" not in page
    else:
        assert err.startswith(f"warning: {warning}")
        assert context["warnings"][0].startswith(warning)
        assert warning in page
    assert context["predicted_under"] == made_under
    assert context["resize"]["cases"]


def test_both_are_two_evaluations_and_what_parts_them(predicted, tmp_path, rwkvseg):
    out = tmp_path / "out"
    arguments = ("-p", predicted / "strict", "-t", predicted / "data", "-o", out, "--protocol", "both")
    code, printed, err = rwkvseg("evaluate", *arguments)
    assert (code, err) == (0, "")
    own = [f"{name}/{file}" for name in ("strict", "transunet") for file in
           ("report.html", "scores.csv", "summary.csv", "summary.json")]  # fmt: skip
    assert files_below(out) == sorted(["both.csv", "both.json", "report.html", *own])
    for protocol in ("strict", "transunet"):
        evaluate(predicted / "strict", predicted / "data", tmp_path / protocol, protocol=protocol)
        for name in ("scores.csv", "summary.json"):
            assert (out / protocol / name).read_bytes() == (tmp_path / protocol / name).read_bytes()
    assert "strict and transunet part in" in printed
    assert "predicted under 'strict', scored under 'transunet'" in printed
    assert "resize: 2 of 3 cases" in printed
    assert f"report: {out / 'report.html'}" in printed


def test_each_protocol_may_score_its_own_label_maps(predicted, tmp_path, rwkvseg):
    out = tmp_path / "out"
    arguments = ("-p", predicted / "strict", "-t", predicted / "data", "-o", out, "--protocol", "both")
    code, printed, _ = rwkvseg("evaluate", *arguments, "--transunet-predictions", predicted / "transunet")
    assert code == 0
    assert "scored under" not in printed
    assert "resize: 2 of 3 cases" not in printed
    parted = json.loads((out / "both.json").read_text())["parted"]
    names = sorted(path.name for path in (predicted / "strict").glob("*.png"))
    maps = [[np.asarray(Image.open(predicted / p / n)) for p in ("strict", "transunet")] for n in names]
    differ = {n.removesuffix(".png") for n, (a, b) in zip(names, maps, strict=True) if (a != b).any()}
    assert set(parted["resize"]) == differ
    assert differ


def test_other_cases_of_the_other_protocol_are_refused(predicted, tmp_path):
    shutil.copytree(predicted / "transunet", tmp_path / "fewer")
    next(iter(sorted((tmp_path / "fewer").glob("*.png")))).unlink()
    arguments = (predicted / "strict", predicted / "data", tmp_path / "out")
    with pytest.raises(DataError, match="1 case is in only one of"):
        evaluate_both(*arguments, transunet_predictions=tmp_path / "fewer")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        evaluate_both(*arguments, transunet_predictions=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_label_maps_for_one_protocol_need_both(predicted, tmp_path, rwkvseg):
    arguments = ("-p", predicted / "strict", "-t", predicted / "data", "-o", tmp_path / "out")
    code, _, err = rwkvseg("evaluate", *arguments, "--transunet-predictions", predicted / "transunet")
    assert code == 2
    assert "--protocol both only" in err


def test_progress_counts_both(predicted, tmp_path):
    told = []
    evaluate_both(
        predicted / "strict",
        predicted / "data",
        tmp_path,
        on_case=lambda done, total: told.append((done, total)),
    )
    assert told == [(number, 6) for number in range(1, 7)]
