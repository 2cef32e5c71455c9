"""Keep the largest connected part of a structure in a label map, and take the specks away from it."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rwkvseg.evaluation.regions import structure_value

ALL = "all"


def labels_to_keep(words: Iterable[str | int], labels: Mapping[str, int]) -> dict[str, int]:
    """Names and values of the labels meant by names or values, or by "all" of them but background.

    Args:
        words: names, values, or "all"; a label called "all" goes before.
        labels: name to value.

    Raises:
        UsageError: background, or a label that there is not.

    Example:
        >>> labels_to_keep(["liver", 2], {"background": 0, "liver": 1, "spleen": 2})
        {'liver': 1, 'spleen': 2}
    """
    wanted: set[int] = set()
    for word in words:
        if word == ALL and ALL not in labels:
            wanted |= {value for value in labels.values() if value != 0}
        else:
            wanted.add(structure_value(word, labels, f"the largest part was asked for of {word!r}"))
    return {name: value for name, value in labels.items() if value in wanted}


def count_values(values: NDArray[np.integer], number: int) -> NDArray[np.int64]:
    """How many elements have each of the values 0 to number - 1, which are all that there are.

    Row by row, since NumPy counts in a copy of eight bytes an element.
    """
    counts = np.zeros(number, np.int64)
    for row in values:
        counts += np.bincount(row.ravel(), minlength=number)
    return counts


def keep_largest(labels: NDArray[np.integer], values: Collection[int]) -> dict[int, int]:
    """Turn all but the largest connected part of each label into background, in place.

    Pixels or voxels are connected by faces, edges and corners. The largest part is that of most of them, of
    equal ones that which begins first. Beside the label map this takes five bytes for each element of the
    box around a label.

    Args:
        labels: (*spatial), two or three axes.
        values: labels to do this to; the others stay as they are.

    Returns:
        How many elements became background of each label given.

    Example:
        >>> labels = np.array([[1, 1, 0, 1], [0, 0, 0, 2]])
        >>> keep_largest(labels, [1])
        {1: 1}
        >>> labels
        array([[1, 1, 0, 0],
               [0, 0, 0, 2]])
    """
    boxes = ndimage.find_objects(labels) if values else []
    return {
        value: _keep_in(labels[boxes[value - 1]], value)
        if value <= len(boxes) and boxes[value - 1] is not None
        else 0
        for value in values
    }


def _keep_in(labels: NDArray[np.integer], value: int) -> int:
    """Do this to one label in the box around it; return how many elements became background."""
    parts, number = ndimage.label(labels == value, np.ones((3,) * labels.ndim, bool))
    if number < 2:
        return 0
    sizes = count_values(parts, number + 1)
    sizes[0] = 0
    largest = int(sizes.argmax())
    for row, part in zip(labels, parts, strict=True):
        row[(part > 0) & (part != largest)] = 0
    return int(sizes.sum() - sizes[largest])
