"""The files of an evaluation: every score and every mean, as CSV and JSON, with all their digits."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvseg.evaluation.further import further_metrics
from rwkvseg.evaluation.protocols import TOLERANCE, ClassScore
from rwkvseg.evaluation.summary import Summary, Unit, check_unit, classes_only, mean_of_scored, without_nan
from rwkvseg.output import write_json, write_text


def score_rows(
    scores: Sequence[ClassScore], unit: Unit, *, tolerance: float = TOLERANCE
) -> list[dict[str, Any]]:
    """One entry a case and class or region: its names, dsc, hd95_mm or hd95_px, outcome, `further_metrics`.

    Raises:
        UsageError: an unknown unit.
    """
    check_unit(unit)
    return [
        {
            "case": score.case,
            "label": score.written_label,
            "name": score.name,
            "dsc": score.dsc,
            f"hd95_{unit}": score.hd95,
            "outcome": score.outcome,
            **further_metrics(score, unit, tolerance),
        }
        for score in scores
    ]


def write_csv(path: Path, scores: Sequence[ClassScore], unit: Unit, *, tolerance: float = TOLERANCE) -> None:
    """Write the `score_rows`, one line each; NaN is empty, and NSD has its tolerance in its name: nsd_2mm.

    Numbers are written with all their digits, so that reading gives back the same values.

    Raises:
        UsageError: an unknown unit.
        OutputError: the file cannot be written.
    """
    _write_table(path, score_rows(scores, unit, tolerance=tolerance))


def write_summary_csv(path: Path, summary: Summary) -> None:
    """Write one line a class, one for the mean, and one a region: the numbers of `Summary.to_json`, flat.

    The interval of dsc is in dsc_low and dsc_high, the number of its cases in dsc_cases; so for the others.

    Raises:
        OutputError: the file cannot be written.
    """
    content = summary.to_json()
    rows = []
    for row in [*content["classes"], content["mean"], *content["regions"]]:
        flat = {"name": row["name"], "label": row["label"]}
        for metric, mean in row.items():
            if metric not in ("name", "label", "outcomes"):
                flat[metric] = mean["mean"]
                flat |= {f"{metric}_{key}": mean[key] for key in ("low", "high", "cases") if key in mean}
        rows.append(flat | row["outcomes"])
    _write_table(path, rows)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([rows[0].keys()] if rows else [])
    writer.writerows([_written(value) for value in row.values()] for row in rows)
    write_text(path, text.getvalue())


def _written(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return "" if value is None else value


def write_summary_json(
    path: Path,
    summary: Summary,
    scores: Sequence[ClassScore],
    *,
    prediction_files: Mapping[str, str] | None = None,
    truth_files: Mapping[str, str] | None = None,
    image_files: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    context: Mapping[str, Any] | None = None,
) -> None:
    """Write nnU-Net's `summary.json`, with our own numbers in the block "rwkvseg".

    The keys "foreground_mean", "mean" and "metric_per_case" follow nnU-Net's definitions, from the counts of
    pixels or voxels, whatever the protocol, and leave regions out; null stands for NaN. "rwkvseg" is
    `Summary.to_json` and, under "scores", the `score_rows`.

    Args:
        path: the file.
        summary: of `summarise`.
        scores: the scores that were summarised.
        prediction_files: case id to the name to print; the case id without it.
        truth_files: case id to the name to print; the case id without it.
        image_files: case id to the name of the image, added to nnU-Net's keys for the cases that have one.
        tolerance: with which the NSD was made.
        context: what stands behind the scores, kept under "context" in the block "rwkvseg".

    Raises:
        OutputError: the file cannot be written.
    """
    classes = classes_only(scores)
    metrics = [_counts_to_metrics(score) for score in classes]
    labels = sorted({score.label for score in classes})
    mean = {
        str(label): _mean_of_metrics([m for s, m in zip(classes, metrics, strict=True) if s.label == label])
        for label in labels
    }
    per_case = []
    for case in dict.fromkeys(score.case for score in classes):
        per_case.append(
            {
                "metrics": {str(s.label): m for s, m in zip(classes, metrics, strict=True) if s.case == case},
                "prediction_file": (prediction_files or {}).get(case, case),
                "reference_file": (truth_files or {}).get(case, case),
                **({"image_file": image_files[case]} if image_files and case in image_files else {}),
            }
        )
    content = {
        "foreground_mean": _mean_of_metrics(list(mean.values())),
        "mean": mean,
        "metric_per_case": per_case,
        "rwkvseg": {
            **summary.to_json(),
            "scores": score_rows(scores, summary.unit, tolerance=tolerance),
            **({} if context is None else {"context": context}),
        },
    }
    write_json(path, without_nan(content))


def _counts_to_metrics(score: ClassScore) -> dict[str, float]:
    either = score.tp + score.fp + score.fn
    return {
        "Dice": 2 * score.tp / (either + score.tp) if either else math.nan,
        "IoU": score.tp / either if either else math.nan,
        "TP": score.tp,
        "FP": score.fp,
        "FN": score.fn,
        "TN": score.tn,
        "n_pred": score.tp + score.fp,
        "n_ref": score.tp + score.fn,
    }


def _mean_of_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: mean_of_scored([entry[key] for entry in metrics]) for key in metrics[0]}
