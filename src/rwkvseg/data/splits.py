"""Which case is trained on, which chooses, which is tested: three rules, kept in a file and reused."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rwkvseg.data.files import CaseFiles, name_some, read_json, read_json_list
from rwkvseg.data.transunet import volume_name
from rwkvseg.errors import DataError, UsageError
from rwkvseg.output import write_text
from rwkvseg.wording import counted

PARTS = ("train", "val", "test")
RULES = ("paper", "grouped", "official")


@dataclass(frozen=True)
class Split:
    """Case ids of the three parts; `rule` and `seed` say where they come from."""

    rule: str
    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Ids of each part by its name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def part_of(self) -> dict[str, str]:
        """Part of each id."""
        return {case: part for part, cases in self.parts.items() for case in cases}


def make_split(cases: Sequence[CaseFiles], rule: str, seed: int = 0) -> Split:
    """Deal cases into train, val and test.

    Args:
        cases: labelled cases; their order does not matter.
        rule: "paper": permute the sorted ids by `numpy.random.default_rng(seed).permutation(n)`; the first
            floor(n / 10) are test, the next floor(n / 10) val, the rest train. Frames of one video or patient
            may cross parts. "grouped": the same permutation over the sorted groups; whole groups fill test,
            then val, until each holds at least floor(n / 10) cases. "official": the parts of the data folder;
            where it has no val part, floor(n / 10) of its n train cases become val, the first in the
            permutation (whole groups, at least so many cases, where every train case has a group).
        seed: of the permutation.

    Returns:
        The split, ids sorted within each part.

    Raises:
        DataError: an unknown rule, fewer than 10 cases, no groups, or no official parts.
    """
    if rule == "paper":
        parts = _deal(sorted(case.id for case in cases), seed)
    elif rule == "grouped":
        parts = _deal_groups(cases, seed)
    elif rule == "official":
        parts = _take_parts(cases, seed)
    else:
        raise DataError(f"unknown split rule '{rule}'. Choose one of {', '.join(RULES)}.")
    return Split(rule, seed, *(tuple(sorted(parts[part])) for part in PARTS))


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON, one line a part, whole or not at all."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(split).items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_split(path: Path, cases: Sequence[CaseFiles], fold: int | None = None) -> Split:
    """Read a split and check it against the data; cases that it does not name are left out.

    `{"train": [...], "val": [...], "test": [...]}` is enough; `rule` and `seed` are then "file" and 0. So is
    nnU-Net's splits_final.json, a list of {"train": [...], "val": [...]}, of which `fold` is taken. The name
    of a volume stands for its slices where the data holds these.

    Raises:
        DataError: no such file, not that JSON, unknown ids, or an id named twice.
        UsageError: a list of folds without `fold`, or the other way round, or no such fold.
    """
    split = with_slices(parse_split(path, fold), [case.id for case in cases])
    named = Counter(split.train + split.val + split.test)
    repeated = [case for case, times in named.items() if times > 1]
    if repeated:
        raise DataError(
            f"{path} names {counted(len(repeated), 'case')} twice: {name_some(repeated)}. "
            "Keep each in one part."
        )
    known = {case.id for case in cases}
    unknown = [case for case in named if case not in known]
    if unknown:
        raise DataError(
            f"{path} names {counted(len(unknown), 'case')} that the data does not have: "
            f"{name_some(unknown)}. Use the split of this data set, or restore the cases."
        )
    return split


def with_slices(split: Split, known: Sequence[str]) -> Split:
    """The split with volumes that are not `known`, but whose slices are, replaced by their slices."""
    slices: dict[str, list[str]] = defaultdict(list)
    for case in known:
        slices[volume_name(case)].append(case)
    there = set(known)
    parts = {
        part: tuple(
            case for named in cases for case in ((named,) if named in there else slices.get(named, (named,)))
        )
        for part, cases in split.parts.items()
    }
    return Split(split.rule, split.seed, **parts)


def parse_split(path: Path, fold: int | None = None) -> Split:
    """Read a split as it stands, without a look at the data.

    Raises:
        DataError, UsageError: as `read_split`, but for what the data holds.
    """
    if not path.is_file():
        raise DataError(f"split file {path} does not exist. Check the path, or choose a rule instead.")
    folds = read_json_list(path)
    if folds:
        return _parse_fold(path, folds, fold)
    if fold is not None:
        raise UsageError(f"{path} is one split, without folds, and fold {fold} is asked for. Drop the fold.")
    content = read_json(path)
    return Split(
        str(content.get("rule", "file")), _seed(content, path), *(_ids(content, part, path) for part in PARTS)
    )


def _parse_fold(path: Path, folds: list[Any], fold: int | None) -> Split:
    """One of nnU-Net's folds, which have no test part."""
    if fold is None or not 0 <= fold < len(folds):
        asked = "none is chosen" if fold is None else f"there is no fold {fold}"
        raise UsageError(
            f"{path} holds {counted(len(folds), 'fold')} and {asked}. "
            f"Choose 0 to {len(folds) - 1}: --fold 0 on the command line, split.fold: 0 in a recipe."
        )
    content = folds[fold]
    if not isinstance(content, dict):
        raise DataError(f"fold {fold} of {path} is no object. Write it as {{train: [...], val: [...]}}.")
    parts = (_ids({"test": []} | content, part, path) for part in PARTS)
    return Split(f"fold {fold} of {len(folds)}", 0, *parts)


def _deal(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    _require_ten(len(names))
    dealt = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    part = len(names) // 10
    return {"test": dealt[:part], "val": dealt[part : 2 * part], "train": dealt[2 * part :]}


def _deal_groups(cases: Sequence[CaseFiles], seed: int) -> dict[str, list[str]]:
    _require_ten(len(cases))
    members: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if case.group is None:
            raise DataError(f"case {case.id} has no group. Add groups.csv (id,group) to the data folder.")
        members[case.group].append(case.id)
    groups = sorted(members)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    wanted = len(cases) // 10
    for index in np.random.default_rng(seed).permutation(len(groups)):
        part = next((part for part in ("test", "val") if len(parts[part]) < wanted), "train")
        parts[part] += members[groups[index]]
    if not all(parts.values()):
        raise DataError(
            f"{counted(len(groups), 'group is', 'groups are')} too few for three parts. "
            "Use the rule 'paper' or a split file."
        )
    return parts


def _take_parts(cases: Sequence[CaseFiles], seed: int) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for case in cases:
        if case.part not in parts:
            raise DataError(
                f"case {case.id} has no official part. Use folders train/, val/, test/, or another rule."
            )
        parts[case.part].append(case.id)
    if not parts["val"]:
        _require_ten(len(parts["train"]))
        parts["val"], parts["train"] = _set_tenth_aside(parts["train"], cases, seed)
    return parts


def _set_tenth_aside(
    train: Sequence[str], cases: Sequence[CaseFiles], seed: int
) -> tuple[list[str], list[str]]:
    """At least floor(n / 10) of the cases, and the rest; whole groups where all cases have one."""
    groups = {case.id: case.group for case in cases}
    grouped = all(groups[case] is not None for case in train)
    members: dict[str, list[str]] = defaultdict(list)
    for case in sorted(train):
        members[str(groups[case]) if grouped else case].append(case)
    names, aside, rest = sorted(members), list[str](), list[str]()
    for index in np.random.default_rng(seed).permutation(len(names)):
        chosen = aside if len(aside) < len(train) // 10 else rest
        chosen += members[names[index]]
    if not rest:
        raise DataError(
            f"{len(names)} group of {len(train)} training cases is too few to set some aside. "
            "Name the parts in a split file instead."
        )
    return aside, rest


def _require_ten(number: int) -> None:
    if number < 10:
        raise DataError(
            f"{counted(number, 'case is', 'cases are')} too few to set a tenth aside. "
            "Name the parts in a split file instead."
        )


def _ids(content: dict[str, Any], part: str, path: Path) -> tuple[str, ...]:
    ids = content.get(part)
    if not isinstance(ids, list) or not all(isinstance(case, str) for case in ids):
        raise DataError(
            f"{path} has no list of ids under '{part}'. Write it as [\"id\", ...], empty if need be."
        )
    return tuple(ids)


def _seed(content: dict[str, Any], path: Path) -> int:
    seed = content.get("seed", 0)
    if not isinstance(seed, int):
        raise DataError(f"{path} has seed {seed!r}. Write a whole number.")
    return seed
