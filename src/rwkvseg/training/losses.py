"""The loss of the RWKV-UNet paper: cross-entropy plus Dice, weighted by the recipe."""

from monai.losses import DiceLoss
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """Weighted sum of cross-entropy and Dice on logits.

    Dice as in the RWKV-UNet paper's training code: softmax, background included, squared denominator, summed
    over the batch, smoothing 1e-5, mean over classes.

    Args:
        cross_entropy: weight of the mean cross-entropy per pixel.
        dice: weight of one minus the soft Dice.
    """

    def __init__(self, *, cross_entropy: float = 0.5, dice: float = 1.0) -> None:
        super().__init__()
        self.weights = (cross_entropy, dice)
        self.cross_entropy = nn.CrossEntropyLoss()
        self.dice = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True, batch=True)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """logits: (B, K, *spatial), label: (B, *spatial) integers 0..K-1 -> float32 scalar."""
        logits = logits.float()
        cross_entropy, dice = self.weights
        apart: Tensor = self.cross_entropy(logits, label.long())
        overlap: Tensor = self.dice(logits, label.unsqueeze(1))
        return cross_entropy * apart + dice * overlap
