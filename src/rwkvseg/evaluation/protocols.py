"""From two label maps of a case to its scores, under one of two conventions that are never mixed.

    |                                   | strict (default)                        | transunet             |
    | prediction empty, truth empty     | not scored (NaN), "absent"              | Dice 0, HD95 0        |
    | prediction non-empty, truth empty | Dice 0, HD95 NaN, "false_positive"      | Dice 1, HD95 0        |
    | prediction empty, truth non-empty | Dice 0, HD95 the diagonal, "missed"     | Dice 0, HD95 0        |
    | distances                         | mm by the spacing (pixels without it)   | voxels, no spacing    |
    | HD95                              | pooled, medpy's definition; the larger  | pooled, medpy's       |
    |                                   | directed one, MONAI's, has its own name | definition            |
    | mean                              | classes of a case, then cases           | cases, then classes   |
    | ASSD, NSD, IoU, ... of these rows | as `metrics.py` says, except: a missed  | as `metrics.py` says  |
    |                                   | structure has the diagonal as ASSD, and |                       |
    |                                   | what is absent has no volume difference |                       |

`transunet` is what the published 2D code computes, quirks included, to stand beside published figures.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from rwkvseg.errors import LabelError, ShapeError, UsageError
from rwkvseg.evaluation.masks import bounding_box, check_spacing
from rwkvseg.evaluation.metrics import check_tolerance
from rwkvseg.evaluation.surfaces import surface_distances

Protocol = Literal["strict", "transunet"]
Outcome = Literal["scored", "absent", "false_positive", "missed"]
LabelMap = NDArray[Any]
Box = tuple[slice, ...]

TOLERANCE = 2.0
"""Of NSD, in the unit of HD95, unless another is asked for."""

PROTOCOLS: tuple[str, ...] = get_args(Protocol)

_FEW_VALUES = 4  # whose boxes in a picture are found one by one, faster than all in one pass


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of one case."""

    case: str
    """Id of the case."""
    label: int
    """Value of the class in the label maps; of a region a number above all of them, for the order only."""
    name: str
    """Name of the class or region."""
    dsc: float
    """Dice similarity coefficient, 0 to 1; NaN where the protocol does not score."""
    hd95: float
    """HD95 in the unit of `distance_unit`; NaN where the protocol does not score."""
    outcome: Outcome
    """What was found, under either protocol; "scored" when prediction and truth both hold the class."""
    tp: int
    """Pixels or voxels of the class in both."""
    fp: int
    """Pixels or voxels of the class in the prediction only."""
    fn: int
    """Pixels or voxels of the class in the truth only."""
    tn: int
    """Pixels or voxels of the class in neither."""
    assd: float = math.nan
    """Average symmetric surface distance in the unit of HD95; NaN where not defined or not scored."""
    nsd: float = math.nan
    """Normalised surface Dice at the tolerance of the evaluation, 0 to 1; NaN likewise."""
    volume_difference: float = math.nan
    """Volume of the prediction minus that of the truth in ml; NaN without spacing in mm, and where absent."""
    hd95_larger: float = math.nan
    """MONAI's HD95, the larger of both directed percentiles; a missed structure as in `hd95` under strict."""
    region: tuple[int, ...] = ()
    """Values whose union was scored; empty for a class. Regions enter no mean over classes."""

    @property
    def written_label(self) -> int | str:
        """The label as files and people have it: 2, or "1+2+3" for a region."""
        return "+".join(map(str, self.region)) if self.region else self.label

    @property
    def iou(self) -> float:
        """Intersection over union, 0 to 1; NaN when both are empty."""
        return _share(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the prediction that is true, 0 to 1; NaN when nothing is predicted."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the truth that is predicted, 0 to 1; NaN when the truth is empty."""
        return _share(self.tp, self.tp + self.fn)


def check_protocol(protocol: str) -> None:
    """Raise UsageError unless `protocol` is one of `PROTOCOLS`."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r} is unknown. Choose one of {', '.join(PROTOCOLS)}.")


def distance_unit(protocol: str, spacing: Sequence[float] | None) -> Literal["mm", "px"]:
    """Unit of HD95: "mm" under `strict` when the spacing is known, else "px" (pixels or voxels).

    Example:
        >>> distance_unit("strict", (0.8, 0.8)), distance_unit("transunet", (0.8, 0.8))
        ('mm', 'px')
    """
    return "mm" if protocol == "strict" and spacing is not None else "px"


def score_case(
    case: str,
    prediction: LabelMap,
    truth: LabelMap,
    *,
    labels: Mapping[str, int],
    spacing: Sequence[float] | None = None,
    protocol: Protocol = "strict",
    tolerance: float = TOLERANCE,
    regions: Mapping[str, Collection[int]] | None = None,
) -> list[ClassScore]:
    """Score every class of a case, in the order of the label values, background (0) left out; then regions.

    Args:
        case: id, copied into every score.
        prediction: integer label map, 2 or 3 axes.
        truth: integer label map of the same shape.
        labels: name to value; a value in a map that is not listed is refused, since it would pass for
            background.
        spacing: mm per voxel along each axis, or None for distances in pixels.
        protocol: "strict" or "transunet", see the table at the top of this file.
        tolerance: of NSD, in mm where `distance_unit` says so, else in pixels.
        regions: name to the label values whose union is scored like one class, see `regions.resolve_regions`.

    Raises:
        ShapeError: the shapes differ or have neither 2 nor 3 axes.
        LabelError: a map is not of integers or holds a value that `labels` does not name.
        GeometryError: `spacing` does not fit.
        UsageError: an unknown protocol, or a tolerance that is no distance.

    Example:
        >>> truth = np.array([[0, 1, 1], [0, 0, 2]])
        >>> labels = {"liver": 1, "spleen": 2, "kidney": 3}
        >>> [score.dsc for score in score_case("a", truth, truth, labels=labels)]
        [1.0, 1.0, nan]
    """
    check_protocol(protocol)
    check_tolerance(tolerance)
    if prediction.shape != truth.shape or truth.ndim not in (2, 3):
        raise ShapeError(
            f"prediction {prediction.shape} and truth {truth.shape} of case {case!r} are not two maps "
            "of the same 2 or 3 axes. Bring the prediction back to the grid of the truth before scoring."
        )
    check_spacing(spacing, truth.ndim)
    names = {value: name for name, value in sorted(labels.items(), key=lambda item: item[1]) if value != 0}
    boxes = [
        _boxes(array, labels, f"the {what} of case {case!r}")
        for what, array in (("prediction", prediction), ("truth", truth))
    ]
    grid = spacing if protocol == "strict" else None
    return [
        _score_class(
            (case, label, name, region),
            (prediction, truth),
            [_union([found[value] for value in region or (label,) if value in found]) for found in boxes],
            grid,
            (protocol, tolerance),
        )
        for label, name, region in _wanted(names, regions or {})
    ]


def _wanted(
    names: Mapping[int, str], regions: Mapping[str, Collection[int]]
) -> list[tuple[int, str, tuple[int, ...]]]:
    """Label, name and joined values of every class and, with numbers above all labels, of every region."""
    joined = [(name, tuple(sorted(set(values)))) for name, values in regions.items()]
    first = max(names, default=0) + 1
    return [
        *((value, name, ()) for value, name in names.items()),
        *((number, name, values) for number, (name, values) in enumerate(joined, first)),
    ]


def _score_class(
    identity: tuple[str, int, str, tuple[int, ...]],
    maps: tuple[LabelMap, LabelMap],
    boxes: list[Box | None],
    spacing: Sequence[float] | None,
    rules: tuple[Protocol, float],
) -> ClassScore:
    protocol, tolerance = rules
    shape = maps[0].shape
    box = _union([box for box in boxes if box is not None]) or (slice(0, 0),) * len(shape)
    # beyond the joint box neither map holds the class, so counts and distances need nothing else
    case, label, name, region = identity
    prediction, truth = (
        np.isin(array[box], region) if region else np.asarray(array[box] == label) for array in maps
    )
    tp = int(np.count_nonzero(prediction & truth))
    fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp
    outcome = _outcome(predicted=boxes[0] is not None, present=boxes[1] is not None)
    distances = surface_distances(prediction, truth, spacing)
    if distances is not None:
        dsc, hd95 = 2 * tp / (2 * tp + fp + fn), distances.hausdorff_95()
        assd, nsd = distances.average(), distances.within(tolerance)
        larger = distances.hausdorff_95("larger")
    else:
        dsc, hd95 = _scores_of_empty(outcome, protocol, _diagonal(shape, spacing))
        assd = larger = hd95 if protocol == "strict" else math.nan
        nsd = math.nan if outcome == "absent" else 0.0
    volume = math.nan
    if len(shape) == 3 and spacing is not None and outcome != "absent":
        volume = (fp - fn) * math.prod(spacing) / 1000
    tn = math.prod(shape) - tp - fp - fn
    counts = (tp, fp, fn, tn)
    return ClassScore(case, label, name, dsc, hd95, outcome, *counts, assd, nsd, volume, larger, region)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _outcome(*, predicted: bool, present: bool) -> Outcome:
    if predicted and present:
        return "scored"
    if predicted:
        return "false_positive"
    return "missed" if present else "absent"


def _scores_of_empty(outcome: Outcome, protocol: Protocol, diagonal: float) -> tuple[float, float]:
    """Dice and HD95 where one mask or both are empty."""
    table: dict[tuple[str, str], tuple[float, float]] = {
        ("strict", "absent"): (math.nan, math.nan),
        ("strict", "false_positive"): (0.0, math.nan),
        ("strict", "missed"): (0.0, diagonal),
        ("transunet", "absent"): (0.0, 0.0),
        ("transunet", "false_positive"): (1.0, 0.0),
        ("transunet", "missed"): (0.0, 0.0),
    }
    return table[protocol, outcome]


def _diagonal(shape: tuple[int, ...], spacing: Sequence[float] | None) -> float:
    """Length of the image's diagonal, outer edge to outer edge: no distance within the image is larger."""
    return math.hypot(
        *(size * step for size, step in zip(shape, check_spacing(spacing, len(shape)), strict=True))
    )


def _boxes(array: LabelMap, labels: Mapping[str, int], what: str) -> dict[int, Box]:
    """Bounding box of every label value that occurs, found in one pass over the whole map."""
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise LabelError(f"{what} has values of type {array.dtype}. Give integer labels, after the arg-max.")
    known = {0, *labels.values()}
    if array.size and (array.min() < 0 or array.max() > max(known)):
        raise _unknown_labels(set(np.unique(array).tolist()) - known, labels, what)
    # narrow integers are all that labels need, and unsigned 64 bits are more than find_objects takes
    narrow = array if array.dtype.itemsize < 8 else array.astype(np.int64)
    found = {value: box for value, box in enumerate(_objects(narrow), start=1) if box is not None}
    if not found.keys() <= known:
        raise _unknown_labels(found.keys() - known, labels, what)
    return found


def _objects(array: LabelMap) -> list[Box | None]:
    """Box of every value from 1 on, as SciPy's `find_objects`, which is slow where there are few values."""
    highest = int(array.max(initial=0))
    if array.ndim == 2 and highest <= _FEW_VALUES:
        return [bounding_box(array == value) for value in range(1, highest + 1)]
    return [*find_objects(array)]


def _unknown_labels(values: set[int], labels: Mapping[str, int], what: str) -> LabelError:
    known = ", ".join(f"{value} ({name})" for name, value in labels.items())
    listed = ", ".join(str(value) for value in sorted(values)[:10])
    return LabelError(
        f"{what} holds the values {listed}, which no label names; known are {known}. "
        "Name them in the labels, or remap the label map."
    )


def _union(boxes: Sequence[Box]) -> Box | None:
    """Smallest box that holds all; None without any."""
    if not boxes:
        return None
    return tuple(
        slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True)
    )
