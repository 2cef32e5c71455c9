"""What can be wrong with a data folder: kinds, how grave each is, and one finding of one kind."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rwkvseg.errors import DataError

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""error: the readers refuse it, or scores cannot be believed; warning: mostly a mistake; note: to know."""

KINDS: dict[str, str] = {
    "layout": ERROR,
    "missing_image": ERROR,
    "missing_label": ERROR,
    "missing_channel": ERROR,
    "unreadable": ERROR,
    "truncated": ERROR,
    "size": ERROR,
    "spacing": ERROR,
    "affine": ERROR,
    "nan": ERROR,
    "inf": ERROR,
    "label_values": ERROR,
    "label_gap": WARNING,
    "orientation": WARNING,
    "unknown_label": ERROR,
    "split": ERROR,
    "case_across": ERROR,
    "group_across": ERROR,
    "duplicate_across": ERROR,
    "near_duplicate_across": WARNING,
    "constant_image": WARNING,
    "empty_mask": WARNING,
    "duplicate_within": NOTE,
    "near_duplicate_within": NOTE,
    "unlabelled_part": NOTE,
    "left_out": NOTE,
    "unnamed_labels": NOTE,
}
"""Kind -> severity, in the order of reports."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a data folder: what it is, with the numbers, and how to mend it."""

    kind: str
    """A key of `KINDS`."""
    what: str
    cure: str
    cases: tuple[str, ...] = ()
    """Ids of the cases concerned."""
    file: str | None = None
    """Path within the data folder."""

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return KINDS[self.kind]

    def as_object(self) -> dict[str, object]:
        """Fields for JSON."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "cases": list(self.cases),
            "file": self.file,
            "what": self.what,
            "cure": self.cure,
        }


def from_error(kind: str, error: DataError, root: Path) -> Finding:
    """Finding that says what an error says: all but its last sentence, and the cure, which is the last."""
    text = str(error).replace(f"{root}/", "")
    what, _, cure = text.rpartition(". ")
    return Finding(kind, what, cure.rstrip("."))


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by kind in the order of `KINDS`, then as they were found."""
    order = {
        kind: (SEVERITIES.index(severity), place) for place, (kind, severity) in enumerate(KINDS.items())
    }
    return sorted(findings, key=lambda finding: order[finding.kind])
