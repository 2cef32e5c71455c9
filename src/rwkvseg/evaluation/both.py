"""Both protocols over the same cases: each with its own figures, and where and why they part.

Nothing here averages over protocols or puts values of both into one column.
"""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rwkvseg.errors import DataError
from rwkvseg.evaluation.protocols import ClassScore
from rwkvseg.evaluation.summary import Summary, without_nan
from rwkvseg.output import write_json, write_text
from rwkvseg.wording import counted

Reason = Literal["absent", "false_positive", "missed", "spacing", "resize"]

REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Structure:
    """One class or region of one case under both protocols; without a reason they say the same."""

    strict: ClassScore
    transunet: ClassScore
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Both:
    """Two summaries of the same cases, never mixed, and every structure under both."""

    strict: Summary
    transunet: Summary
    structures: tuple[Structure, ...]
    notes: tuple[str, ...] = ()
    """What the figures of either protocol lack."""

    @property
    def parted(self) -> tuple[Structure, ...]:
        """Structures of which the protocols say different things."""
        return tuple(structure for structure in self.structures if structure.reasons)

    def cases(self, reason: Reason) -> list[str]:
        """Ids of the cases that part for this reason."""
        found = (structure.strict.case for structure in self.structures if reason in structure.reasons)
        return list(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """The same numbers as plain dictionaries and lists, each protocol's under its own name."""
        content = {
            "protocols": {"strict": self.strict.to_json(), "transunet": self.transunet.to_json()},
            "notes": list(self.notes),
            "parted": {reason: self.cases(reason) for reason in REASONS},
            "structures": [
                {
                    "case": structure.strict.case,
                    "label": structure.strict.written_label,
                    "name": structure.strict.name,
                    "reasons": list(structure.reasons),
                    "strict": _figures(structure.strict, self.strict.unit),
                    "transunet": _figures(structure.transunet, self.transunet.unit),
                }
                for structure in self.structures
            ],
        }
        cleaned: dict[str, Any] = without_nan(content)
        return cleaned


def compare_protocols(
    strict: tuple[Summary, Sequence[ClassScore]],
    transunet: tuple[Summary, Sequence[ClassScore]],
    spacings: Mapping[str, Sequence[float] | None],
    *,
    notes: Collection[str] = (),
) -> Both:
    """Set the scores of the same structures under both protocols beside each other.

    Args:
        strict: summary and scores under "strict".
        transunet: the same under "transunet"; its label maps may be others, resized by its own rule.
        spacings: case id to mm per voxel, or None.
        notes: what the figures lack.

    Raises:
        DataError: the two hold different structures.
    """
    theirs = {(score.case, score.written_label): score for score in transunet[1]}
    ours = [(score.case, score.written_label) for score in strict[1]]
    alone = sorted(set(ours) ^ theirs.keys(), key=str)
    if alone:
        raise DataError(
            f"{counted(len(alone), 'structure is', 'structures are')} scored under one protocol only, the "
            f"first is label {alone[0][1]} of case {alone[0][0]!r}. Score the same cases under both."
        )
    structures = [
        Structure(score, other, _reasons(score, other, spacings[score.case]))
        for score in strict[1]
        for other in [theirs[score.case, score.written_label]]
    ]
    return Both(strict[0], transunet[0], tuple(structures), tuple(notes))


def write_both(json_path: Path, csv_path: Path, both: Both) -> None:
    """Write every number as JSON, and one line a structure as CSV whose columns name their protocol.

    Raises:
        OutputError: a file cannot be written.
    """
    write_json(json_path, both.to_json())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    units = {"strict": both.strict.unit, "transunet": both.transunet.unit}
    columns = [f"{name}_{what}" for name in units for what in ("outcome", "dsc", f"hd95_{units[name]}")]
    writer.writerow(["case", "label", "name", "reasons", *columns])
    for structure in both.structures:
        score = structure.strict
        cells = [
            cell
            for one in (structure.strict, structure.transunet)
            for cell in (one.outcome, *("" if math.isnan(x) else repr(x) for x in (one.dsc, one.hd95)))
        ]
        writer.writerow([score.case, score.written_label, score.name, " ".join(structure.reasons), *cells])
    write_text(csv_path, text.getvalue())


def _reasons(
    strict: ClassScore, transunet: ClassScore, spacing: Sequence[float] | None
) -> tuple[Reason, ...]:
    """Why the two say different things; nothing where DSC and HD95 agree as numbers."""
    if all(
        math.isclose(a, b, rel_tol=1e-9) or (math.isnan(a) and math.isnan(b))
        for a, b in ((strict.dsc, transunet.dsc), (strict.hd95, transunet.hd95))
    ):
        return ()
    reasons: list[Reason] = [
        outcome
        for outcome in dict.fromkeys((strict.outcome, transunet.outcome))
        if outcome != "scored"  # both masks hold something: no rule of empty masks is at work
    ]
    scored = "scored" in (strict.outcome, transunet.outcome)
    if scored and spacing is not None and any(step != 1 for step in spacing):
        reasons.append("spacing")
    if (strict.tp, strict.fp, strict.fn) != (transunet.tp, transunet.fp, transunet.fn):
        reasons.append("resize")
    return tuple(reasons)


def _figures(score: ClassScore, unit: str) -> dict[str, Any]:
    return {"outcome": score.outcome, "dsc": score.dsc, f"hd95_{unit}": score.hd95}
