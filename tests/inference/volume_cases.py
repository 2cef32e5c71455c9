"""Networks without training and volumes of known content, for the tests of volumetric prediction."""

from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.inference.model_file import Architecture, ModelDescription
from rwkvseg.inference.predictor import Predictor


class Linear(nn.Module):
    """Foreground's probability is the intensity, 0 to 1: linear in it, so that resampling keeps it."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1, D, H, W) of the first channel."""
        return torch.logit(x[:, :1].double(), eps=1e-12).float()


def convolution(*, channels: int = 1, num_classes: int = 3) -> nn.Module:
    """Two convolutions whose labels all occur."""
    torch.manual_seed(0)
    first = nn.Conv3d(channels, 4, 3, padding=1)
    return nn.Sequential(first, nn.GELU(), nn.Conv3d(4, num_classes, 3, padding=1, bias=False))


def make_predictor(
    network: nn.Module, *, num_classes: int = 1, channels: int = 1, options: Any = None, **preprocessing: Any
) -> Predictor:
    """Predictor on the CPU of a network that sees volumes."""
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=Architecture(name="test", in_channels=channels, num_classes=num_classes),
        labels={"background": 0, **{f"label_{value}": value for value in range(1, max(2, num_classes))}},
        preprocessing=Preprocessing(dimensions=3, channels=channels, **preprocessing),
    )
    return Predictor(network, description, torch.device("cpu"), **({"options": options} if options else {}))


def oblique_affine(
    axes: tuple[int, ...] = (0, 1, 2),
    signs: tuple[int, ...] = (1, 1, 1),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    degrees: tuple[float, ...] = (10.0, -7.0, 15.0),
) -> NDArray[np.float64]:
    """Affine whose own axis n runs near RAS axis axes[n], along it or against it, off it by some degrees."""
    matrix = np.zeros((3, 3))
    for own, (axis, sign, mm) in enumerate(zip(axes, signs, spacing, strict=True)):
        matrix[axis, own] = sign * mm
    return from_matvec(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ matrix, (12.5, -40, 7))


def world(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(*shape, 3) RAS+ mm of every voxel's centre."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def case_of(values: NDArray[Any], affine: NDArray[np.float64]) -> Case:
    """Case of one channel (i, j, k)."""
    spacing = tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0))
    return Case(id="case", image=values[None].astype(np.float32), spacing=spacing, affine=affine)
