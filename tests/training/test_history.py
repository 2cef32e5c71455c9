"""What is shown while a network trains: the wait for kernels is told on a GPU, and only there."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from rwkvseg.training.history import COMPILING, TrainingProgress


def start(device, *, terminal):
    """Progress of a training that has just started, its trainer, and where it prints."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    progress = TrainingProgress(console)
    trainer = SimpleNamespace(
        current_epoch=0,
        max_epochs=2,
        global_step=0,
        estimated_stepping_batches=8,
        callback_metrics={"train_loss": torch.tensor(0.25), "val_dsc": torch.tensor(0.5)},
    )
    progress.on_train_start(trainer, SimpleNamespace(device=torch.device(device)))
    return progress, trainer, console.file


def described(progress):
    return progress._bar.tasks[0].description


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
