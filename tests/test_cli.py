"""The command line as users meet it: exit codes, messages, and what is left behind after a failure."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from data_folders import write_pictures
from rwkvseg import __version__
from rwkvseg.inference.predictor import Predictor
from small import files_below, small_recipe

VERBS = ["train", "pretrain", "predict", "evaluate", "compare", "convert-published", "models", "demo"]


@pytest.mark.parametrize("verb", [*VERBS, "figure erf", "figure resolution", "figure pareto"])
def test_help_has_an_example(rwkvseg, verb):
    code, out, err = rwkvseg(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert re.search(rf"Examples?:\s+rwkvseg {verb} ", out)


def test_help_lists_every_verb_and_version_is_told(rwkvseg):
    code, out, _ = rwkvseg("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)
    assert "--debug" in out
    assert rwkvseg("--version") == (0, f"rwkvseg {__version__}\n", "")


def test_no_arguments_show_the_help(rwkvseg):
    code, out, err = rwkvseg()
    assert code == 2
    assert "Usage: rwkvseg" in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "a.yaml", "--no-such-option"],
        ["train", "a.yaml", "--device", "tpu"],
        ["train", "a.yaml", "-o"],
        ["train", "a.yaml", "b.yaml"],
        ["predict", "-m", "run"],
        ["predict", "-m", "run", "-i", "a.png", "-o", "out", "--protocol", "lenient"],
        ["evaluate", "-p", "a"],
        ["convert-published", "a.pth", "-o", "out"],
        ["convert-published", "a.pth", "-o", "out", "--variant", "huge"],
        ["convert-published", "a.pth", "-o", "out", "--variant", "tiny", "--num-classes", "0"],
        ["models", "--size", "large"],
        ["models", "--num-classes", "0"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "x"],
        ["figure", "erf"],
        ["figure", "erf", "-m", "rwkv_unet_tiny", "--size", "1"],
        ["figure", "pareto"],
    ],
)
def test_a_wrong_command_line(fails, arguments):
    assert re.search(r"See `rwkvseg.* --help`\.$", fails(2, *arguments))


class TestPredict:
    @pytest.fixture
    def predict(self, fails, tmp_path, small_run, phantom):
        """Predict, expecting a failure; nothing is written."""

        def run(code, *, model=small_run, inputs=phantom, out=tmp_path / "out", more=()):
            err = fails(code, "predict", "-m", model, "-i", inputs, "-o", out, "--device", "cpu", *more)
            assert not (tmp_path / "out").exists()
            return err

        return run

    def test_no_model(self, predict, tmp_path):
        assert "there is no model at" in predict(1, model=tmp_path / "absent")

    def test_missing_altered_and_foreign_weights(self, predict, run_copy):
        weights = run_copy / "model" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert "was altered or belongs to another model" in predict(1, model=run_copy)
        weights.unlink()
        assert "cannot read the weights" in predict(1, model=run_copy)

    def test_a_pickle(self, predict, tmp_path):
        torch.save({"state_dict": {}}, tmp_path / "weights.pth")
        assert "is a pickle, which can run any code" in predict(1, model=tmp_path / "weights.pth")

    @pytest.mark.parametrize(("given", "out"), [("", "images"), ("images", "images"), ("images", "masks")])
    def test_a_result_never_replaces_or_joins_the_data(self, predict, tmp_path, given, out):
        data = tmp_path / "data"
        write_pictures(data, 3)
        before = {name: (data / name).read_bytes() for name in files_below(data)}
        told = predict(2, inputs=data / given, out=data / "masks" / ".." / out)
        assert "holds data, such as case0.png" in told
        assert "Choose another --out" in told
        assert {name: (data / name).read_bytes() for name in files_below(data)} == before

    def test_a_missing_and_an_empty_input(self, predict, tmp_path):
        assert "absent does not exist" in predict(1, inputs=tmp_path / "absent")
        (tmp_path / "empty").mkdir()
        assert "holds no images" in predict(1, inputs=tmp_path / "empty")

    def test_an_input_that_is_no_image(self, predict, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        assert "is of no known format" in predict(1, inputs=tmp_path / "a.txt")
        (tmp_path / "a.png").write_text("x")
        assert "cannot decode" in predict(1, inputs=tmp_path / "a.png")
        (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8b\x08")
        assert "cannot decode" in predict(1, inputs=tmp_path / "a.nii.gz")

    def test_channels_that_do_not_fit(self, predict, tmp_path):
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        assert "has 3 channels, the network takes 1" in predict(1, inputs=tmp_path / "a.png")

    def test_an_output_path_below_a_file(self, predict, tmp_path):
        (tmp_path / "file").write_text("x")
        assert "cannot write" in predict(1, out=tmp_path / "file" / "out")
        assert (tmp_path / "file").read_text() == "x"

    def test_a_full_disk(self, fails, tmp_path, small_run, phantom, file_size_limit):
        out = tmp_path / "out"
        with file_size_limit(60):
            err = fails(1, "predict", "-m", small_run, "-i", phantom, "-o", out, "--device", "cpu")
        assert re.search(r"cannot write .*: File too large", err)
        assert files_below(out) == []

    def test_a_part_without_a_split(self, predict, small_run, tmp_path, run_copy):
        assert "needs a run folder" in predict(2, model=small_run / "model", more=("--part", "test"))
        assert "no cases in the part 'tset'" in predict(2, more=("--part", "tset"))
        (tmp_path / "some").mkdir()
        Image.new("L", (20, 20)).save(tmp_path / "some" / "a.png")
        err = predict(1, inputs=tmp_path / "some", more=("--part", "test"))
        assert "2 of 2 cases of the part 'test' not in the input" in err
        (run_copy / "split.json").write_text("{")
        assert "is not valid JSON" in predict(1, model=run_copy, more=("--part", "test"))

    def test_a_report_below_a_file(self, fails, small_run, phantom, tmp_path):
        (tmp_path / "file").write_text("x")
        one = next((phantom / "images").iterdir())
        arguments = ("predict", "-m", small_run, "-i", one, "-o", tmp_path / "out", "--device", "cpu")
        assert "cannot write" in fails(1, *arguments, "--report", tmp_path / "file" / "run.json")

    def test_bfloat16_is_recorded_and_reported(self, rwkvseg, phantom, small_run, tmp_path):
        arguments = ("predict", "-m", small_run, "-i", phantom / "images", "--device", "cpu")
        assert rwkvseg(*arguments, "-o", tmp_path / "p", "--precision", "bfloat16")[0] == 0
        assert json.loads((tmp_path / "p" / "prediction.json").read_text())["precision"] == "bfloat16"
        scored = ("evaluate", "-p", tmp_path / "p", "-t", phantom / "masks", "-o", tmp_path / "e")
        assert rwkvseg(*scored)[0] == 0
        context = json.loads((tmp_path / "e" / "summary.json").read_text())["rwkvseg"]["context"]
        assert context["precision"] == "bfloat16"

    def test_a_part_of_a_data_folder_with_unlabelled_images(self, rwkvseg, phantom_3d, tmp_path):
        """imagesTs/ is what is predicted by default, --part means the labelled cases."""
        data = Path(shutil.copytree(phantom_3d, tmp_path / "volumes"))
        (data / "imagesTs").mkdir()
        first = sorted((data / "imagesTr").iterdir())[0]
        shutil.copy(first, data / "imagesTs" / "new_0000.nii.gz")
        recipe = tmp_path / "r.yaml"
        recipe.write_text(yaml.safe_dump(small_recipe(data, epochs=1)))
        assert rwkvseg("train", recipe, "-o", tmp_path / "run", "--device", "cpu")[0] == 0
        arguments = ("predict", "-m", tmp_path / "run", "-i", data, "--device", "cpu", "-o")
        code, _, err = rwkvseg(*arguments, tmp_path / "part", "--part", "test")
        assert (code, err) == (0, "")
        test = json.loads((tmp_path / "run" / "split.json").read_text())["test"]
        assert files_below(tmp_path / "part") == [*[f"{case}.nii.gz" for case in test], "prediction.json"]
        assert rwkvseg(*arguments, tmp_path / "new")[0] == 0
        assert files_below(tmp_path / "new") == ["new.nii.gz", "prediction.json"]


class TestEvaluate:
    def test_failures_exit_with_1(self, fails, tmp_path, small_run, phantom):
        predictions = small_run / "predictions" / "test"
        out = tmp_path / "out"
        assert "is not a folder" in fails(1, "evaluate", "-p", tmp_path / "a", "-t", phantom, "-o", out)
        (tmp_path / "empty").mkdir()
        assert "holds no label maps" in fails(
            1, "evaluate", "-p", tmp_path / "empty", "-t", phantom, "-o", out
        )
        err = fails(1, "evaluate", "-p", predictions, "-t", tmp_path / "empty", "-o", out)
        assert "holds no label maps" in err
        (tmp_path / "file").write_text("x")
        err = fails(1, "evaluate", "-p", predictions, "-t", phantom, "-o", tmp_path / "file" / "out")
        assert "cannot write" in err
        assert not out.exists()

    def test_a_full_disk(self, fails, tmp_path, small_run, phantom, file_size_limit):
        predictions = small_run / "predictions" / "test"
        with file_size_limit(100):
            err = fails(1, "evaluate", "-p", predictions, "-t", phantom, "-o", tmp_path / "out")
        assert re.search(r"cannot write .*scores\.csv: File too large", err)
        assert files_below(tmp_path / "out") == []

    def test_what_it_prints(self, rwkvseg, tmp_path, small_run, phantom):
        predictions = tmp_path / "[bold]"
        shutil.copytree(small_run / "predictions" / "test", predictions)
        out = tmp_path / "out [red]x"
        code, printed, err = rwkvseg("evaluate", "-p", predictions, "-t", phantom, "-o", out)
        assert (code, err) == (0, "")
        assert f"report: {out / 'report.html'}\n" in printed
        assert "2 cases" in printed
        assert "not scored: 18 truths without a prediction (" in printed
        assert " and 13 more)\n" in printed
        arguments = ("-p", predictions, "-t", phantom, "-o", out, "--protocol", "transunet")
        code, _, err = rwkvseg("evaluate", *arguments)
        assert code == 0
        assert err.startswith("warning: predicted under 'strict', scored under 'transunet'")


def test_debug_shows_the_traceback(rwkvseg, tmp_path):
    for arguments in (["--debug", "train"], ["train", "--debug"]):
        code, _, err = rwkvseg(*arguments, tmp_path / "absent.yaml")
        assert code == 2
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("error: cannot read the recipe")


def boom(error):
    def fail(*_arguments, **_keywords):
        raise error

    return fail


def test_a_fault_of_ours_is_called_so(rwkvseg, monkeypatch, small_run, phantom, tmp_path):
    monkeypatch.setattr(Predictor, "from_file", boom(ZeroDivisionError("first\nsecond")))
    arguments = ("predict", "-m", small_run, "-i", phantom, "-o", tmp_path / "out")
    code, _, err = rwkvseg(*arguments)
    assert (code, err.count("\n")) == (1, 2)
    assert err.startswith("error: unexpected ZeroDivisionError: first\nThis is a fault of rwkvseg")
    assert "Traceback" in rwkvseg(*arguments, "--debug")[2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped. A training goes on with --resume, other commands begin again."),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "the device ran out of memory. Lower training"),
    ],
)
def test_interruption_and_lack_of_memory(rwkvseg, monkeypatch, phantom, tmp_path, error, code, message):
    monkeypatch.setattr(Predictor, "from_file", boom(error))
    found, _, err = rwkvseg("predict", "-m", "x", "-i", phantom, "-o", tmp_path / "out")
    assert found == code
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_installed_program(tmp_path):
    import subprocess

    program = Path(sys.executable).with_name("rwkvseg")
    if not program.exists():
        pytest.skip("rwkvseg is not installed beside this interpreter")
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [program, "evaluate", "-p", tmp_path / "a", "-t", tmp_path / "b", "-o", tmp_path / "c"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"error: {tmp_path / 'a'} is not a folder. Give the folder that holds the label maps.\n"
    )
