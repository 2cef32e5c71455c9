"""Pictures that are read while the network works give the files that reading one by one gives."""

import json
import threading

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from test_predictor import make_predictor

from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.reading import read_case
from rwkvseg.errors import DataError, UnreadableFileError
from rwkvseg.inference import read_ahead
from rwkvseg.inference.predict import predict_files
from rwkvseg.inference.predictor import Predictor

SIZES = [(40, 52), (32, 32), (61, 33), (300, 200), (40, 52), (35, 90), (32, 32)]


@pytest.fixture
def pictures(tmp_path):
    """Inputs of several sizes."""
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(tmp_path / "in" / f"p{index}.png")
    return find_inputs(tmp_path / "in")


@pytest.fixture
def by_threads(monkeypatch):
    """Choose the number of threads that read ahead."""
    return lambda number: monkeypatch.setattr(read_ahead, "number_of_threads", lambda _device: number)


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("protocol", ["strict", "transunet"])
@pytest.mark.parametrize("room", [2**24, 70_000])
def test_reading_ahead_changes_no_file(pictures, by_threads, monkeypatch, tmp_path, protocol, room):
    monkeypatch.setattr(read_ahead, "MOST_PIXELS_AHEAD", room)
    predictor, order = make_predictor(), {}
    for threads in (0, 3):
        by_threads(threads)
        order[threads] = []
        predict_files(
            predictor,
            pictures,
            tmp_path / str(threads),
            protocol=protocol,
            on_case=lambda done, told=order[threads]: told.append((done.case, done.pixels)),
        )
    assert written(tmp_path / "0") == written(tmp_path / "3")
    assert order[0] == order[3]
    assert [case for case, _ in order[3]] == [files.id for files in pictures]
    kept = np.asarray(Image.open(tmp_path / "3" / "p3.png"))
    expected = make_predictor().predict(read_case(pictures[3]), protocol=protocol)
    np.testing.assert_array_equal(kept, expected)
    assert json.loads((tmp_path / "3" / "prediction.json").read_text())["protocol"] == protocol


def test_the_next_pictures_are_read_by_other_threads(pictures, by_threads, monkeypatch, tmp_path):
    readers, prepare = set(), Predictor.prepare

    def noted(self, case, **options):
        readers.add(threading.current_thread() is threading.main_thread())
        return prepare(self, case, **options)

    monkeypatch.setattr(Predictor, "prepare", noted)
    for threads, in_main in ((3, {False}), (0, {True})):
        by_threads(threads)
        readers.clear()
        predict_files(make_predictor(), pictures, tmp_path / str(threads))
        assert readers == in_main


def test_an_error_comes_at_its_turn(pictures, by_threads, tmp_path):
    by_threads(3)
    pictures[2].images[0].write_bytes(b"damaged")
    with pytest.raises(UnreadableFileError, match=r"p2\.png"):
        predict_files(make_predictor(), pictures, tmp_path / "out")
    assert sorted(written(tmp_path / "out")) == ["p0.png", "p1.png", "prediction.json"]
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["cases"].keys() == {"p0", "p1"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    with pytest.raises(DataError, match="the network takes 2"):
        predict_files(make_predictor(channels=2), find_inputs(colours(tmp_path)), tmp_path / "other")


def colours(tmp_path):
    folder = tmp_path / "colours"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / f"c{index}.png")
    return folder


def test_volumes_are_read_when_they_are_asked_for(by_threads, tmp_path):
    by_threads(3)
    (tmp_path / "in").mkdir()
    for index in range(3):
        volume = nibabel.Nifti1Image(np.zeros((8, 7, 6), np.float32), np.eye(4))
        nibabel.save(volume, tmp_path / "in" / f"v{index}.nii.gz")
    inputs = find_inputs(tmp_path / "in")
    for index in (1, 2):
        inputs[index].images[0].write_bytes(b"damaged")
    found = read_ahead.read_cases(make_predictor(), inputs, "strict")
    first, prepared = next(found)
    assert (first.id, prepared) == ("v0", None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    with pytest.raises(UnreadableFileError, match="v1"):
        next(found)


def test_threads_are_for_a_gpu(monkeypatch):
    monkeypatch.setattr(read_ahead, "available_cores", lambda: 16)
    assert read_ahead.number_of_threads(torch.device("cpu")) == 0
    assert read_ahead.number_of_threads(torch.device("cuda")) == 4
    monkeypatch.setattr(read_ahead, "available_cores", lambda: 1)
    assert read_ahead.number_of_threads(torch.device("cuda")) == 0
