"""The loss of the RWKV-UNet paper: cross-entropy plus Dice, weighted by the recipe."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """Weighted sum of cross-entropy and Dice on logits.

    Dice as in the RWKV-UNet paper's training code: softmax, background included, squared denominator, summed
    over the batch, smoothing 1e-5, mean over classes.

    Of several logits, finest first (deep supervision), each coarser one weighs half as much; the weights add
    up to 1. The label is brought to a coarser grid by its nearest voxels, after padding it behind to a
    multiple of `stride` by repeating its border, as the network does with the image.

    Args:
        cross_entropy: weight of the mean cross-entropy per pixel.
        dice: weight of one minus the soft Dice.
        batch_dice: whether overlaps are summed over the batch; else the Dice of every case counts by itself.
        stride: what the network pads its input to a multiple of, along every axis.
    """

    def __init__(
        self,
        *,
        cross_entropy: float = 0.5,
        dice: float = 1.0,
        batch_dice: bool = True,
        stride: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.weights = (cross_entropy, dice)
        self.cross_entropy = nn.CrossEntropyLoss()
        self.dice = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True, batch=batch_dice)

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """logits: (B, K, *spatial) or several, label: (B, *spatial) integers 0..K-1 -> float32 scalar."""
        if isinstance(logits, Tensor):
            return self._of_one(logits, label)
        weights = [0.5**level for level in range(len(logits))]
        finest, *coarser = logits
        losses = [self._of_one(finest, label)]
        padded = _pad_behind(label, self.stride)
        losses += [self._of_one(one, _nearest(padded, one.shape[2:])) for one in coarser]
        return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)

    def _of_one(self, logits: Tensor, label: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cross_entropy, dice = self.weights
        apart: Tensor = self.cross_entropy(logits, label.long())
        overlap: Tensor = self.dice(logits, label.unsqueeze(1))
        return cross_entropy * apart + dice * overlap


def _pad_behind(label: Tensor, multiple: Sequence[int]) -> Tensor:
    pads = [-side % stride for side, stride in zip(label.shape[1:], multiple, strict=bool(multiple))]
    if not any(pads):
        return label
    amounts = [amount for pad in reversed(pads) for amount in (0, pad)]
    return F.pad(label.unsqueeze(1).float(), amounts, mode="replicate").squeeze(1).to(label.dtype)


def _nearest(label: Tensor, size: Sequence[int]) -> Tensor:
    """Label (B, *spatial) at the nearest voxel centres of a grid of `size`; values below 2^24."""
    resized = F.interpolate(label.unsqueeze(1).float(), size=tuple(size), mode="nearest-exact")
    return resized.squeeze(1).to(label.dtype)
