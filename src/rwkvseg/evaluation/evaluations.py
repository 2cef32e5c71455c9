"""Read back what an evaluation wrote, and refuse to set evaluations side by side that cannot be compared."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.protocols import check_protocol
from rwkvseg.evaluation.statistics import Interval
from rwkvseg.evaluation.summary import check_unit
from rwkvseg.wording import counted

SUMMARY = "summary.json"
FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_SHOWN = 3  # ids that a message names


@dataclass(frozen=True, slots=True)
class Row:
    """A class of one evaluation, or its mean over classes, as its own report prints it."""

    name: str
    label: int | str | None
    """Value of the class; "1+2+3" for the region of these values, None for the mean."""
    dsc: Interval
    hd95: Interval
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case of one evaluation; NaN where it is not scored."""

    dsc: float
    hd95: float
    group: str | None
    truth_size: Mapping[str, int]
    """Pixels or voxels of the truth, by label value."""
    prediction: Path
    truth: Path
    image: Path | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the `summary.json` of an evaluation says."""

    label: str
    folder: Path
    protocol: str
    unit: str
    grouped: bool
    rows: tuple[Row, ...]
    """Classes in the order of their values, the mean last."""
    cases: Mapping[str, CaseResult]
    regions: tuple[Row, ...] = ()
    """Unions of classes, which the mean does not count."""


def read_evaluations(texts: Sequence[str], *, part: str = "test") -> list[Evaluated]:
    """Read evaluations that can be compared: the same cases, truths, classes, protocol and unit.

    Args:
        texts: each "[LABEL=]FOLDER": a run folder, of which `part` is taken, or a folder that `evaluate`
            wrote.
        part: of run folders, "val" or "test".

    Raises:
        UsageError: fewer than two, or two of one label.
        DataError: a folder without an evaluation, or evaluations that differ; what differs is named.
    """
    if len(texts) < 2:
        raise UsageError(
            f"{len(texts)} run is nothing to compare. Give two or more run or evaluation folders."
        )
    read = [_read(label, folder, part) for label, folder in _labelled(texts)]
    for other in read[1:]:
        _require_comparable(read[0], other)
    return read


def find_part(texts: Sequence[str]) -> tuple[str, str]:
    """Part of the split to compare run folders on, and a sentence where it is not the test part.

    The test part, or val where no run has an evaluation of a test part and one has that of val: some data
    sets hold no labels to test on.

    Args:
        texts: as for `read_evaluations`.
    """
    folders = [folder / "evaluation" for _, folder in _labelled(texts)]
    held = {part: [(folder / part / SUMMARY).is_file() for folder in folders] for part in ("test", "val")}
    if any(held["test"]) or not any(held["val"]):
        return "test", ""
    return "val", (
        "Compared on the val part, since no run has a test part. The choices of a training may have been "
        "made on it, so its figures can be too good."
    )


def _labelled(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Label and folder of each; without a label the folder's name, or its whole path where names clash."""
    split = [text.partition("=") for text in texts]
    names = [label if equals else Path(label).name for label, equals, _ in split]
    labelled = [
        (name if equals or names.count(name) == 1 else str(Path(label)), Path(folder if equals else label))
        for (label, equals, folder), name in zip(split, names, strict=True)
    ]
    labels = [label for label, _ in labelled]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UsageError(f"two runs are called {twice!r}. Give one another label: LABEL=FOLDER.")
    return labelled


def _read(label: str, folder: Path, part: str) -> Evaluated:
    path = folder / SUMMARY
    if not folder.exists():
        raise DataError(f"{folder} does not exist. Check the path.")
    if not path.exists() and (folder / "both.json").exists():
        raise DataError(
            f"{folder} holds an evaluation under each protocol. Give {folder / 'strict'} or "
            f"{folder / 'transunet'}."
        )
    if (folder / "evaluation").is_dir():
        path = folder / "evaluation" / part / SUMMARY
        others = [place.name for place in sorted((folder / "evaluation").iterdir()) if place.name != part]
        if others and not path.parent.exists():
            raise DataError(
                f"{folder} has no evaluation of the part '{part}', but of {', '.join(others)}. "
                "Give --part, or a run whose split has that part."
            )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _parse(label, path.parent, content)
    except (*FAULTS, UsageError) as error:
        told = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is no summary of an evaluation ({' '.join(str(told).split())}). "
            "Finish the run with --resume, or score its predictions with `rwkvseg evaluate`."
        ) from error


def _parse(label: str, folder: Path, content: Mapping[str, Any]) -> Evaluated:
    ours = content["rwkvseg"]
    check_protocol(ours["protocol"])
    check_unit(ours["unit"])
    hd95 = f"hd95_{ours['unit']}"
    rows, regions = (
        tuple(
            Row(row["name"], row["label"], _interval(row["dsc"]), _interval(row[hd95]), row["outcomes"])
            for row in found
        )
        for found in ((*ours["classes"], ours["mean"]), ours.get("regions", ()))
    )
    cases = {}
    for means, files in zip(ours["cases"], content["metric_per_case"], strict=True):
        cases[means["case"]] = CaseResult(
            _number(means["dsc"]),
            _number(means[hd95]),
            means.get("group"),
            {value: int(metrics["n_ref"]) for value, metrics in files["metrics"].items()},
            Path(files["prediction_file"]),
            Path(files["reference_file"]),
            Path(files["image_file"]) if "image_file" in files else None,
        )
    grouped = bool(ours["grouped"])
    return Evaluated(label, folder, ours["protocol"], ours["unit"], grouped, rows, cases, regions)


def _interval(content: Mapping[str, Any]) -> Interval:
    mean, low, high = (_number(content[key]) for key in ("mean", "low", "high"))
    return Interval(mean, low, high, content["cases"], content["excluded"], content["confidence"])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _require_comparable(first: Evaluated, other: Evaluated) -> None:
    pair = f"{first.label!r} and {other.label!r}"
    if first.protocol != other.protocol:
        raise DataError(
            f"{pair} are scored under {first.protocol!r} and {other.protocol!r}. "
            "Score both under one: `rwkvseg evaluate --protocol`."
        )
    if first.unit != other.unit:
        raise DataError(
            f"distances of {pair} are in {first.unit} and {other.unit}. "
            "Score both against truths that carry the same spacing."
        )
    classes = [[row.name for row in evaluation.rows[:-1]] for evaluation in (first, other)]
    if classes[0] != classes[1]:
        raise DataError(
            f"{pair} score different classes: {', '.join(classes[0])} and {', '.join(classes[1])}. "
            "Score both for the same: `rwkvseg evaluate --scored`."
        )
    _require_same_cases(first, other, pair)


def _require_same_cases(first: Evaluated, other: Evaluated, pair: str) -> None:
    lacking = [_only_in(first, other), _only_in(other, first)]
    if any(lacking):
        raise DataError(
            f"{pair} are scored on {len(first.cases)} and {len(other.cases)} cases, not the same: "
            f"{'; '.join(told for told in lacking if told)}. "
            "Predict and evaluate the same cases of one split with each."
        )
    moved = [name for name, case in first.cases.items() if case.truth_size != other.cases[name].truth_size]
    if moved:
        sizes = [dict(evaluation.cases[moved[0]].truth_size) for evaluation in (first, other)]
        raise DataError(
            f"the truths of {pair} differ in {len(moved)} of {counted(len(first.cases), 'case')}: "
            f"{moved[0]!r} holds "
            f"{sizes[0]} and {sizes[1]} pixels by label. Score both against the same truths."
        )


def _only_in(one: Evaluated, other: Evaluated) -> str:
    alone = [case for case in one.cases if case not in other.cases]
    if not alone:
        return ""
    more = ", ..." if len(alone) > _SHOWN else ""
    return f"{len(alone)} only in {one.label!r} ({', '.join(alone[:_SHOWN])}{more})"
