"""The built-in data set: procedural organs in 2D and 3D, so that the demo and the tests need no download.

Case number `index` is a pure function of (seed, index): the first ten of a hundred are the ten of a ten.
docs/explanation/phantom.md says why no intensity threshold solves it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rwkvseg.data.case import Case
from rwkvseg.data.io import write_label_map
from rwkvseg.data.nifti import write_nifti
from rwkvseg.data.phantom_shapes import AORTA, KIDNEY, LIVER, SPLEEN, Anatomy, Field, draw_anatomy, waves
from rwkvseg.data.pictures import write_picture
from rwkvseg.errors import UsageError
from rwkvseg.output import write_json

PHANTOM_LABELS = {"background": 0, "liver": LIVER, "spleen": SPLEEN, "kidney": KIDNEY, "aorta": AORTA}
PHANTOM_LICENCE = "Apache-2.0 (generated)"
SHORTEST_AXIS = 8
PICTURE_SIZE = (128, 128)
VOLUME_SIZE = (48, 48, 24)
OBLIQUE_DEGREES = 20.0


def make_phantom_2d(number: int, size: tuple[int, int] = PICTURE_SIZE, seed: int = 0) -> list[Case]:
    """Make `number` pictures: image (1, rows, columns) uint8, label (rows, columns) uint8.

    Seen as radiologists do: the front of the body is up, its right side is on the left.

    Raises:
        UsageError: less than one case, a negative seed, or an axis shorter than 8 pixels.
    """
    _check(number, size, 2, seed)
    return [_draw_case(index, size, seed) for index in range(number)]


def make_phantom_3d(
    number: int,
    size: tuple[int, int, int] = VOLUME_SIZE,
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.5),
    seed: int = 0,
    *,
    oblique: bool = False,
) -> list[Case]:
    """Make `number` volumes: image (1, i, j, k) uint8, label (i, j, k) uint8, with spacing in mm and affine.

    The axes run to the right, the front and the head (RAS+); the middle of the volume is the origin.
    `oblique` turns the affine by 20 degrees about its first axis, as a tilted scanner does.

    Raises:
        UsageError: less than one case, a negative seed, an axis shorter than 8 voxels, or a spacing <= 0.
    """
    _check(number, size, 3, seed)
    if len(spacing) != 3 or min(spacing) <= 0:
        raise UsageError(f"the phantom's spacing is {spacing}. Give three positive numbers of millimetres.")
    affine = _affine(size, spacing, np.deg2rad(OBLIQUE_DEGREES if oblique else 0.0))
    return [_draw_case(index, size, seed).replace(spacing=spacing, affine=affine) for index in range(number)]


def write_phantom(
    folder: Path, number: int, dimensions: int = 2, size: Sequence[int] | None = None, seed: int = 0
) -> None:
    """Write a data folder that `open_data` reads; files of the same name are replaced.

    dimensions 2: `images/*.png` and `masks/*.png`. 3: nnU-Net raw, `imagesTr/*_0000.nii.gz` and
    `labelsTr/*.nii.gz`. Either with a dataset.json: labels and licence. size None: the makers' own.

    Raises:
        UsageError: what the makers refuse, or dimensions other than 2 and 3.
        OutputError: the folder cannot be written.
    """
    if dimensions not in (2, 3):
        raise UsageError(f"a phantom of {dimensions} dimensions is unknown. Ask for 2 or 3.")
    shape = tuple(size) if size is not None else PICTURE_SIZE if dimensions == 2 else VOLUME_SIZE
    _check(number, shape, dimensions, seed)
    cases = (
        make_phantom_2d(number, (shape[0], shape[1]), seed)
        if dimensions == 2
        else make_phantom_3d(number, (shape[0], shape[1], shape[2]), seed=seed)
    )
    for case in cases:
        write_case(folder, case)
    write_json(folder / "dataset.json", _description(number, dimensions, seed))


def _check(number: int, size: tuple[int, ...], dimensions: int, seed: int) -> None:
    if number < 1:
        raise UsageError(f"a phantom of {number} cases cannot be made. Ask for one or more.")
    if len(size) != dimensions or min(size) < SHORTEST_AXIS:
        raise UsageError(
            f"the phantom's size is {tuple(size)}. Give {dimensions} axes of at least {SHORTEST_AXIS} each."
        )
    if seed < 0:
        raise UsageError(f"the phantom's seed is {seed}. Give 0 or more.")


def _draw_case(index: int, size: tuple[int, ...], seed: int) -> Case:
    random = np.random.default_rng([seed, index, len(size)])
    points = _picture_points(size) if len(size) == 2 else _volume_points(size)
    anatomy = draw_anatomy(points, random)
    image = _render(anatomy, points, random)
    return Case(id=f"phantom-{index:04d}", image=image[None], label=anatomy.label, spacing=None, affine=None)


def _centres(number: int) -> Field:
    return ((np.arange(number, dtype=np.float32) + 0.5) / number * 2 - 1).astype(np.float32)


def _picture_points(size: tuple[int, ...]) -> Field:
    anterior, right = np.meshgrid(-_centres(size[0]), -_centres(size[1]), indexing="ij")
    return np.stack([right, anterior, np.zeros_like(right)])


def _volume_points(size: tuple[int, ...]) -> Field:
    return np.stack(np.meshgrid(*(_centres(number) for number in size), indexing="ij"))


def _render(anatomy: Anatomy, points: Field, random: Generator) -> NDArray[np.uint8]:
    # speckle multiplies, as in ultrasound, and its mean is 1, so averaging recovers the level
    noise = gaussian_filter(random.standard_normal(anatomy.level.shape, dtype=np.float32), 0.5)
    noise /= noise.std()
    speckle = np.exp(anatomy.grain * noise - anatomy.grain**2 / 2)
    bias = random.uniform(0.92, 1.08) * np.exp(np.float32(0.2) * waves(points, random, 2, 0.4))
    blurred = gaussian_filter(anatomy.level, 0.6)
    image: NDArray[np.float32] = np.clip(np.rint(blurred * bias * speckle), 0, 255)
    return image.astype(np.uint8)


def _affine(
    size: tuple[int, int, int], spacing: tuple[float, float, float], angle: float
) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def write_case(folder: Path, case: Case) -> None:
    """Write a labelled case into a data folder: PNG of pictures, NIfTI of volumes."""
    assert case.label is not None
    if case.affine is None:
        write_picture(folder / "images" / f"{case.id}.png", case.image[0])
        write_label_map(folder / "masks" / f"{case.id}.png", case.label)
    else:
        write_nifti(folder / "imagesTr" / f"{case.id}_0000.nii.gz", case.image[0], case.affine)
        write_label_map(folder / "labelsTr" / f"{case.id}.nii.gz", case.label, case.affine)


def _description(number: int, dimensions: int, seed: int) -> dict[str, object]:
    description: dict[str, object] = {
        "name": f"rwkvseg phantom, {dimensions}D, seed {seed}",
        "description": "Procedural organs of overlapping intensities with speckle and bias; no patient.",
        "licence": PHANTOM_LICENCE,
        "labels": PHANTOM_LABELS,
    }
    nnunet = {"channel_names": {"0": "phantom"}, "numTraining": number, "file_ending": ".nii.gz"}
    return description if dimensions == 2 else description | nnunet
