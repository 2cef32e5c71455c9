"""What is shown while a network trains: the wait for kernels is told on a GPU, and only there."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from rwkvseg.training import history
from rwkvseg.training.history import COMPILING, History, TrainingProgress


def start(device, *, terminal):
    """Progress of a training that has just started, its trainer, and where it prints."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    progress = TrainingProgress(console)
    trainer = SimpleNamespace(
        current_epoch=0,
        max_epochs=2,
        global_step=0,
        estimated_stepping_batches=8,
        num_training_batches=4,
        callback_metrics={"train_loss": torch.tensor(0.25), "val_dsc": torch.tensor(0.5)},
    )
    progress.on_train_start(trainer, SimpleNamespace(device=torch.device(device)))
    return progress, trainer, console.file


def described(progress):
    return progress._bar.tasks[0].description


def test_seconds_are_those_of_all_calls_up_to_their_last_checkpoint(tmp_path, monkeypatch):
    clock = iter([130.0, 1000.0, 1005.0, 1050.0])
    monkeypatch.setattr(history.time, "perf_counter", lambda: next(clock))
    first = History(tmp_path, begun=100.0)
    saved = first.state_dict()
    assert saved["total_seconds"] == 30.0  # what comes after it is lost with the call
    second = History(tmp_path)  # in another process, whose clock says something else
    second.load_state_dict(saved)
    assert second.total_seconds == 35.0
    third = History(tmp_path, begun=1040.0)
    third.load_state_dict({"rows": [{"seconds": 7.0}]})  # a checkpoint from before this was kept
    assert third.total_seconds == 17.0


@pytest.mark.parametrize(("device", "first"), [("cuda", COMPILING), ("cpu", "training")])
def test_the_bar_tells_of_compiling_until_the_first_step_is_done(device, first):
    progress, trainer, _ = start(device, terminal=True)
    assert described(progress) == first
    trainer.global_step = 1
    progress.on_train_batch_end(trainer, None, None, None, 0)
    assert described(progress) == "training"
    progress.on_train_epoch_end(trainer, None)
    assert described(progress) == "epoch 1/2  loss 0.250  val DSC 50.00 %"
    progress.on_train_batch_end(trainer, None, None, None, 0)
    assert described(progress) == "epoch 1/2  loss 0.250  val DSC 50.00 %"
    progress.teardown(trainer, None, "fit")
    assert progress._bar is None


@pytest.mark.parametrize(("device", "told"), [("cuda", True), ("cpu", False)])
def test_without_a_terminal_a_line_says_it(device, told):
    progress, trainer, printed = start(device, terminal=False)
    assert (COMPILING in printed.getvalue()) == told
    progress.on_train_epoch_end(trainer, None)
    assert "epoch 1/2  loss 0.250  val DSC 50.00 %" in printed.getvalue()
    assert f"training on {device}, epochs 1 to 2, 4 steps each" in printed.getvalue()


def test_without_a_terminal_a_minute_is_not_silent(monkeypatch):
    monkeypatch.setattr(history.time, "perf_counter", iter([100.0, 130.0, 161.0, 161.0, 200.0]).__next__)
    progress, trainer, printed = start("cpu", terminal=False)
    for step in (1, 2, 3):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, None, None, None, 0)
    assert printed.getvalue().count("\n") == 2
    assert "epoch 1/2  step 2/8  61 s, about 183 s left" in printed.getvalue()
