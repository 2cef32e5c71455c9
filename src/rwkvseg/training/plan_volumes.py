"""Rules of a plan for volumes: grid, patch, strides, batch; their sources: docs/explanation/plan.md.

Axes are those of the network's grid: the file's, or after `orientation: RAS` right, front, head.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rwkvseg.data.case_facts import CaseFacts
from rwkvseg.data.volume_resampling import network_shape, through_plane_axis, wanted_spacing
from rwkvseg.models.urwkv3d_strides import Triple, strides_from_spacing
from rwkvseg.training.plan_choices import Task
from rwkvseg.training.plan_memory import Candidate, Fitted, estimate_memory, fit_batch, refuse
from rwkvseg.training.plan_pictures import capped

HELD_WHOLE = 2**18
"""Voxels up to which a patch holds the largest volume; of larger volumes it begins with the median."""
MOST = 2**21
"""Voxels of a patch, 128 x 128 x 128: more takes long to train."""
SHORT = 2**17
"""Voxels of a patch below which memory is short, and maps are computed twice."""
BATCHES = (8, 4, 2)
VARYING = 3.0
"""Distances of slices that vary by more than this are made alike."""
ALIKE = 1.01
BORDER = 0.75
"""Share within a border of zeros below which the border is cut away."""
SIDES = ("LR", "PA", "IS")


@dataclass(frozen=True, slots=True)
class Grid:
    """The network's grid, and the training volumes on it."""

    orientation: str
    crop: str
    spacing: tuple[float | None, float | None, float | None] | None
    """As in the recipe."""
    middle: tuple[float, ...]
    """Median spacing of the training volumes on the network's grid, mm."""
    sizes: tuple[tuple[int, ...], ...]
    """Of the training volumes on it."""
    file_spacing: tuple[float, ...]
    """Median, before resampling."""
    known: bool
    """Whether the files state a spacing."""

    @property
    def through_plane(self) -> int | None:
        """Axis between thick slices, if there is one."""
        return through_plane_axis(self.file_spacing, self.spacing)


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch, the strides that go with it, and whether it holds every training volume."""

    sides: Triple
    strides: tuple[Triple, ...]

    @property
    def voxels(self) -> int:
        """Their number."""
        return math.prod(self.sides)

    @property
    def multiple(self) -> tuple[int, ...]:
        """What every side is a multiple of: the product of the strides."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


def find_grid(task: Task) -> Grid:
    """Orientation, crop and spacing of the network's grid."""
    cases = task.training
    codes = task.found.counted("orientation")
    orientation = "RAS" if len(codes) > 1 and None not in codes else "file"
    cut = median(case.inner_share for case in cases) < BORDER
    crop = "nonzero" if cut and not any(case.labelled_outside for case in task.found.cases) else "none"
    turned = [_turned(case, orientation, crop) for case in cases]
    spacings = [spacing for _, spacing in turned]
    known = all(case.spacing is not None for case in task.found.cases)
    middle = tuple(float(f"{median(column):.3g}") for column in zip(*spacings, strict=True))
    wanted = _spacing(spacings, middle) if known else None
    sizes = tuple(tuple(network_shape(size, spacing, wanted)) for size, spacing in turned)
    after = tuple(wanted_spacing(middle, wanted))
    return Grid(orientation, crop, wanted, after, sizes, middle, known)


def make_patch(sides: Sequence[float], spacing: Sequence[float]) -> Patch:
    """Round a patch up to what its strides need.

    >>> make_patch((43, 59, 47), (1, 1, 1)).sides, make_patch((150, 150, 9), (1.5, 1.5, 10)).sides
    ((48, 64, 48), (160, 160, 10))
    """
    now = tuple(max(1, math.ceil(side)) for side in sides)
    while True:
        patch = Patch((now[0], now[1], now[2]), strides_from_spacing(spacing, now))
        rounded = tuple(-(-n // m) * m for n, m in zip(now, patch.multiple, strict=True))
        if rounded == now:
            return patch
        now = rounded


def smaller_patches(patch: Patch, spacing: Sequence[float]) -> Iterator[Patch]:
    """Ever smaller patches, the longest side in mm shortened by its multiple each time.

    No side becomes shorter than two of the first patch's multiples.
    """
    floor = [2 * m for m in patch.multiple]
    while True:
        free = [axis for axis in range(3) if patch.sides[axis] > floor[axis]]
        if not free:
            return
        axis = max(free, key=lambda one: patch.sides[one] * spacing[one])
        sides = list(patch.sides)
        sides[axis] -= patch.multiple[axis]
        patch = make_patch(sides, spacing)
        yield patch


def first_patch(grid: Grid) -> Patch:
    """The largest volume if that is small, else the median volume, at most so many voxels."""
    columns = list(zip(*grid.sizes, strict=True))
    whole = make_patch([max(column) for column in columns], grid.middle)
    if whole.voxels <= HELD_WHOLE:
        return whole
    patch = make_patch([median(column) for column in columns], grid.middle)
    if patch.voxels <= MOST:
        return patch
    return next(smaller for smaller in smaller_patches(patch, grid.middle) if smaller.voxels <= MOST)


def fit_patch(task: Task, grid: Grid) -> Fitted:
    """The largest patch of which two fit into the memory, then the largest batch of it.

    Raises:
        UsageError: not even the smallest fits.
    """
    first = first_patch(grid)
    cap = max(2, len(task.training) // 2)
    best = None
    for twice in (False, True):
        found = _largest(task, first, grid, twice)
        if found is not None and (best is None or math.prod(found.sides) > 2 * math.prod(best.sides)):
            best = found
        if best is not None and math.prod(best.sides) >= min(SHORT, first.voxels):
            break
    if best is None:
        least = [first, *smaller_patches(first, grid.middle)][-1]
        raise refuse(_candidate(task, least, True), 2, task.options.memory)
    fitted = fit_batch(best, capped(BATCHES, cap), task.options.memory)
    assert fitted is not None
    return fitted


def _largest(task: Task, first: Patch, grid: Grid, twice: bool) -> Candidate | None:
    allowed = math.inf
    patches = [first, *smaller_patches(first, grid.middle)]
    for patch in patches:
        if patch.voxels > allowed and patch is not patches[-1]:
            continue
        candidate = _candidate(task, patch, twice)
        memory = estimate_memory(candidate, 2)
        if memory.total <= task.options.memory:
            return candidate
        # memory goes with the voxels, nearly: what is far too large is not measured
        room = max(0, task.options.memory - memory.context - memory.weights)
        allowed = 1.2 * patch.voxels * room / memory.step
    return None


def _candidate(task: Task, patch: Patch, twice: bool) -> Candidate:
    overrides: dict[str, Any] = {"strides": patch.strides}
    if twice:
        overrides["gradient_checkpointing"] = True
    name = f"urwkv3d_{task.options.variant or 'tiny'}"
    return Candidate(name, task.channels, len(task.labels), patch.sides, tuple(overrides.items()))


def _turned(case: CaseFacts, orientation: str, crop: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Size and spacing along the axes of the network's grid, before resampling."""
    sides = case.inner if crop == "nonzero" else case.shape
    spacing = case.spacing or (1.0, 1.0, 1.0)
    if orientation == "file" or case.orientation is None:
        return sides, spacing
    axes = [next(i for i, code in enumerate(case.orientation) if code in pair) for pair in SIDES]
    return tuple(sides[axis] for axis in axes), tuple(spacing[axis] for axis in axes)


def _spacing(
    spacings: Sequence[Sequence[float]], middle: Sequence[float]
) -> tuple[float | None, float | None, float | None] | None:
    """The median; the file's where all are alike, and along thick slices that do not vary much."""
    ranges = [max(column) / min(column) for column in zip(*spacings, strict=True)]
    if max(ranges) <= ALIKE:
        return None
    thick = through_plane_axis(middle, None)
    first, second, third = (
        None if axis == thick and ranges[axis] <= VARYING else mm for axis, mm in enumerate(middle)
    )
    return first, second, third
