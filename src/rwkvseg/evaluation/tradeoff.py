"""Accuracy against size, from the run folders that `rwkvseg train` wrote."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rwkvseg.errors import DataError, UsageError, one_line


def read_points(texts: Iterable[str], *, part: str = "test") -> list[dict[str, Any]]:
    """One point a label: parameters, mean DSC of its runs, and the standard deviation over them.

    Args:
        texts: each "[LABEL=]RUN", a run folder; runs of one label, by default the model's name, are pooled.
        part: which part's DSC.

    Raises:
        DataError: a folder that holds no finished run, or no DSC of that part.
        UsageError: runs of one label that differ in their number of parameters, or no run.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        label, equals, folder = text.partition("=")
        run = _read_run(Path(folder if equals else text), part)
        groups.setdefault(label if equals else run["model"], []).append(run)
    if not groups:
        raise UsageError("there is no run to draw. Give at least one run folder.")
    return [_point(label, runs) for label, runs in groups.items()]


def pareto_front(points: Sequence[dict[str, Any]]) -> list[str]:
    """Labels of the points that no other beats in both size and accuracy, smallest first."""
    front = [
        point
        for point in points
        if not any(
            other["parameters"] <= point["parameters"]
            and other["dsc"] >= point["dsc"]
            and (other["parameters"], other["dsc"]) != (point["parameters"], point["dsc"])
            for other in points
        )
    ]
    return [point["label"] for point in sorted(front, key=lambda point: int(point["parameters"]))]


def _read_run(folder: Path, part: str) -> dict[str, Any]:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        return {
            "run": folder.name,
            "recipe": summary["recipe"],
            "model": summary["model"],
            "parameters": int(summary["parameters"]),
            "dsc": float(summary["results"][part]["mean"]["dsc"]["mean"]),
            "cases": int(summary["results"][part]["cases"]),
            "device": environment["device"],
            "commit": environment["commit"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} holds no finished run with a DSC of part {part!r}: {one_line(error)}. "
            "Finish it with --resume, or leave it out."
        ) from error


def _point(label: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    sizes = sorted({run["parameters"] for run in runs})
    if len(sizes) > 1:
        raise UsageError(f"runs of {label!r} have {sizes} parameters. Give them labels: LABEL=RUN.")
    scores = [run["dsc"] for run in runs]
    return {
        "label": label,
        "parameters": sizes[0],
        "dsc": statistics.fmean(scores),
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "runs": runs,
    }
