"""Equal and look-alike images: a hash of the pixels, and a hash of what the eye sees.

The second is the perceptual hash known as pHash: the image shrunk to a few cells, its discrete cosine
transform, and of each low frequency whether it is above their median. It hardly changes with size,
compression, brightness and contrast; mirrored, rotated or cropped copies are not recognised.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CELLS = {2: (32, 32), 3: (16, 16, 16)}
FREQUENCIES = {2: (16, 16), 3: (8, 8, 4)}
LOOK_BITS = 255  # 256 frequencies without the mean
NEAR_BITS = 32
"""Images that differ in at most so many bits look alike; unrelated ones differ in about half of 255.

Pairs of the same lesion or breast reach 34 in ISIC 2017 and 28 in BUSI; unrelated ones start at 42 in
Kvasir-SEG, 36 in MSD Hippocampus, 96 in GlaS, and at 26 only under the black frame of CVC-ClinicDB.
"""
ROWS_AT_A_TIME = 256


@dataclass(frozen=True, slots=True)
class Trace:
    """What is kept of a case's image once it has been looked at."""

    id: str
    part: str | None
    digest: bytes
    look: NDArray[np.int8] | None
    """(255,) of -1 and 1; None where there is nothing to see."""
    axes: int
    """2 of a picture, 3 of a volume."""


def pixel_digest(values: NDArray[Any], before: bytes = b"") -> bytes:
    """Hash type, shape and values, not the file's format; `before` is the digest of the channels before."""
    digest = hashlib.blake2b(before, digest_size=16)
    digest.update(f"{values.dtype.str}{values.shape}".encode())
    for index in range(values.shape[-1]):  # slab by slab: whatever the order in memory, only a slab is copied
        digest.update(values[..., index].tobytes())
    return digest.digest()


def image_look(image: NDArray[Any]) -> NDArray[np.int8] | None:
    """Perceptual hash of a finite image (C, *spatial): (255,) of -1 and 1; None of a constant one."""
    if image.min() == image.max():
        return None
    cells = CELLS[image.ndim - 1]
    small = np.mean([shrink(channel, cells) for channel in image], axis=0)
    spectrum = dctn(small / max(float(np.abs(small).max()), 1e-30), norm="ortho")
    low = spectrum[tuple(slice(0, number) for number in FREQUENCIES[image.ndim - 1])].ravel()[1:]
    return np.where(low > np.median(low), 1, -1).astype(np.int8)


def shrink(values: NDArray[Any], size: Sequence[int]) -> NDArray[np.float64]:
    """Mean over blocks that cut every axis into so many; axes that are shorter are repeated."""
    for axis, cells in enumerate(size):
        starts = np.arange(cells) * values.shape[axis] // cells
        if values.shape[axis] < cells:
            values = values.take(starts, axis=axis)
            continue
        lengths = np.diff(starts, append=values.shape[axis])
        shape = [-1 if other == axis else 1 for other in range(values.ndim)]
        values = np.add.reduceat(values, starts, axis=axis, dtype=np.float64) / lengths.reshape(shape)
    return values.astype(np.float64, copy=False)


def equal_images(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Lists of two or more cases whose pixels are the same."""
    return [same for same in _gather(traces, [trace.digest for trace in traces]) if len(same) > 1]


def similar_images(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Chains of cases, each within `NEAR_BITS` of another's look; those that are all equal are left out."""
    chains: list[list[Trace]] = []
    for axes in CELLS:
        seen = [trace for trace in traces if trace.look is not None and trace.axes == axes]
        if len(seen) < 2:
            continue
        first, second = _near_pairs(np.stack([trace.look for trace in seen if trace.look is not None]))
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(seen), len(seen)))
        chains += _gather(seen, connected_components(graph, directed=False)[1].tolist())
    return [chain for chain in chains if len({trace.digest for trace in chain}) > 1]


def nearest_pair(chain: Sequence[Trace]) -> tuple[int, Trace, Trace]:
    """Smallest distance in bits within a chain, and its cases; of different parts where it has several."""
    signs = np.stack([trace.look for trace in chain if trace.look is not None]).astype(np.float32)
    bits = (LOOK_BITS - signs @ signs.T) / 2
    parts = np.array([str(trace.part) for trace in chain])
    same = parts[:, None] == parts if len(set(parts)) > 1 else np.eye(len(chain), dtype=bool)
    bits[same] = np.inf
    first, second = divmod(int(bits.argmin()), len(chain))
    return int(bits[first, second]), chain[first], chain[second]


def _near_pairs(looks: NDArray[np.int8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that look alike: the product of two rows of -1 and 1 is 255 - 2 x their distance."""
    signs = looks.astype(np.float32)
    first, second = [], []
    for start in range(0, len(signs), ROWS_AT_A_TIME):
        products = signs[start : start + ROWS_AT_A_TIME] @ signs[start:].T
        row, column = np.nonzero(products >= LOOK_BITS - 2 * NEAR_BITS)
        later = column > row
        first.append(row[later] + start)
        second.append(column[later] + start)
    return np.concatenate(first), np.concatenate(second)


def _gather(traces: Sequence[Trace], keys: Sequence[Hashable]) -> list[list[Trace]]:
    found: dict[Hashable, list[Trace]] = defaultdict(list)
    for trace, key in zip(traces, keys, strict=True):
        found[key].append(trace)
    return list(found.values())
