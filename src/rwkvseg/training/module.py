"""What one training step, one validation and the optimiser are; Lightning does the rest."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rwkvseg.inference.sliding_window import Windows, slab_logits
from rwkvseg.training.cuda_graphs import graphed
from rwkvseg.training.freezing import keep_frozen
from rwkvseg.training.losses import SegmentationLoss
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe import OptimizerSettings, Recipe

POLY_POWER = 0.9


class RecipeModule(LightningModule):  # type: ignore[misc]
    """Seeds, clips and optimises `network` as a recipe says, whatever the task is.

    On one GPU the network's steps are launched as CUDA graphs where the recipe lets them, see `graphed`.

    Args:
        network: what is trained.
        recipe: its optimiser, epochs, seed of everything random inside the network.
    """

    def __init__(self, network: nn.Module, recipe: Recipe | PretrainRecipe) -> None:
        super().__init__()
        self.network = network
        self.settings = recipe.optimizer
        self.epochs = recipe.training.epochs
        self.seed = recipe.training.seed
        self.record = may_record(recipe)
        self._recorded: Callable[..., Any] | None = None

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the network as at every step, of any numbers; empty where shapes change."""
        return ()

    def on_train_start(self) -> None:
        """Record the network's steps, before loaders start threads that would be in the way."""
        if self.record and self.device.type == "cuda" and self.trainer.world_size == 1:
            example = tuple(part.to(self.device) for part in self.example())
            mixed = self.trainer.precision == "bf16-mixed"
            if example:
                self._recorded = graphed(self.network, example, autocast=torch.bfloat16 if mixed else None)

    def run_network(self, *inputs: Tensor) -> Any:
        """Output of the network in training, recorded or not."""
        return (self._recorded or self.network)(*inputs)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        keep_frozen(self.network)
        return self

    def on_train_epoch_start(self) -> None:
        """Seed what is random inside the network (drop path) by (seed, epoch): a resumed run repeats it."""
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm over all gradients; Lightning's own way refuses the fused optimiser."""
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW or SGD; weight decay on matrices and kernels only."""
        settings = self.settings
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: Optimizer
        rate, fused = settings.learning_rate, self.device.type == "cuda"
        if settings.name == "sgd":
            optimizer = SGD(
                groups, rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused
            )
        else:
            optimizer = AdamW(groups, lr=rate, weight_decay=0.0, fused=fused)
        steps = int(self.trainer.estimated_stepping_batches)
        factor = learning_rate_factor(settings, steps=steps, epochs=self.epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }


class SegmentationModule(RecipeModule):
    """Trains `network` (logits from images) by a recipe and measures DSC per validation case.

    Args:
        network: (B, C, *spatial) -> logits (B, num_classes, *spatial).
        recipe: loss, optimiser, epochs.
        num_classes: background included.
        val_cases: number of validation cases; slices of one volume are counted together.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, *, num_classes: int, val_cases: int) -> None:
        super().__init__(network, recipe)
        self.num_classes = num_classes
        stride = getattr(network, "stride", ())
        self.loss = SegmentationLoss(
            **recipe.loss.model_dump(), stride=stride if isinstance(stride, tuple) else ()
        )
        self.channels = recipe.preprocessing.channels
        self.size, self.patch = recipe.preprocessing.size, recipe.preprocessing.patch
        self.batch_size = recipe.training.batch_size
        self.val_cases = val_cases
        self._counts = torch.zeros(0)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.network(image)
        return logits

    def example(self) -> tuple[Tensor, ...]:
        """A batch of images, if all have one size."""
        sides = self.patch or self.size
        return () if sides is None else (laid_out(torch.zeros(self.batch_size, self.channels, *sides)),)

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        """Loss of one batch."""
        logits = self.run_network(laid_out(batch["image"]))
        loss: Tensor = self.loss(logits, batch["label"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._counts = torch.zeros(
            self.val_cases, self.num_classes, 3, dtype=torch.float64, device=self.device
        )

    def validation_step(self, batch: dict[str, Tensor], _index: int) -> None:
        """Loss, and true positive, predicted and true pixels of every class, added to their case.

        Volumes are predicted patch by patch, see `label_volume`; they have no loss.
        """
        label = batch["label"].long()
        if self.patch is not None:
            prediction = label_volume(self.network, batch["image"][0], self.patch, self.batch_size)[None]
        else:
            logits = self(laid_out(batch["image"]))
            prediction = logits.argmax(1)
            self.log("val_loss", self.loss(logits, label), batch_size=len(label), on_epoch=True)
        counts = overlap_counts(prediction, label, self.num_classes)
        self._counts.index_add_(0, batch["case"], counts.to(self._counts))

    def on_validation_epoch_end(self) -> None:
        """Log the mean DSC: classes of a case first, then cases; a class absent from both does not count."""
        counts: Any = self.trainer.strategy.reduce(self._counts, reduce_op="sum")
        self.log("val_dsc", mean_dsc(counts))


def label_volume(network: nn.Module, image: Tensor, patch: tuple[int, int, int], batch_size: int) -> Tensor:
    """Label map (i, j, k) of image (C, i, j, k) by overlapping patches, never all its logits at once."""
    i, j, k = image.shape[1:]
    prediction = torch.empty((i, j, k), dtype=torch.long, device=image.device)
    row = 0
    windows = Windows(shape=(i, j, k), patch=patch)
    for slab in slab_logits(image, network, windows, batch_size=batch_size, device=image.device):
        prediction[row : row + len(slab)] = slab.argmax(1)
        row += len(slab)
    return prediction


def may_record(recipe: Recipe | PretrainRecipe) -> bool:
    """Whether the recipe lets steps be recorded: neither compiled nor computed twice."""
    twice = recipe.model.overrides.get("gradient_checkpointing", False)
    return recipe.training.cuda_graphs and not recipe.training.compile and not twice


def laid_out(image: Tensor) -> Tensor:
    """Images (B, C, H, W) channels-last in memory; volumes as they are."""
    return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image


def overlap_counts(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count pixels: prediction, label (B, *spatial) -> (B, num_classes, 3) = both, predicted, true."""
    pair = label.flatten(1) * num_classes + prediction.flatten(1)
    table = torch.stack([torch.bincount(row, minlength=num_classes**2) for row in pair])
    table = table.view(-1, num_classes, num_classes)  # (B, true class, predicted class)
    return torch.stack([table.diagonal(dim1=1, dim2=2), table.sum(1), table.sum(2)], dim=-1)


def mean_dsc(counts: Tensor) -> Tensor:
    """Mean foreground DSC in 0..1 of counts (cases, classes, 3); NaN where no case holds any structure."""
    both, predicted, true = counts[:, 1:].unbind(-1)
    dsc = 2 * both / (predicted + true)  # 0 / 0 = NaN: absent from both
    return dsc.nanmean(dim=1).nanmean().float()


def learning_rate_factor(settings: OptimizerSettings, *, steps: int, epochs: int) -> Callable[[int], float]:
    """Learning rate over its peak as a function of the step: linear warm-up, then decay to the minimum.

    With schedule "epoch" the decay moves on once an epoch, as CosineAnnealingLR over the epochs does.
    """
    floor = settings.min_learning_rate / settings.learning_rate
    per_epoch = max(1, steps // epochs)

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "epoch":
            progress = (step // per_epoch) / epochs
        else:
            progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
        progress = min(1.0, progress)
        if settings.decay == "poly":
            return floor + (1 - floor) * math.pow(1 - progress, POLY_POWER)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
