"""Rotation, scale and shift of pictures in one resampling: MONAI's RandAffined to the last bit, but faster.

MONAI makes the grid anew for every picture, brings it to the resampler's type once for the image and once for
the label, and seeds three generators alike. Here the grid without motion is kept, the moved one is shared,
and one generator serves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from monai.transforms.utils import create_rotate, create_scale, create_translate
from monai.utils.enums import TransformBackends
from torch import Tensor
from torch.nn.functional import grid_sample

TORCH = TransformBackends.TORCH


class RandomAffine(Randomizable, Transform):  # type: ignore[misc]
    """Moves "image" (C, H, W) float32, interpolated linearly, and "label" (1, H, W), to the nearest pixel.

    Args:
        size: (H, W).
        probability: of moving at all.
        rotation: largest angle either way, in radians.
        shift: largest shift either way, in pixels along each axis.
        scale: each axis is scaled by a factor uniform in exp(-scale)..exp(scale).
        padding: what comes in from outside, see `torch.nn.functional.grid_sample`.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        *,
        probability: float,
        rotation: float,
        shift: Sequence[float],
        scale: float,
        padding: str,
    ) -> None:
        self.size, self.probability, self.padding = size, probability, padding
        # MONAI draws a factor less 1, and adds the 1
        factors = (float(np.expm1(-scale)), float(np.expm1(scale)))
        self.ranges = [(-rotation, rotation), *((-most, most) for most in shift), *[factors] * 2]
        # from its middle, in pixels, a row of ones below; float32 as MONAI's
        axes = [torch.linspace(-(n - 1) / 2, (n - 1) / 2, n, dtype=torch.float64) for n in size]
        still = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(size, dtype=torch.float64)])
        self.still = still.float().view(3, -1)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Move both, or bring both to float32 as they are."""
        # MONAI's generators start alike, so the first number decides; it draws the ranges twice, and uses
        # the second time's
        number = len(self.ranges)
        drawn = self.R.random_sample(2 * number).tolist()
        if drawn[0] >= self.probability:
            return {key: values.float() for key, values in data.items()}
        grid = self._grid(
            [low + (high - low) * u for (low, high), u in zip(self.ranges, drawn[number:], strict=True)]
        )
        modes = {"image": "bilinear", "label": "nearest"}
        return {key: self._sample(values, grid, modes[key]) for key, values in data.items()}

    def _grid(self, values: Sequence[float]) -> Tensor:
        """(1, H, W, 2) float64, -1..1 across the picture, columns first."""
        angle, *moves = values
        matrix = torch.eye(3)
        matrix @= create_rotate(2, [angle], backend=TORCH)
        matrix @= create_translate(2, moves[:2], backend=TORCH)
        matrix @= create_scale(2, [factor + 1.0 for factor in moves[2:]], backend=TORCH)
        rows, columns, _ = (matrix @ self.still).view(3, *self.size)
        height, width = self.size
        moved = (columns.double() * (2.0 / max(2, width)), rows.double() * (2.0 / max(2, height)))
        return torch.stack(moved, dim=-1)[None]

    def _sample(self, values: Tensor, grid: Tensor, mode: str) -> Tensor:
        sampled = grid_sample(
            values[None].double(), grid, mode=mode, padding_mode=self.padding, align_corners=False
        )
        return sampled[0].float()
