"""prediction.json tells of the label maps that are there, whatever was predicted into the folder before."""

import json

import numpy as np
import pytest
from PIL import Image
from test_predictor import make_predictor

from rwkvseg.data.inputs import find_inputs
from rwkvseg.errors import DataError, OutputError, UnreadableFileError, UsageError
from rwkvseg.evaluation.protocols import Protocol
from rwkvseg.inference.evaluate import evaluate
from rwkvseg.inference.predict import predict_files

STRICT: Protocol = "strict"


@pytest.fixture
def pictures(tmp_path):
    """Six pictures and their truths."""
    generator = np.random.default_rng(0)
    for folder, most in (("in", 256), ("truth", 3)):
        (tmp_path / folder).mkdir()
        for index in range(6):
            values = generator.integers(0, most, (32, 32), np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"p{index}.png")
    return find_inputs(tmp_path / "in")


def record(out):
    return json.loads((out / "prediction.json").read_text())


def test_calls_of_one_model_go_on_with_the_record(pictures, tmp_path):
    out = tmp_path / "out"
    predict_files(make_predictor(), pictures[:2], out)
    predict_files(make_predictor(), pictures[1:4], out)
    assert list(record(out)["cases"]) == ["p0", "p1", "p2", "p3"]
    (out / "p0.png").unlink()
    predict_files(make_predictor(), pictures[4:], out)
    assert list(record(out)["cases"]) == ["p1", "p2", "p3", "p4", "p5"], "what is gone is not told of"
    whole = tmp_path / "whole"
    predict_files(make_predictor(), pictures[1:], whole)
    assert record(out) == record(whole)


def test_maps_of_another_model_are_not_credited_to_this_one(pictures, tmp_path):
    out = tmp_path / "out"
    predict_files(make_predictor(), pictures, out)
    assert evaluate(out, tmp_path / "truth", tmp_path / "a").context.warnings == []
    predict_files(make_predictor(size=(40, 40)), pictures[:2], out)
    assert list(record(out)["cases"]) == ["p0", "p1"]
    (warning,) = evaluate(out, tmp_path / "truth", tmp_path / "b").context.warnings
    assert warning.startswith("4 label maps (p2, p3, p4, p5) of 6 not in prediction.json")


def test_a_run_that_fails_leaves_a_record_of_what_is_done(pictures, tmp_path):
    pictures[2].images[0].write_bytes(b"damaged")
    with pytest.raises(UnreadableFileError):
        predict_files(make_predictor(), pictures, tmp_path / "out")
    assert list(record(tmp_path / "out")["cases"]) == ["p0", "p1"]
    with pytest.raises(UnreadableFileError):
        predict_files(make_predictor(), pictures[2:], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_cases_that_were_trained_on_are_named(pictures, tmp_path):
    out = tmp_path / "out"
    predict_files(make_predictor(), pictures[:4], out, trained_on={"p0", "p3", "elsewhere"})
    predict_files(make_predictor(), pictures[4:], out, trained_on={"p0", "p3", "p5"})
    assert record(out)["trained_on"] == ["p0", "p3", "p5"]
    (warning,) = evaluate(out, tmp_path / "truth", tmp_path / "scores").context.warnings
    assert warning.startswith("3 cases (p0, p3, p5) of 6 named like those the model was trained on")


def test_the_split_of_a_run_tells_which_those_are(rwkvseg, small_run, phantom, tmp_path):
    code, _, err = rwkvseg("predict", "-m", small_run, "-i", phantom, "-o", tmp_path / "out")
    assert code == 0, err
    trained = json.loads((small_run / "split.json").read_text())["train"]
    assert sorted(record(tmp_path / "out")["trained_on"]) == sorted(trained)
    code, *told = rwkvseg("evaluate", "-p", tmp_path / "out", "-t", phantom, "-o", tmp_path / "scores")
    assert (code, "was trained on: figures" in " ".join("".join(told).split())) == (0, True), told


def test_a_record_that_is_no_record_is_replaced(pictures, tmp_path):
    for text in ("[]", "{", '{"cases": 3, "resize": {}}'):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "prediction.json").write_text(text)
        predict_files(make_predictor(), pictures[:1], tmp_path / "out")
        assert list(record(tmp_path / "out")["cases"]) == ["p0"]


def test_nothing_is_predicted_that_cannot_be_written(pictures, tmp_path, monkeypatch):
    predictor = make_predictor()
    monkeypatch.setattr(predictor, "predict", None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write into .*: .*file is a file"):
        predict_files(predictor, pictures, tmp_path / "file" / "out")


def test_scores_do_not_lie_among_label_maps(pictures, tmp_path):
    predict_files(make_predictor(), pictures, tmp_path / "out")
    for out in ("out", "truth"):
        with pytest.raises(UsageError, match="holds the label maps"):
            evaluate(tmp_path / "out", tmp_path / "truth", tmp_path / out, protocol=STRICT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_in_memory_too(bad):
    from rwkvseg.data.case import Case

    image = np.zeros((1, 32, 32), np.float32)
    image[0, 3, 4] = bad
    with pytest.raises(DataError, match="NaN or infinity in 1 of 1024"):
        make_predictor().predict(Case("a", image))
    with pytest.raises(UsageError, match="takes a Case, got ndarray"):
        make_predictor().predict(image)
    with pytest.raises(UsageError, match="batch_size is -3"):
        make_predictor(batch_size=-3)
