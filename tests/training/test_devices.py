"""Training on several devices: two processes of a CPU do what one does, stopped and resumed as well."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from rwkvseg.data.phantom import write_phantom
from rwkvseg.errors import BackendError, RecipeError
from rwkvseg.training import loader
from rwkvseg.training.processes import require_devices
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run import train
from small import files_below, small_recipe
from small_volumes import small_volume_recipe

TIMES = ("seconds",)
READ_ALL = "RWKVSEG_READ_ALL" in os.environ


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices") / "data"
    write_phantom(folder, 20, dimensions=3, size=(20, 17, 9))
    return folder


def recipe_of(data, **training):
    """Of a network whose items know nothing of each other: the mean of two halves is that of the whole."""
    content = small_volume_recipe(data, **({"batch_size": 4, "cache_gigabytes": 0} | training))
    content["loss"] = {"cross_entropy": 1.0, "dice": 0.0}
    content["optimizer"] = {"name": "sgd", "momentum": 0.9, "learning_rate": 0.05, "gradient_clip": 5.0}
    return content


def command_of(content, folder, out):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "rwkvseg.cli", "train", str(path), "-o", str(out), "--device", "cpu"]


def run_command(command):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(out):
    with (out / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k not in TIMES} for row in csv.DictReader(file)]


def kept(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def kill_after_an_epoch(command, out):
    process = subprocess.Popen(
        command, env=dict(os.environ, OMP_NUM_THREADS="1"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)  # the other process notices
    process.communicate(timeout=60)
    assert not (out / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_two_processes_do_what_one_does(volumes, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(Recipe.from_mapping(recipe_of(volumes)), one, device="cpu")
    command = command_of(recipe_of(volumes, devices=2), tmp_path, two)
    if READ_ALL:  # starting processes takes long
        kill_after_an_epoch(command, two)

    printed = run_command([*command, "--resume"])
    assert printed.count("model:") == 1
    for ours, theirs in zip(table(two), table(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    ours, theirs = kept(two), kept(one)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    assert json.loads((two / "summary.json").read_text())["devices"] == 2
    pictures = {"curves.png", "fusion_weights.png"}
    assert set(files_below(two)) - pictures == set(files_below(one)) - pictures


def test_a_batch_is_shared_out_evenly(volumes):
    with pytest.raises(RecipeError, match="batch_size must be a multiple of devices"):
        Recipe.from_mapping(recipe_of(volumes, batch_size=3, devices=2))


def test_nobody_waits_for_a_device_without_work(phantom_3d, phantom, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.devices is 2, with 1 items to validate"):
        train(Recipe.from_mapping(recipe_of(phantom_3d, devices=2)), tmp_path / "run", device="cpu")
    few = small_recipe(phantom, devices=2, batch_size=64)
    with pytest.raises(RecipeError, match="do not fill one batch of 64"):
        train(Recipe.from_mapping(few), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    require_devices(torch.device("cuda"), 1)
    require_devices(torch.device("cpu"), 2)
    with pytest.raises(BackendError, match=r"devices is 4, but 1 GPU can be used. Set it to 1"):
        require_devices(torch.device("cuda"), 4)


def test_devices_share_the_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loader, "available_cores", lambda: 34)
    assert [loader.number_of_workers("auto", devices) for devices in (1, 2, 4, 64)] == [16, 16, 8, 0]
    assert loader.number_of_workers(3, 2) == 3
