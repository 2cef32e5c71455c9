"""The run folder: what is written before training starts, and what a resumed run must still agree with.

RUN/
    recipe.yaml environment.json split.json cases.json   before the first step
    fingerprint.json                                     likewise, of the training part
    encoder.json                                         likewise, of a run that starts from encoder weights
    metrics.csv checkpoints/{last,best}.ckpt             every epoch (or as the recipe says)
    fusion_weights.csv fusion_weights.png                every epoch, and at the end, of U-RWKV (3D)
    curves.png model/ predictions/ evaluation/           at the end
    summary.json                                         last of all: a run with it is complete
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles, read_json
from rwkvseg.data.fingerprint_reader import Gatherer
from rwkvseg.data.layouts import DataFolder, open_data
from rwkvseg.data.splits import Split, make_split, read_split, write_split
from rwkvseg.errors import DataError, ModelFileError, RecipeError, UsageError, one_line
from rwkvseg.evaluation.regions import resolve_regions
from rwkvseg.models.encoder_files import describe_encoder
from rwkvseg.output import require_writable, write_json, write_text
from rwkvseg.training.environment import describe_environment, list_cases
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.recipe_file import YAML_FAULTS, RecipeFile
from rwkvseg.wording import counted

RESULTS = ("model", "predictions", "evaluation", "checkpoints", "metrics.csv", "summary.json")
"""What is written after the description; without it these are somebody else's."""
DESCRIPTION = "recipe.yaml"
SPLIT = "split.json"
ENCODER = "encoder.json"  # which weights the run began with


def open_recipe_data(recipe: Recipe) -> tuple[DataFolder, dict[str, int], Split]:
    """Data folder, labels and split that a recipe means.

    Raises:
        RecipeError: no data path, or no labels anywhere.
        UsageError: a region joins what no label names.
        DataError: the folder, its labels, the split file or the number of cases will not do.
    """
    if recipe.data.path is None:
        raise RecipeError("the recipe names no data. Give --data DIR, or set data.path in the recipe.")
    folder = open_data(recipe.data.path, recipe.data.layout)
    labels = recipe.data.labels or folder.labels
    if labels is None:
        raise RecipeError(
            f"neither the recipe nor {folder.root} names the labels. Set data.labels, "
            "such as {background: 0, polyp: 1}."
        )
    require_labels(labels, folder.root)
    _refuse_other_names(labels, folder)
    resolve_regions(recipe.data.regions, labels)  # a wrong name must not show after hours of training
    settings = recipe.split
    if settings.file is not None:
        split = read_split(settings.file, folder.cases, settings.fold)
    else:
        split = make_split(folder.cases, settings.rule, settings.seed)
    require_parts(split)
    return folder, labels, split


def _refuse_other_names(labels: dict[str, int], folder: DataFolder) -> None:
    """Raise DataError where data folder and recipe give one name to two values: one of them is wrong."""
    theirs = folder.labels or {}
    other = [name for name, value in labels.items() if theirs.get(name, value) != value]
    if other:
        raise DataError(
            f"the recipe's data.labels has {other[0]}: {labels[other[0]]}, {folder.root} says "
            f"{theirs[other[0]]}. Mend the one that is wrong."
        )


def require_labels(labels: dict[str, int], root: Path) -> None:
    """Raise DataError where labels are not 0, 1, 2, ... without gaps; `root` is for the message."""
    if sorted(labels.values()) != list(range(len(labels))) or len(labels) < 2:
        raise DataError(
            f"the labels of {root} are {labels}: not 0 (background), 1, 2, ... without gaps. "
            "Renumber the label maps and dataset.json."
        )


def require_parts(split: Split) -> None:
    """Raise DataError where a split leaves too little to train on or nothing to validate."""
    if len(split.train) < 2 or not split.val:
        raise DataError(
            f"the split leaves {counted(len(split.train), 'case')} to train on and {len(split.val)} to "
            "validate. At least 2 and 1 are needed: add cases, or give a split file."
        )


def check_run(out: Path, recipe: Recipe, folder: DataFolder, split: Split, *, resume: bool) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed and recipe and data are the same.

    Raises:
        UsageError: a run is there and is not to be resumed, or other things that a run would write over.
        OutputError: nothing can be written there.
        RecipeError: the recipe differs from the run's, or the encoder weights that it names.
        DataError: split or files differ from the run's, or its description cannot be read.
    """
    if not holds_run(out, resume=resume):
        _require_room(out, folder.root)
        return
    require_same_recipe(out / DESCRIPTION, recipe)
    _require_same_encoder(out / ENCODER, recipe)
    _require_same_cases(out / "cases.json", list_cases(folder.cases, split, folder.root))


def _require_room(out: Path, data: Path) -> None:
    require_writable(out)
    if out.resolve() == data.resolve():
        raise UsageError(f"{out} is the data's own folder. Choose another --out.")
    there = [name for name in RESULTS if (out / name).exists()]
    if there:
        raise UsageError(
            f"{out} holds {', '.join(there)}, and no run that they are of. Choose another --out."
        )


def holds_run(out: Path, *, resume: bool) -> bool:
    """Whether a run is there, which is to be resumed.

    Raises:
        UsageError: it is not to be resumed.
    """
    found = (out / DESCRIPTION).exists()
    if found and not resume:
        raise UsageError(f"{out} already holds a run. Continue it with --resume, or choose another --out.")
    return found


def describe_run(
    out: Path,
    recipe: Recipe,
    folder: DataFolder,
    split: Split,
    device: torch.device,
    *,
    fingerprint: "TrainingFingerprint",
) -> None:
    """Write the run's description, the recipe last: a folder with it holds a run; none is overwritten.

    `fingerprint` has seen the training part.

    Raises:
        OutputError: the folder cannot be written.
    """
    if (out / DESCRIPTION).exists():
        return
    if recipe.model.encoder_weights is not None:
        write_json(out / ENCODER, describe_encoder(recipe.model.encoder_weights))
    write_json(out / "environment.json", describe_environment(device))
    write_split(out / SPLIT, split)
    cases = list_cases(folder.cases, split, folder.root, known=fingerprint.checksums)
    write_json(out / "cases.json", cases)
    write_json(out / "fingerprint.json", fingerprint.as_object())
    write_text(out / DESCRIPTION, _as_seen_from(out, recipe).to_yaml())


def _as_seen_from(out: Path, recipe: Recipe) -> Recipe:
    """Recipe of a run that may be moved: it names the run's copy of its split, and the weights from there."""
    if recipe.split.file is not None:
        own = recipe.split.model_copy(update={"file": Path(SPLIT), "fold": None})
        recipe = recipe.model_copy(update={"split": own})
    if recipe.model.encoder_weights is not None:
        model = recipe.model.model_copy(
            update={"encoder_weights": _path_from(out, recipe.model.encoder_weights)}
        )
        recipe = recipe.model_copy(update={"model": model})
    return recipe


def _path_from(folder: Path, path: Path) -> Path:
    """Relative path that leads from `folder` to `path`; the absolute one where there is none (drives)."""
    path = path.resolve()
    try:
        return Path(os.path.relpath(path, folder.resolve()))
    except ValueError:
        return path


class TrainingFingerprint:
    """What the training part holds, noted while a training reads it; the test part stays unseen.

    Args:
        folder: the data, with the run's labels.
        split: of the run.
    """

    def __init__(self, folder: DataFolder, split: Split) -> None:
        self._gatherer = Gatherer(replace(folder, cases=tuple(part_files(folder, split, "train"))))
        self._refused: str | None = None

    def take(self, files: CaseFiles, case: Case) -> None:
        """Note what a case of the training part holds."""
        if self._refused is None:
            try:
                self._gatherer.take(files, case)
            except DataError as error:  # pictures among volumes can be trained on, but not summed up
                self._refused = str(error)

    @property
    def checksums(self) -> dict[str, dict[str, str]]:
        """Of the files that were seen, by case id."""
        return self._gatherer.checksums

    def as_object(self) -> dict[str, Any]:
        """For fingerprint.json."""
        return (
            self._gatherer.fingerprint().as_object() if self._refused is None else {"refused": self._refused}
        )


def part_files(folder: DataFolder, split: Split, part: str) -> Sequence[CaseFiles]:
    """Cases of one part, in the order of the split."""
    by_id = {case.id: case for case in folder.cases}
    return [by_id[case] for case in split.parts[part]]


def require_same_recipe(
    path: Path, recipe: RecipeFile, *, free: Sequence[str] = ("data.path", "split.file", "split.fold")
) -> None:
    """Refuse a recipe that differs from the one in `path`, except in the keys `free`.

    Raises:
        RecipeError: it differs.
        DataError: the file cannot be read.
    """
    try:
        old = _flatten(_with_defaults(yaml.safe_load(path.read_text(encoding="utf-8")), type(recipe)))
    except (OSError, AttributeError, *YAML_FAULTS) as error:
        raise DataError(
            f"cannot read {path}: {one_line(error)}. Start a new run with another --out."
        ) from error
    new = _flatten(recipe.model_dump(mode="json"))
    # where data and split file lie may change; what they hold is checked by the cases' checksums.
    # Encoder weights are read at the start only
    moved = set(free)
    if None not in (old.get("model.encoder_weights"), new.get("model.encoder_weights")):
        moved.add("model.encoder_weights")
    differing = sorted(
        key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in moved
    )
    if differing:
        told = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in differing[:5])
        raise RecipeError(
            f"the recipe differs from the one in {path} ({told}). "
            "Resume with the same recipe, or start a new --out."
        )


def _with_defaults(content: Any, kind: type[RecipeFile]) -> Any:
    """Recipe of a run with the keys that are younger than it; as it is where it cannot be read any more."""
    try:
        return kind.model_validate(content).model_dump(mode="json")
    except ValidationError:
        return content


def _require_same_encoder(path: Path, recipe: Recipe) -> None:
    """Refuse other weights than the run began with; those that are no more stand in the checkpoint."""
    weights = recipe.model.encoder_weights
    if weights is None or not path.is_file():
        return
    began = read_json(path).get("sha256")
    try:
        found = describe_encoder(weights)["sha256"]
    except ModelFileError:
        return
    if found != began:
        raise RecipeError(
            f"the encoder weights {weights} are not those that the run began with (SHA-256 {found[:12]}, "
            f"there {str(began)[:12]}). Give the same file, or start a new run with another --out."
        )


def _require_same_cases(path: Path, cases: list[dict[str, Any]]) -> None:
    try:
        old = {case["id"]: case for case in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}. Start a new run with another --out.") from error
    new = {case["id"]: case for case in cases}
    differing = sorted(case for case in old.keys() | new.keys() if old.get(case) != new.get(case))
    if differing:
        raise DataError(
            f"{counted(len(differing), 'case differs', 'cases differ')} from those the run began with, the "
            f"first is '{differing[0]}'. "
            "Restore the files and the split, or start a new run with another --out."
        )


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
