"""Pictures of cases painted for people: the image, both contours, and where they part.

Colours are Okabe and Ito's (2008), which stay apart under the common kinds of colour blindness. Pillow is
imported when the first picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from rwkvseg.evaluation.pictures import Picture, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]

CLASS_COLOURS: tuple[Colour, ...] = (
    (240, 228, 66),  # yellow: the first, since it shows on dark, grey and red tissue alike
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple; from here on shared with the errors, which have a panel of their own
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (255, 255, 255),
)
"""Contour colour of label 1, 2, ...; from the ninth label on they repeat."""

ERROR_COLOURS: dict[str, Colour] = {
    "false positive": (230, 159, 0),
    "false negative": (86, 180, 233),
    "wrong class": (204, 121, 167),
}
"""Fill colour of a wrong pixel: predicted but not true, true but not predicted, another class predicted."""

PANELS = ("image", "truth", "prediction", "errors")
"""What `draw_overlay` shows, from left to right."""

_SIDE = 256  # pixels of a panel's shorter side at least: contours of 2 pixels stay fine lines
_LARGEST = 512  # pixels of a panel's longer side at most, so that a report stays small
_GAP = 6


def draw_overlay(picture: Picture) -> Image:
    """Four panels beside each other: image, contours of the truth, contours of the prediction, errors.

    Every panel has the physical proportions of the slice. Small slices are enlarged by nearest neighbour, so
    a contour runs along the true edges of the pixels. On the errors the truth's contour is white.

    Returns:
        An RGB picture of Pillow, panels at least 256 pixels high and wide (unless the slice is very long).
    """
    image, truth, prediction = _enlarged(picture)
    return _beside_each_other(
        [
            image,
            _with_contours(image, truth),
            _with_contours(image, prediction),
            _with_errors(image, truth, prediction),
        ]
    )


def draw_side_by_side(pictures: Sequence[Picture]) -> Image:
    """One panel with the image, one with the truth's contours, then one a network with its prediction's.

    Args:
        pictures: the same part of the same case, under one network each.
    """
    image, truth, _ = _enlarged(pictures[0])
    predictions = [_enlarged(picture)[2] for picture in pictures]
    return _beside_each_other([image, *(_with_contours(image, labels) for labels in (truth, *predictions))])


def draw_prediction(picture: Picture) -> Image:
    """Two panels: image, and contours of the prediction; for cases whose truth nobody knows."""
    image, _, prediction = _enlarged(picture)
    return _beside_each_other([image, _with_contours(image, prediction)])


def _enlarged(picture: Picture) -> tuple[Pixels, NDArray[Any], NDArray[Any]]:
    """Image in colour, truth and prediction at the size of a panel."""
    height, width = _panel_size(picture)
    image = _resized(picture.image, height, width)
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return image, _nearest(picture.truth, height, width), _nearest(picture.prediction, height, width)


def _beside_each_other(panels: Sequence[Pixels]) -> Image:
    from PIL import Image

    height, width = panels[0].shape[:2]
    sheet = np.full((height, len(panels) * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for position, panel in enumerate(panels):
        left = position * (width + _GAP)
        sheet[:, left : left + width] = panel
    return Image.fromarray(sheet)


def _panel_size(picture: Picture) -> tuple[int, int]:
    finest = min(picture.spacing)
    height, width = (
        size * step / finest for size, step in zip(picture.truth.shape, picture.spacing, strict=True)
    )
    # a whole factor, since nearest neighbour by any other makes pixels of unequal size
    scale: float = min(math.ceil(_SIDE / min(height, width)), _LARGEST // max(height, width))
    if scale < 1:
        scale = _LARGEST / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    """Nearest where pixels grow, so that none is invented; averaged where they shrink."""
    from PIL import Image

    if image.shape[0] <= height and image.shape[1] <= width:
        return _nearest(image, height, width)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _nearest(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    rows = (np.arange(height) + 0.5) * array.shape[0] // height
    columns = (np.arange(width) + 0.5) * array.shape[1] // width
    return np.asarray(array[rows.astype(np.intp)[:, None], columns.astype(np.intp)])


def _with_contours(image: Pixels, labels: NDArray[Any]) -> Pixels:
    """A line of 2 pixels just inside every structure and a dark one outside, seen on any ground."""
    drawn = image.copy()
    values = [int(value) for value in np.unique(labels) if value != 0]
    for value in values:
        mask = labels == value
        outside = binary_dilation(mask) & (labels == 0)
        drawn[outside] = drawn[outside] // 4
    for value in values:
        mask = labels == value
        drawn[mask & ~binary_erosion(mask, iterations=2)] = class_colour(value)
    return drawn


def class_colour(label: int) -> Colour:
    """Contour colour of a label value from 1 on."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def _with_errors(image: Pixels, truth: NDArray[Any], prediction: NDArray[Any]) -> Pixels:
    """Grey, darkened image; wrong pixels filled by kind; the outline of the truth in white."""
    grey = image.mean(axis=2, keepdims=True) * 0.6
    drawn = np.repeat(grey, 3, axis=2)
    kinds = {
        "false positive": (truth == 0) & (prediction != 0),
        "false negative": (truth != 0) & (prediction == 0),
        "wrong class": (truth != 0) & (prediction != 0) & (truth != prediction),
    }
    for kind, wrong in kinds.items():
        drawn[wrong] = ERROR_COLOURS[kind]
    for value in np.unique(truth[truth != 0]):
        mask = truth == value
        drawn[mask & ~binary_erosion(mask)] = 255
    filled: Pixels = np.rint(drawn).astype(np.uint8)
    return filled
