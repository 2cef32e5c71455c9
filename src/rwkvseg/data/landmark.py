"""The landmark phantom: two targets that look alike, each named by the nearer of two distant landmarks.

Along the longest axis, axis 0, lie a landmark, a target, a target, a landmark. A landmark is bright or dark
by a coin's throw. In cases of even number the two differ: nothing within `landmark_gap` of a target tells its
class, and whatever is pooled over the image is the same for both targets. docs/explanation/landmark.md says
what follows from that. Cases of odd number have two landmarks of one kind: easier, to learn from only.
Case number `index` is a pure function of (seed, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rwkvseg.data.case import Case
from rwkvseg.data.phantom import PHANTOM_LICENCE, write_case
from rwkvseg.errors import UsageError
from rwkvseg.output import write_json

LANDMARK_LABELS = {"background": 0, "near the bright landmark": 1, "near the dark landmark": 2}
LANDMARK_PICTURE_SIZE = (576, 32)
LANDMARK_VOLUME_SIZE = (144, 12, 12)
SHORTEST_SIDE = 12

_BACKGROUND, _TARGET = 100.0, 150.0
_NAMES_AND_LEVELS = ((2, 10.0), (1, 230.0))  # of what a dark, a bright landmark names, and its own
_NOISE = 8.0  # standard deviation
_MARGIN = 2  # pixels between anything and the border
_TARGET_RADIUS, _LANDMARK_RADIUS = 0.2, 0.3  # of the shortest side


@dataclass(frozen=True, slots=True)
class Ball:
    """A disc or ball: centre and radius in pixels, the first pixel's middle at 0.5."""

    centre: tuple[float, ...]
    radius: float


def landmark_gap(size: Sequence[int]) -> int:
    """Least number of pixels along axis 0 between a target and the next thing, or the border.

    >>> landmark_gap((576, 32))
    144
    """
    return size[0] // 4


def make_landmark(number: int, size: Sequence[int] = LANDMARK_PICTURE_SIZE, seed: int = 0) -> list[Case]:
    """Make `number` pictures (two axes) or volumes (three): image (1, *size), label (*size), both uint8.

    Volumes have voxels of 1 mm and axes to the right, the front and the head.

    Raises:
        UsageError: less than one case, a negative seed, or a size that leaves no room.
    """
    _check(number, size, seed)
    return [_make_case(index, tuple(size), seed) for index in range(number)]


def write_landmark(
    folder: Path, number: int, dimensions: int = 2, size: Sequence[int] | None = None, seed: int = 0
) -> None:
    """Write a data folder that `open_data` reads, in the layouts of `write_phantom`.

    Raises:
        UsageError: what `make_landmark` refuses, or dimensions that are not those of the size.
        OutputError: the folder cannot be written.
    """
    if dimensions not in (2, 3) or (size is not None and len(size) != dimensions):
        raise UsageError(f"dimensions is {dimensions}, size {size}. Give 2 or 3, and a size of as many axes.")
    chosen = size or (LANDMARK_PICTURE_SIZE if dimensions == 2 else LANDMARK_VOLUME_SIZE)
    for case in make_landmark(number, chosen, seed):
        write_case(folder, case)
    description: dict[str, object] = {
        "name": f"rwkvseg landmark phantom, {dimensions}D, seed {seed}",
        "description": "Two targets alike, each named by the nearer of two distant landmarks; no patient.",
        "licence": PHANTOM_LICENCE,
        "labels": LANDMARK_LABELS,
        "size": list(chosen),
        "least_distance": landmark_gap(chosen),
    }
    nnunet = {"channel_names": {"0": "phantom"}, "numTraining": number, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", description if dimensions == 2 else description | nnunet)


def exchange_landmarks(index: int, size: Sequence[int] = LANDMARK_PICTURE_SIZE, seed: int = 0) -> Case:
    """Case `index` of `make_landmark` with bright for dark and dark for bright; the labels follow."""
    _check(1, size, seed)
    return _make_case(index, tuple(size), seed, exchange=True)


def _check(number: int, size: Sequence[int], seed: int) -> None:
    if number < 1:
        raise UsageError(f"a phantom of {number} cases cannot be made. Ask for one or more.")
    if len(size) not in (2, 3) or min(size) < SHORTEST_SIDE or _room(size) < 0:
        raise UsageError(
            f"the landmark phantom's size is {tuple(size)}. Give 2 or 3 axes of at least {SHORTEST_SIDE}, "
            f"the first some 9 times as long as the shortest other, such as {LANDMARK_PICTURE_SIZE}."
        )
    if seed < 0:
        raise UsageError(f"the phantom's seed is {seed}. Give 0 or more.")


def _make_case(index: int, size: tuple[int, ...], seed: int, *, exchange: bool = False) -> Case:
    random = np.random.default_rng([seed, index, len(size)])
    balls = _place(size, random)
    noise = gaussian_filter(random.standard_normal(size, dtype=np.float32), 0.5)
    first_is_bright = bool(random.integers(2)) != exchange
    last_is_bright = first_is_bright != (index % 2 == 0)
    level, label = draw_balls(balls, size, first_is_bright=first_is_bright, last_is_bright=last_is_bright)
    image = np.rint(level + _NOISE / noise.std() * noise)
    case = Case(
        id=f"landmark-{index:04d}",
        image=np.clip(image, 0, 255).astype(np.uint8)[None],
        label=label,
        spacing=None,
        affine=None,
    )
    return case if len(size) == 2 else case.replace(spacing=(1.0, 1.0, 1.0), affine=np.eye(4))


def draw_balls(
    balls: Sequence[Ball], size: Sequence[int], *, first_is_bright: bool, last_is_bright: bool
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Levels (0..255, without noise) and labels of landmark, target, target, landmark."""
    first, last = _NAMES_AND_LEVELS[first_is_bright], _NAMES_AND_LEVELS[last_is_bright]
    level = np.full(size, _BACKGROUND, np.float32)
    label = np.zeros(size, np.uint8)
    drawn = ((0, first[1]), (first[0], _TARGET), (last[0], _TARGET), (0, last[1]))
    for ball, (name, brightness) in zip(balls, drawn, strict=True):
        inside = _inside(ball, size)
        level[inside] = brightness
        label[inside] = name
    return level, label


def _place(size: tuple[int, ...], random: Generator) -> list[Ball]:
    """Landmark, target, target, landmark along axis 0; what room is left is dealt out between them."""
    balls = []
    start = float(_MARGIN)
    for radius, moved in zip(_radii(size), np.sort(random.uniform(0, _room(size), 4)), strict=True):
        across = [float(random.uniform(_MARGIN + radius, length - _MARGIN - radius)) for length in size[1:]]
        balls.append(Ball((start + float(moved) + radius, *across), radius))
        start += 2 * radius + landmark_gap(size)
    return balls


def _radii(size: Sequence[int]) -> list[float]:
    shares = (_LANDMARK_RADIUS, _TARGET_RADIUS, _TARGET_RADIUS, _LANDMARK_RADIUS)
    return [share * min(size[1:]) for share in shares]


def _room(size: Sequence[int]) -> float:
    """Pixels along axis 0 that neither things, gaps nor margins take."""
    return size[0] - 2 * _MARGIN - 2 * sum(_radii(size)) - 3 * landmark_gap(size)


def _inside(ball: Ball, size: Sequence[int]) -> NDArray[np.bool_]:
    squares = [
        ((np.arange(length) + 0.5 - middle) / ball.radius) ** 2
        for length, middle in zip(size, ball.centre, strict=True)
    ]
    grid = np.meshgrid(*squares, indexing="ij", sparse=True)
    return np.asarray(sum(grid) < 1)
