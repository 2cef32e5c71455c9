"""A step of pre-training: classify, or paint what is hidden; beside it a moving average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkvseg.models.pretraining import reconstruction_loss
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe_module import RecipeModule, laid_out


class PretrainModule(RecipeModule):
    """Trains an `EncoderClassifier` or a `MaskedReconstruction` by a recipe.

    Args:
        network: the one that fits the recipe's task.
        recipe: task, optimiser, epochs, decay of the moving average.
    """

    def __init__(self, network: nn.Module, recipe: PretrainRecipe) -> None:
        super().__init__(network, recipe)
        training = recipe.training
        self.pictures = (training.batch_size, 3, recipe.pictures.size, recipe.pictures.size)
        self.task = recipe.task
        self.label_smoothing = recipe.classify.label_smoothing
        self._sums = torch.zeros(0)

    def example(self) -> tuple[Tensor, ...]:
        """A batch of pictures, and of masks if there are any."""
        image = laid_out(torch.zeros(self.pictures))
        return (image, image[:, 0] > 0) if self.task == "masked" else (image,)

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        """Loss of one batch."""
        image = laid_out(batch["image"])
        if self.task == "masked":
            loss = reconstruction_loss(self.run_network(image, batch["mask"]), image, batch["mask"])
        else:
            logits = self.run_network(image).float()
            loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(image), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._sums = torch.zeros(6, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], _index: int) -> None:
        """Add number, loss without smoothing, and top-1 and top-5 hits, also of the averaged weights."""
        image, label = laid_out(batch["image"]), batch["label"]
        logits = self.network(image).float()
        sums = [
            torch.tensor(len(label)),
            F.cross_entropy(logits, label, reduction="sum"),
            *hits(logits, label),
        ]
        if self.average is not None:
            sums += hits(self.average(image), label)
        for place, value in enumerate(sums):
            self._sums[place] += value.to(self._sums)

    def on_validation_epoch_end(self) -> None:
        """Log means over the validation part."""
        sums: Any = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        names = ("val_loss", "val_top1", "val_top5", "ema_top1", "ema_top5")
        for name, value in zip(names[: 3 if self.average is None else 5], sums[1:], strict=False):
            self.log(name, (value / sums[0]).float())


def hits(logits: Tensor, label: Tensor) -> list[Tensor]:
    """Numbers of rows whose label is the largest logit, and among the five largest. logits: (B, K)."""
    order = logits.topk(min(5, logits.shape[1]), dim=1).indices == label.unsqueeze(1)
    return [order[:, 0].sum(), order.sum()]
