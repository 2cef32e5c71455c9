"""What a step of a segmentation and its validation are; Lightning does the rest."""

from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.inference.sliding_window import Windows, slab_logits
from rwkvseg.training.losses import SegmentationLoss
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.recipe_module import RecipeModule, laid_out


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

    @property
    def result(self) -> nn.Module:
        """What is validated and kept: the network, or the moving average of it."""
        result: nn.Module = self.network if self.average is None else self.average.module
        return result

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.result(image)
        return logits

    def example(self) -> tuple[Tensor, ...]:
        """A batch of images, if all have one size."""
        sides = self.patch or self.size
        return () if sides is None else (laid_out(torch.zeros(self.batch_size, self.channels, *sides)),)

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        """Loss of one batch."""
        logits = self.run_network(laid_out(batch["image"]))
        loss: Tensor = self.loss(logits, batch["label"])
        self._log_mean("train_loss", loss, batch)
        return loss

    def _log_mean(self, name: str, value: Tensor, batch: dict[str, Tensor]) -> None:
        """Log a loss as the mean over an epoch's items, those of all devices."""
        number = len(batch["image"])
        self.log(name, value, on_step=False, on_epoch=True, batch_size=number, sync_dist=True)

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
            prediction = label_volume(self.result, batch["image"][0], self.patch, self.batch_size)[None]
        else:
            logits = self(laid_out(batch["image"]))
            prediction = logits.argmax(1)
            self._log_mean("val_loss", self.loss(logits, label), batch)
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
