"""The anatomy of the phantom: which tissue lies where, and how bright and grainy it is.

Coordinates are (right, anterior, superior), each -1..1 across the body: axis 0 of every `points` array.
A picture is the plane superior = 0 of the same anatomy that fills a volume.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tissue:
    """One bent superellipsoid of the anatomy; later ones cover earlier ones."""

    label: int = 0
    """Value in the label map; 0 is a tissue nobody asks for."""
    centre: Triple = (0.0, 0.0, 0.0)
    radii: Triple
    level: float
    """Mean intensity, 0..255."""
    grain: float = 0.2
    """Standard deviation of the logarithm of the speckle."""
    power: float = 2.0
    """2 is an ellipsoid, more is boxier."""
    bend: float = 0.0
    """How far the tips lean to the body's right: what makes a kidney a bean."""
    tilt: float = 0.0
    """Rotation in the plane (right, anterior), radians."""
    shift: float = 0.05
    """Largest random displacement of the centre, along each axis."""


LIVER, SPLEEN, KIDNEY, AORTA = 1, 2, 3, 4
THROUGH = 9.0  # a radius that crosses the whole volume

TISSUES = (
    Tissue(radii=(0.95, 0.84, THROUGH), level=55, power=2.3, shift=0.02),  # fat below the skin
    Tissue(radii=(0.87, 0.75, THROUGH), level=98, power=2.3, shift=0.02),  # muscle and the rest
    # distractors: the intensity of an organ in the wrong place, or with the wrong texture
    Tissue(centre=(-0.3, 0.38, 0.1), radii=(0.3, 0.19, 0.6), level=128, grain=0.3, tilt=0.5),  # stomach
    Tissue(centre=(0.1, 0.52, -0.2), radii=(0.13, 0.09, 0.5), level=158, grain=0.28, shift=0.08),  # bowel
    Tissue(centre=(-0.62, 0.28, -0.1), radii=(0.09, 0.12, 0.5), level=70, grain=0.28, shift=0.06),  # bowel
    Tissue(centre=(0.0, -0.58, 0.0), radii=(0.17, 0.15, THROUGH), level=185, power=3.0, shift=0.02),  # spine
    Tissue(label=LIVER, centre=(0.44, 0.16, 0.15), radii=(0.36, 0.42, 0.85), level=130, power=2.4, tilt=0.3),
    Tissue(label=SPLEEN, centre=(-0.6, -0.06, 0.1), radii=(0.17, 0.32, 0.65), level=160, bend=0.6, tilt=-0.2),
    Tissue(label=KIDNEY, centre=(0.38, -0.42, -0.1), radii=(0.17, 0.2, 0.6), level=72, bend=-0.9, tilt=-0.4),
    Tissue(label=KIDNEY, centre=(-0.38, -0.42, -0.05), radii=(0.17, 0.2, 0.6), level=72, bend=0.9, tilt=0.4),
    Tissue(label=AORTA, centre=(-0.05, -0.2, 0.0), radii=(0.185, 0.185, THROUGH), level=185, shift=0.04),
)
AIR = Tissue(radii=(THROUGH, THROUGH, THROUGH), level=9)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What one case shows before blur, bias and speckle; all arrays (*spatial)."""

    label: NDArray[np.uint8]
    level: Field
    grain: Field


def draw_anatomy(points: Field, random: Generator) -> Anatomy:
    """Place every tissue with jittered position, size and shape.

    points: (3, *spatial) in anatomical coordinates. The random draws do not depend on the number of points,
    so one case is the same anatomy at every resolution.
    """
    points = points + _smooth_warp(points, random)
    label = np.zeros(points.shape[1:], dtype=np.uint8)
    level = np.full(points.shape[1:], AIR.level, dtype=np.float32)
    grain = np.full(points.shape[1:], AIR.grain, dtype=np.float32)
    for tissue in TISSUES:
        inside = _inside(tissue, points, random)
        label[inside] = tissue.label
        level[inside] = tissue.level * random.uniform(0.96, 1.04)
        grain[inside] = tissue.grain
    return Anatomy(label, level, grain)


def waves(points: Field, random: Generator, number: int, frequency: float) -> Field:
    """Return a smooth random function of the place: the mean of `number` plane waves, within -1..1.

    points: (3, *spatial) -> (*spatial). No wave has more than `frequency` periods per unit along an axis.
    """
    total = np.zeros(points.shape[1:], dtype=np.float32)
    for _ in range(number):
        direction = random.uniform(-frequency, frequency, size=3).astype(np.float32)
        phase = np.float32(random.uniform(0, 2 * np.pi))
        total += np.sin(2 * np.pi * np.tensordot(direction, points, axes=1) + phase, dtype=np.float32)
    return total / np.float32(number)


def _smooth_warp(points: Field, random: Generator) -> Field:
    slow = np.stack([waves(points, random, 3, 0.5) for _ in range(3)])
    fast = np.stack([waves(points, random, 3, 1.6) for _ in range(3)])
    return np.float32(0.07) * slow + np.float32(0.035) * fast


def _inside(tissue: Tissue, points: Field, random: Generator) -> NDArray[np.bool_]:
    centre = np.array(tissue.centre, dtype=np.float32) + random.uniform(
        -tissue.shift, tissue.shift, 3
    ).astype(np.float32)
    scale = random.uniform(0.9, 1.1) * random.uniform(0.95, 1.05, 3)
    radii = np.array(tissue.radii, dtype=np.float32) * scale.astype(np.float32)
    angle = tissue.tilt + random.uniform(-0.2, 0.2)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    right, anterior, superior = (points[axis] - centre[axis] for axis in range(3))
    along = cos * anterior - sin * right
    across = cos * right + sin * anterior - np.float32(tissue.bend) * along**2
    scaled = np.abs(np.stack([across / radii[0], along / radii[1], superior / radii[2]]))
    return np.asarray((scaled**tissue.power).sum(axis=0) < 1)
