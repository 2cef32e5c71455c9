"""A data folder in, everything that is wrong with it out: `rwkvseg data verify`.

docs/how-to/verify-data.md lists what is looked for. One file is held in memory at a time; of a case 300 bytes
are kept.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvseg.data.case_checks import check_case
from rwkvseg.data.duplicates import LOOK_BITS, NEAR_BITS, Trace, equal_images, nearest_pair, similar_images
from rwkvseg.data.files import name_some
from rwkvseg.data.findings import SEVERITIES, Finding, sort_findings
from rwkvseg.data.listing import HELD_BACK, Listing, list_folder
from rwkvseg.data.splits import parse_split, with_slices
from rwkvseg.wording import counted


@dataclass(frozen=True, slots=True)
class Verification:
    """What a data folder holds and what is wrong with it, gravest first."""

    root: Path
    layout: str
    parts: dict[str | None, int]
    """Number of cases by part of the split or folder; None: without a part."""
    groups: int
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings by severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def has_errors(self) -> bool:
        """Whether anything must be mended."""
        return self.counts["error"] > 0


def verify_data(
    root: Path,
    split: Path | None = None,
    on_case: Callable[[int, int], object] | None = None,
    *,
    fold: int | None = None,
) -> Verification:
    """Look through a data folder and go on after each fault.

    Args:
        root: the data folder.
        split: a split file, against which leaks are looked for; without one, the folder's own parts count.
        on_case: called with the number of cases done and in all.
        fold: which of nnU-Net's folds, where `split` holds a list of them.

    Raises:
        DataError: no such folder, of no known layout, or a split file that cannot be read.
        UsageError: a fold that the split file does not have, or none of those that it has.
    """
    listing = list_folder(Path(root))
    findings = listing.findings
    parts = {case.id: case.part for case in listing.cases}
    if split is not None:
        parts, found = _parts_of_split(listing, split, fold)
        findings += found
    values: set[int] = set()
    traces: list[Trace] = []
    for done, case in enumerate(listing.cases, start=1):
        checked = check_case(case, listing.root, listing.labels, parts[case.id])
        findings += checked.findings
        values |= checked.values
        if checked.trace is not None and (split is None or checked.trace.part is not None):
            traces.append(checked.trace)
        if on_case is not None:
            on_case(done, len(listing.cases))
    if listing.labels is None and values:
        findings.append(_unnamed(values))
    findings += _gap(sorted(values if listing.labels is None else listing.labels.values()))
    findings += _group_leaks(listing, parts)
    findings += _duplicates(traces)
    return Verification(
        root=listing.root,
        layout=listing.layout,
        parts=dict(Counter(parts.values())),
        groups=len({case.group for case in listing.cases if case.group is not None}),
        findings=tuple(sort_findings(findings)),
    )


def _parts_of_split(
    listing: Listing, path: Path, fold: int | None
) -> tuple[dict[str, str | None], list[Finding]]:
    """Part of each case, and what does not fit; unlabelled parts of the folder stay parts of their own."""
    split = with_slices(parse_split(path, fold), [case.id for case in listing.cases])
    named: dict[str, list[str]] = defaultdict(list)
    for part, cases in split.parts.items():
        for case in cases:
            named[case].append(part)
    findings = []
    for case, parts in named.items():
        if len(parts) > 1:
            what = f"{path.name} names it {len(parts)} times: in {', '.join(parts)}"
            kind = "case_across" if len(set(parts)) > 1 else "split"
            findings.append(Finding(kind, what, "Keep it in one part", (case,)))
    known = dict.fromkeys(case.id for case in listing.cases)  # in order, as the parts are printed in theirs
    unknown = tuple(case for case in named if case not in known)
    if unknown:
        what = (
            f"{path.name} names {counted(len(unknown), 'case')} that the data does not have: "
            f"{name_some(unknown)}"
        )
        findings.append(
            Finding("split", what, "Use the split of this data set, or restore the cases", unknown)
        )
    left = tuple(case.id for case in listing.cases if case.labels and case.id not in named)
    if left:
        what = f"{path.name} leaves {counted(len(left), 'labelled case')} out: {name_some(left)}"
        findings.append(Finding("left_out", what, "Right where they are not to be used; else add them", left))
    held_back = {case.id: case.part for case in listing.cases if case.part in HELD_BACK and not case.labels}
    return {case: named[case][0] if case in named else held_back.get(case) for case in known}, findings


def _unnamed(values: Iterable[int]) -> Finding:
    listed = ", ".join(map(str, sorted(values)[:12]))
    return Finding(
        "unnamed_labels",
        f"nothing names the labels, so their values were not checked; the label maps hold {listed}",
        'Name them in labels.json, such as {"labels": {"background": 0, "polyp": 1}}, or in the recipe',
    )


def _gap(values: list[int]) -> list[Finding]:
    """What plan and train refuse: labels that do not count up from 0; 0 and 255 are taken as 0 and 1."""
    if values in ([0, 255], [255]) or values == list(range(len(values))) or values == [1]:
        return []
    listed = ", ".join(map(str, values[:12]))
    what = f"the labels are {listed}: not 0 (background), 1, 2, ... without gaps, as plan and train want them"
    return [Finding("label_gap", what, "Renumber them in the label maps and where they are named")]


def _group_leaks(listing: Listing, parts: dict[str, str | None]) -> list[Finding]:
    """One finding for each patient or video whose cases lie in more than one part."""
    members: dict[str, list[str]] = defaultdict(list)
    for case in listing.cases:
        if case.group is not None and parts[case.id] is not None:
            members[case.group].append(case.id)
    findings = []
    for group, cases in members.items():
        counts = Counter(parts[case] for case in cases)
        if len(counts) > 1:
            what = f"group {group} is in {_parts_told(counts)}"
            cure = "Split by group: split.rule: grouped, or move its cases into one part"
            findings.append(Finding("group_across", what, cure, tuple(cases)))
    return findings


def _duplicates(traces: Sequence[Trace]) -> list[Finding]:
    findings = [_copies(same) for same in equal_images(traces)]
    return findings + [_look_alikes(alike) for alike in similar_images(traces)]


def _copies(same: Sequence[Trace]) -> Finding:
    counts, ids = Counter(trace.part for trace in same), tuple(trace.id for trace in same)
    if len(counts) > 1:
        what = f"the same pixels {len(same)} times, in {_parts_told(counts)}: {name_some(ids)}"
        return Finding("duplicate_across", what, "Keep one of them, or all in one part", ids)
    what = f"the same pixels {len(same)} times: {name_some(ids)}"
    return Finding("duplicate_within", what, "Keep one, unless each is a case of its own", ids)


def _look_alikes(alike: Sequence[Trace]) -> Finding:
    counts, ids = Counter(trace.part for trace in alike), tuple(trace.id for trace in alike)
    kind = "near_duplicate_across" if len(counts) > 1 else "near_duplicate_within"
    where = f", in {_parts_told(counts)}" if len(counts) > 1 else ""
    bits, first, second = nearest_pair(alike)
    near = f"nearest are {first.id} and {second.id}, {bits} of {LOOK_BITS} bits apart (limit {NEAR_BITS})"
    what = f"{len(alike)} images look alike{where}: {name_some(ids)}; {near}"
    return Finding(kind, what, "Look at them; keep what belongs together in one part (groups.csv)", ids)


def _parts_told(counts: Counter[str | None]) -> str:
    """Such as: train (20 cases) and test (1 case)."""
    told = [f"{part} ({number} case{'s' if number > 1 else ''})" for part, number in counts.most_common()]
    return f"{', '.join(told[:-1])} and {told[-1]}"
