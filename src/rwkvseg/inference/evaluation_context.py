"""What stands behind the scores of an evaluation: which rules, which files, which software.

`Context` holds it for programs, `Context.lines` for people; the report and summary.json say the same.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rwkvseg import __version__
from rwkvseg.data.files import name_some
from rwkvseg.environment import describe_software
from rwkvseg.errors import DataError, one_line
from rwkvseg.evaluation.protocols import Protocol
from rwkvseg.wording import counted

Spacing = tuple[float, ...] | None

RECORD = "prediction.json"
"""What `predict` writes beside its label maps."""


class Resize(BaseModel):
    """How `predict` brought results to the grid of the cases, and which cases needed it."""

    rule: str = ""
    cases: list[str] = []


class Record(BaseModel):
    """What evaluation uses of the record that `predict` wrote."""

    protocol: Protocol | None = None
    labels: dict[str, int] | None = None
    images: str = ""
    model: dict[str, Any] = {}
    resize: Resize = Resize()
    precision: str = ""
    keep_largest: list[str] = []
    dicom_series: dict[str, str] = {}
    cases: dict[str, str] = {}
    trained_on: list[str] = []


@dataclass(frozen=True)
class Grid:
    """Shape and spacing (mm) of one case."""

    shape: tuple[int, ...]
    spacing: Spacing


@dataclass(frozen=True)
class Context:
    """Everything but the scores."""

    predictions: Path
    truth: Path
    record: Record
    protocol: Protocol
    grids: Mapping[str, Grid]
    digests: Mapping[str, str]
    """SHA-256 over the files of "truth" and of "predictions"."""
    not_predicted: Sequence[str] = ()
    left_out: Sequence[str] = ()
    """Structures that were not to be scored."""
    software: Mapping[str, Any] = field(default_factory=describe_software)

    @property
    def warnings(self) -> list[str]:
        """Why the figures are not what they seem."""
        found, told = self.record.protocol, []
        if found not in (None, self.protocol):
            told.append(
                f"predicted under '{found}', scored under '{self.protocol}': the label maps were resized by "
                f"the other rule. Predict with --protocol {self.protocol} for figures of one protocol "
                "throughout."
            )
        unknown = [case for case in self.grids if case not in self.record.cases] if self.record.model else []
        if unknown:
            told.append(
                f"{counted(len(unknown), 'label map')} ({name_some(unknown)}) of {len(self.grids)} not in "
                f"{RECORD}: they may be of another model. Predict all of them into an empty folder."
            )
        seen = [case for case in self.grids if case in self.record.trained_on]
        if seen:
            told.append(
                f"{counted(len(seen), 'case')} ({name_some(seen)}) of {len(self.grids)} named like those the "
                "model was trained on: figures of them flatter. `predict --part test` leaves them out."
            )
        return told

    def to_json(self) -> dict[str, Any]:
        """For programs: plain dictionaries and lists."""
        return {
            "rwkvseg_version": __version__,
            "predictions": str(self.predictions),
            "truth": str(self.truth),
            "predicted_under": self.record.protocol,
            "resize": self.record.resize.model_dump() if self.record.resize.rule else None,
            "model": self.record.model,
            "precision": self.record.precision or None,
            "keep_largest": self.record.keep_largest,
            "not_predicted": list(self.not_predicted),
            "structures_left_out": list(self.left_out),
            "warnings": self.warnings,
            "data": self.fingerprint(),
            "environment": dict(self.software),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Extent of the cases and checksums of their files, by which the same data is known again."""
        spacings = [grid.spacing for grid in self.grids.values() if grid.spacing is not None]
        return {
            "cases": len(self.grids),
            "size": _extent([grid.shape for grid in self.grids.values()]),
            "spacing_mm": _extent(spacings),
            **{f"{what}_sha256": digest for what, digest in self.digests.items()},
        }

    def lines(self) -> dict[str, str]:
        """For people: name to value."""
        model, data = self.record.model, self.fingerprint()
        lines = {"predictions": str(self.predictions), "truth": str(self.truth)}
        if model:
            lines["model"] = f"{model.get('name')}, weights {str(model.get('weights_sha256'))[:12]}"
        if self.record.precision:
            lines["computed in"] = self.record.precision
        if self.record.keep_largest:
            lines["largest part only"] = ", ".join(self.record.keep_largest)
        if self.record.protocol is not None:
            lines["predicted under protocol"] = self.record.protocol
        if self.record.resize.rule:
            number = len(self.record.resize.cases)
            lines["resized"] = f"{number} of {counted(len(self.grids), 'case')}: {self.record.resize.rule}"
        if self.warnings:
            lines["warning"] = " ".join(self.warnings)
        spacing = f", spacing {_ranged(data['spacing_mm'])} mm" if data["spacing_mm"] else ""
        lines["data"] = f"{counted(data['cases'], 'case')}, size {_ranged(data['size'])}{spacing}"
        lines["checksums"] = ", ".join(f"{what} {digest[:12]}" for what, digest in self.digests.items())
        lines["environment"] = _environment(self.software)
        return lines

    def exclusions(self) -> list[str]:
        """What no figure counts, and why."""
        sentences = []
        if self.not_predicted:
            told, some = counted(len(self.not_predicted), "truth"), name_some(self.not_predicted, 10)
            sentences.append(f"Not scored: {told} without a prediction ({some}).")
        if self.left_out:
            sentences.append(f"Structures left out by choice: {', '.join(self.left_out)}.")
        return sentences


def read_record(predictions: Path) -> Record:
    """Read what `predict` wrote beside the label maps; an absent record says nothing.

    Raises:
        DataError: it cannot be read.
    """
    path = predictions / RECORD
    if not path.is_file():
        return Record()
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}. Remove it or predict again.") from error


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' own, in the order given: names and places do not matter."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _extent(rows: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Least and most along every axis."""
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    columns = list(zip(*rows, strict=True))
    return {"least": [min(column) for column in columns], "most": [max(column) for column in columns]}


def _ranged(extent: Mapping[str, Sequence[float]] | None) -> str:
    if extent is None:
        return "of several dimensions"
    least, most = (" x ".join(f"{side:.4g}" for side in extent[end]) for end in ("least", "most"))
    return least if least == most else f"{least} to {most}"


def _environment(software: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in software["packages"].items())
    commit = f", commit {software['commit']}" if software["commit"] else ""
    return f"Python {software['python']} on {software['platform']}; {packages}{commit}"
