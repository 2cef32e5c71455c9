"""Lightning's trainer as every run of this package wants it: quiet, exact, with checkpoints that are safe."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from rwkvseg.training.checkpoints import SafeCheckpointIO, last_path
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.processes import require_devices
from rwkvseg.training.quiet import keyboard_interrupt_passes, quiet_lightning
from rwkvseg.training.recipe import Recipe


def train_or_resume(
    module: LightningModule,
    data: LightningDataModule,
    recipe: Recipe | PretrainRecipe,
    *,
    out: Path,
    device: torch.device,
    callbacks: list[Any],
) -> None:
    """Train from the start, or on from the last checkpoint of the run folder `out`; that of the end stays."""
    last = last_path(out)
    with quiet_lightning():
        trainer = build_trainer(out, device, callbacks, recipe)
        resumed = last if last.exists() else None
        with keyboard_interrupt_passes(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
        if not last.exists() or trainer.current_epoch % recipe.training.checkpoint_every:
            trainer.save_checkpoint(last)


def build_trainer(
    out: Path,
    device: torch.device,
    callbacks: list[Any],
    recipe: Recipe | PretrainRecipe,
) -> Trainer:
    """Make the trainer of one run of `recipe` in the folder `out`.

    Its precision "auto" is bfloat16 on CUDA. Of several devices, GPUs or processes on a CPU, each takes a
    share of every batch.

    Raises:
        BackendError: fewer GPUs than the recipe wants.
    """
    settings = recipe.training
    require_devices(device, settings.devices)
    cuda = device.type == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")
    mixed = settings.precision == "bfloat16" or (settings.precision == "auto" and cuda)
    return Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.validate_every,
        gradient_clip_val=recipe.optimizer.gradient_clip,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        default_root_dir=out,
        benchmark=cuda,  # without cuDNN's trials inference took 30 ms a batch instead of 15 to 22
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
