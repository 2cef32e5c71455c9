"""Patches of volumes for training: where they lie, and one resampling that cuts and turns them.

A patch is rotated by sampling the volume itself at the turned places: nothing but the patch is computed, and
its corners show the volume. MONAI's RandAffined would turn what was cut before. Outside there are zeros.
Every draw comes from the generator that is given.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from rwkvseg.data.volume_intensity import take_evenly

if TYPE_CHECKING:
    from rwkvseg.data.transforms import Augmentation

PLACES_PER_CLASS = 4096
Places: TypeAlias = dict[int, NDArray[np.int64]]


def foreground_places(label: NDArray[np.integer[Any]], classes: int) -> Places:
    """Flat indices of voxels of every class 1, 2, ... that is present, evenly taken, at most 4096 of each."""
    places = {}
    for value in range(1, classes):
        found = take_evenly(np.flatnonzero(label == value), PLACES_PER_CLASS)
        if len(found):
            places[value] = found
    return places


def draw_corner(
    shape: Sequence[int],
    patch: Sequence[int],
    generator: np.random.RandomState,
    *,
    places: Places,
    foreground_fraction: float,
) -> tuple[int, ...]:
    """First voxel of a random patch, negative where the volume is smaller: then it lies in the middle.

    A `foreground_fraction` of draws is centred on a random voxel of a random class, as far as the border lets
    it; the others lie anywhere within.
    """
    anywhere = generator.uniform(size=3)
    chosen, which, where = generator.uniform(size=3)
    centre = None
    if places and chosen < foreground_fraction:
        found = list(places.values())[int(which * len(places))]
        centre = np.unravel_index(found[int(where * len(found))], tuple(shape))
    corner = []
    for axis, (n, side) in enumerate(zip(shape, patch, strict=True)):
        if n <= side:
            corner.append(-((side - n) // 2))
        elif centre is None:
            corner.append(int(anywhere[axis] * (n - side + 1)))
        else:
            corner.append(min(max(int(centre[axis]) - side // 2, 0), n - side))
    return tuple(corner)


def cut_patch(values: NDArray[Any], corner: Sequence[int], patch: Sequence[int]) -> NDArray[Any]:
    """Copy (..., *patch) of values (..., i, j, k) from `corner` on, zeros outside."""
    cut = np.zeros((*values.shape[:-3], *patch), values.dtype)
    sides = list(zip(corner, patch, values.shape[-3:], strict=True))
    i, j, k = (slice(max(start, 0), max(start + side, 0)) for start, side, _ in sides)
    u, v, w = (slice(max(-start, 0), max(min(side, n - start), 0)) for start, side, n in sides)
    cut[..., u, v, w] = values[..., i, j, k]
    return cut


def draw_geometry(
    settings: "Augmentation",
    patch: Sequence[int],
    spacing: Sequence[float] | None,
    generator: np.random.RandomState,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Random matrix (3, 3) and shift (3,) in voxels, or None where nothing changes.

    The patch's voxel x, counted from its centre, shows the volume's voxel matrix @ x + shift from there.
    Rotations are rigid in mm; they come after the scaling along the patch's axes.
    """
    if not (settings.rotation or settings.scale or settings.shift):
        return None
    chance = generator.uniform()
    angles = np.deg2rad(settings.rotation) * generator.uniform(-1, 1, size=3)
    scales = generator.uniform(np.exp(-settings.scale), np.exp(settings.scale), size=3)
    shift = settings.shift * generator.uniform(-1, 1, size=3) * np.asarray(patch)
    if chance >= settings.geometry_probability:
        return None
    fixed = settings.through_plane
    if fixed is not None:
        angles[[axis for axis in range(3) if axis != fixed]] = 0
        scales[fixed], shift[fixed] = 1, 0
    lengths = np.ones(3) if spacing is None else np.asarray(spacing)
    turn = _rotation(0, angles[0]) @ _rotation(1, angles[1]) @ _rotation(2, angles[2])
    return turn * lengths / lengths[:, None] * scales, shift


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    matrix = np.eye(3)
    first, second = (other for other in range(3) if other != axis)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix


def sample_patch(
    image: Tensor,
    label: Tensor,
    centre: NDArray[np.float64],
    matrix: NDArray[np.float64],
    patch: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Sample image (C, i, j, k) linearly and label (i, j, k) at the nearest voxel.

    Voxel o of the patch shows `centre` + `matrix` @ (o - (patch - 1) / 2) of the volume. Returns (C, *patch)
    float32 and (*patch) of the label's type.
    """
    shape = np.array(label.shape)
    # of coordinates -1..1 across patch and volume, in torch's order of axes, the last first
    theta = np.empty((3, 4))
    theta[:, :3] = (matrix * np.asarray(patch) / shape[:, None])[::-1, ::-1]
    theta[:, 3] = ((2 * centre + 1) / shape - 1)[::-1]
    grid = affine_grid(torch.from_numpy(theta)[None].float(), [1, 1, *patch], align_corners=False)
    sampled = grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    inside: Tensor | None = None
    index: Tensor | None = None
    for axis, n in enumerate(label.shape):
        place = ((grid[0, ..., 2 - axis] + 1) * (n / 2)).floor_()
        within = (place >= 0) & (place < n)
        place = place.clamp_(0, n - 1).long()
        inside = within if inside is None else inside.logical_and_(within)
        index = place if index is None else index.mul_(n).add_(place)
    assert index is not None
    assert inside is not None
    nearest = label.reshape(-1)[index]
    return sampled, nearest.mul_(inside)
