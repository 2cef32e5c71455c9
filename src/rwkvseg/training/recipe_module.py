"""What every training shares, whatever its task: seed, recorded steps, clipping, optimiser, learning rate."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from rwkvseg.training.cuda_graphs import graphed
from rwkvseg.training.freezing import keep_frozen
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe import OptimizerSettings, Recipe

POLY_POWER = 0.9
Tensors = tuple[Tensor, ...] | list[Tensor]


class RecipeModule(LightningModule):  # type: ignore[misc]
    """Seeds, clips and optimises `network` as a recipe says, whatever the task is.

    On one GPU the network's steps are launched as CUDA graphs where the recipe lets them, see `graphed`.
    `average` holds the moving average of the weights, if the recipe asks for one.

    Args:
        network: what is trained.
        recipe: its optimiser, epochs, decay of the moving average, seed of everything random inside.
    """

    def __init__(self, network: nn.Module, recipe: Recipe | PretrainRecipe) -> None:
        super().__init__()
        self.network = network
        self.settings = recipe.optimizer
        self.epochs = recipe.training.epochs
        self.seed = recipe.training.seed
        self.record = may_record(recipe)
        decay = recipe.training.ema
        self.average = None if decay is None else average_of(network, decay)
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

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the average follow the weights that the optimiser has just changed."""
        if self.average is not None:
            self.average.update_parameters(self.network)

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


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and of batch norm's statistics; the first update copies both.

    After n updates the decay is (1 + n) / (10 + n) until it reaches `decay`: the first weights, and even more
    the first statistics, are far from all later ones, and 1 % of them spoils the average.
    """

    @torch.no_grad()
    def averaging(averages: Tensors, current: Tensors, updates: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            for average, value in zip(averages, current, strict=True):
                average.copy_(value)
            return
        updates = torch.as_tensor(updates)
        rate = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)  # on the device: nobody waits for it
        steps = torch._foreach_sub(current, averages)
        torch._foreach_mul_(steps, rate)
        torch._foreach_add_(averages, steps)

    # statistics too: those of the last weights do not fit averaged ones
    average = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True).eval()
    average.requires_grad_(False)
    return average


def may_record(recipe: Recipe | PretrainRecipe) -> bool:
    """Whether the recipe lets steps be recorded: neither compiled nor computed twice."""
    twice = recipe.model.overrides.get("gradient_checkpointing", False)
    return recipe.training.cuda_graphs and not recipe.training.compile and not twice


def laid_out(image: Tensor) -> Tensor:
    """Images (B, C, H, W) channels-last in memory; volumes as they are."""
    return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image


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
