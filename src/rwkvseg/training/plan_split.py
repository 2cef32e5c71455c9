"""The split of a plan: the folder's own parts, a given file, the paper's rule, or cross-validation.

A patient or video never lies in two parts, where ids or files name patients.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rwkvseg.data.files import CaseFiles, name_some
from rwkvseg.data.layouts import DataFolder
from rwkvseg.data.splits import PARTS, Split, make_split, read_split
from rwkvseg.errors import DataError
from rwkvseg.training.plan_choices import Choice
from rwkvseg.wording import counted

FEW = 50  # patients or cases: a tenth of fewer is no test part to speak of
FOLDS = 5
LEAST = 3  # two to train on, one to validate


@dataclass(frozen=True, slots=True)
class PlannedSplit:
    """The split to train by, its keys of the recipe, and the files that must be written beside it."""

    split: Split
    choices: tuple[Choice, ...]
    files: dict[str, Split] = field(default_factory=dict)
    """File name -> split."""


def plan_split(folder: DataFolder, stem: str, seed: int, given: Path | None = None) -> PlannedSplit:
    """Choose the split of a data folder.

    Args:
        folder: its cases, with their groups.
        stem: of the names of files to be written.
        seed: of the permutation.
        given: a split file that wins.

    Raises:
        DataError: fewer than three cases or two groups, a group in two of the folder's own parts, or a split
            file that does not fit.
    """
    _require_enough(folder.cases)
    if given is not None:
        return _given(folder, given)
    parts = {case.part for case in folder.cases}
    if "train" in parts and parts & {"val", "test"}:
        return _official(folder, stem, seed)
    units = _units(folder.cases)
    if len(units) < FEW:
        return _cross_validation(units, _what(folder.cases), stem, seed)
    return _random(folder.cases, stem, seed)


def make_folds(units: Sequence[Sequence[str]], number: int, seed: int) -> list[Split]:
    """Deal units, each the cases of one patient, into so many folds: fold k validates on the k-th share.

    The units are permuted by `numpy.random.default_rng(seed)` and cut into shares of almost equal length.
    """
    order = np.random.default_rng(seed).permutation(len(units))
    folds = []
    for fold, share in enumerate(np.array_split(order, number)):
        chosen = set(share.tolist())
        val = sorted(case for unit in chosen for case in units[unit])
        train = sorted(case for index, unit in enumerate(units) if index not in chosen for case in unit)
        folds.append(Split(f"fold {fold} of {number}", seed, tuple(train), tuple(val), ()))
    return folds


def crossing_groups(cases: Sequence[CaseFiles], split: Split) -> list[str]:
    """Groups that have cases in more than one part."""
    part_of = split.part_of
    found: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.group is not None and case.id in part_of:
            found[case.group].add(part_of[case.id])
    return sorted(group for group, parts in found.items() if len(parts) > 1)


def _require_enough(cases: Sequence[CaseFiles]) -> None:
    if len(cases) < LEAST:
        raise DataError(
            f"{counted(len(cases), 'labelled case')}: at least {LEAST} are needed, two to train "
            "on and one to validate. Add cases."
        )
    units = _units(cases)
    if len(units) < 2:
        raise DataError(
            f"all {len(cases)} cases are of one patient or video, which cannot be in two parts. Add others."
        )


def _given(folder: DataFolder, path: Path) -> PlannedSplit:
    split = read_split(path, folder.cases)
    crossing = crossing_groups(folder.cases, split)
    why = f"the given split: {_sizes(split)}"
    if crossing:
        told = counted(len(crossing), "patient or video is", "patients or videos are")
        why += f"; beware, {told} in two of its parts ({name_some(crossing)})"
    return PlannedSplit(split, (Choice("split.file", str(path.resolve()), f"{why}."),))


def _official(folder: DataFolder, stem: str, seed: int) -> PlannedSplit:
    split = _with_val(folder.cases, seed)
    crossing = crossing_groups(folder.cases, split)
    if crossing:
        raise DataError(
            f"the parts of {folder.root} share "
            f"{counted(len(crossing), 'patient or video', 'patients or videos')}: {name_some(crossing)}. "
            "Move their cases into one part, or give --split FILE."
        )
    if any(case.part == "val" for case in folder.cases):
        why = f"the folder's own parts are the official split: {_sizes(split)}."
        return PlannedSplit(split, (Choice("split.rule", "official", why),))
    told = f"the folder's own parts, a tenth of the training {_what(folder.cases)} set aside to validate"
    training = [case for case in folder.cases if case.part == "train"]
    if len(training) < 10 or any(case.group is not None for case in training):
        return _in_file(split, f"{stem}_split.json", f"{told}: {_sizes(split)}.")
    split = make_split(folder.cases, "official", seed)
    why = f"{told}: {_sizes(split)}."
    return PlannedSplit(split, (Choice("split.rule", "official", why), Choice("split.seed", seed)))


def _with_val(cases: Sequence[CaseFiles], seed: int) -> Split:
    """The folder's parts; without val, the first tenth of the permuted training units."""
    parts: dict[str, list[str]] = {part: [case.id for case in cases if case.part == part] for part in PARTS}
    if not parts["val"]:
        units = _units([case for case in cases if case.part == "train"])
        if len(units) < 2:
            raise DataError("the training part has one case or patient. Add others, or give --split FILE.")
        fold = make_folds(units, min(len(units), 10), seed)[0]
        parts["train"], parts["val"] = list(fold.train), list(fold.val)
    return Split("official", seed, *(tuple(sorted(parts[part])) for part in PARTS))


def _cross_validation(units: Sequence[Sequence[str]], what: str, stem: str, seed: int) -> PlannedSplit:
    number = min(FOLDS, len(units))
    folds = make_folds(units, number, seed)
    files = {f"{stem}_fold{fold}.json": split for fold, split in enumerate(folds)}
    first = next(iter(files))
    why = (
        f"{len(units)} {what} are too few for a test part, so there are {number} folds; this is fold 0 "
        f"({_sizes(folds[0])}), --set split.file={stem}_fold1.json is the next."
    )
    return PlannedSplit(folds[0], (Choice("split.file", first, why),), files)


def _random(cases: Sequence[CaseFiles], stem: str, seed: int) -> PlannedSplit:
    grouped = any(case.group is not None for case in cases)
    split = make_split(cases, "grouped" if grouped else "paper", seed)
    whole = f", whole {_what(cases)} in one part" if grouped else "; no id names a patient"
    why = f"the folder has no parts of its own, so 8:1:1 at random{whole}: {_sizes(split)}."
    return _in_file(split, f"{stem}_split.json", why)


def _in_file(split: Split, name: str, why: str) -> PlannedSplit:
    return PlannedSplit(split, (Choice("split.file", name, why),), {name: split})


def _units(cases: Sequence[CaseFiles]) -> list[list[str]]:
    """Cases that must stay together, sorted; a case without group is a unit of its own."""
    members: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for case in cases:
        members[case.group is not None, case.group if case.group is not None else case.id].append(case.id)
    return [sorted(members[unit]) for unit in sorted(members)]


def _what(cases: Sequence[CaseFiles]) -> str:
    return "patients or videos" if any(case.group is not None for case in cases) else "cases"


def _sizes(split: Split) -> str:
    return f"{len(split.train)} to train, {len(split.val)} to validate, {len(split.test)} to test"
