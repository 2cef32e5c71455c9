"""From a fingerprint to a recipe that trains: `rwkvseg plan`. Every choice has its reason.

The rules stand in plan_split.py, plan_pictures.py and plan_volumes.py; docs/explanation/plan.md lists them
with their sources.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from rwkvseg.data.files import name_some
from rwkvseg.data.fingerprint import Fingerprint
from rwkvseg.data.splits import Split, write_split
from rwkvseg.errors import DataError, UsageError
from rwkvseg.models.urwkv3d_strides import SMALLEST_TO_HALVE
from rwkvseg.output import write_text
from rwkvseg.training.plan_choices import Choice, PlanOptions, Task, nested
from rwkvseg.training.plan_memory import Fitted
from rwkvseg.training.plan_pictures import VARIANTS, plan_pictures
from rwkvseg.training.plan_split import plan_split
from rwkvseg.training.plan_text import recipe_text
from rwkvseg.training.plan_volume_choices import plan_volumes
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import require_labels, require_parts
from rwkvseg.wording import counted


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with its reasons, and what must be written for it."""

    choices: tuple[Choice, ...]
    fitted: Fitted
    splits: dict[str, Split]
    """File name -> split, to lie beside the recipe."""
    text: str
    """The recipe as YAML, reasons as comments."""

    @property
    def content(self) -> dict[str, Any]:
        """The recipe as a mapping."""
        return nested(self.choices)


def make_plan(found: Fingerprint, out: Path, options: PlanOptions, split_file: Path | None = None) -> Plan:
    """Choose a recipe for the data of a fingerprint.

    Args:
        found: of the data folder.
        out: where the recipe is to lie; names the run and the split files.
        options: the user's choices.
        split_file: a split to keep to.

    Raises:
        DataError: cases that cannot be read, labels without names that are not 0, 1, 2, ..., too few cases,
            or parts that share patients.
        UsageError: an option that cannot be meant, or memory that is too small for anything.
    """
    labels = _require_trainable(found)
    stem = re.sub(r"[^\w.-]+", "_", out.stem) or "plan"
    planned = plan_split(found.folder, stem, options.seed, split_file)
    require_parts(planned.split)
    task = Task(found, labels, planned.split, options)
    dimensions = _dimensions(task)
    _require_variant(options.variant, dimensions)
    chosen, fitted = plan_pictures(task) if dimensions == 2 else plan_volumes(task)
    choices = [
        Choice("name", stem),
        Choice("description", f"{fitted.candidate.name} on {found.folder.root.resolve().name}, planned"),
        Choice("data.path", str(found.folder.root.resolve()), "--data another/place wins over it."),
        Choice("data.labels", labels, _why_labels(task)),
        *planned.choices,
        *chosen,
        Choice("training.seed", options.seed),
    ]
    text = recipe_text(choices, _heading(found, fitted))
    Recipe.from_mapping(yaml.safe_load(text), source="the plan")
    return Plan(tuple(choices), fitted, planned.files, text)


def write_plan(plan: Plan, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write split files and recipe, the recipe last; returns their paths.

    Raises:
        UsageError: one of them is there already and is not to be replaced.
        OutputError: the disk refuses.
    """
    paths = [*(out.parent / name for name in plan.splits), out]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} is there already. Choose another -o, or add --overwrite.")
    for name, split in plan.splits.items():
        write_split(out.parent / name, split)
    write_text(out, plan.text)
    return paths


def _require_trainable(found: Fingerprint) -> dict[str, int]:
    root = found.folder.root
    if found.unreadable:
        raise DataError(
            f"{counted(len(found.unreadable), 'case')} of {root} cannot be read. The first: "
            f"{found.unreadable[0].why} `rwkvseg data verify {shlex.quote(str(root))}` lists all."
        )
    numbers = sorted(found.counted("channels"))
    if len(numbers) > 1 and (len(numbers) > 2 or numbers[0] != 1):
        raise DataError(
            f"cases of {root} have {', '.join(map(str, numbers))} channels. Bring them to one number."
        )
    if found.labels is None:
        values = ", ".join(str(facts.value) for facts in found.classes)
        raise DataError(
            f"nothing names the labels of {root}, and the label maps hold {values}: not 0, 1, 2, ... "
            "Renumber them to 0, 1, 2, ... and name them in labels.json, such as "
            '{"labels": {"background": 0, "polyp": 1}}.'
        )
    if all(case.box is None for case in found.cases):
        raise DataError(
            f"no label map of the {len(found.cases)} in {root} holds anything but background, so there is "
            "nothing to learn. Check that they are the right ones."
        )
    require_labels(found.labels, root)
    return found.labels


def _dimensions(task: Task) -> int:
    wanted = task.options.dimensions
    if task.found.dimensions == 2:
        if wanted == 3:
            raise UsageError("--dimensions is 3, the data are pictures. Leave it out.")
        return 2
    if wanted is not None:
        return wanted
    middle = [median(column) for column in zip(*(case.shape for case in task.training), strict=True)]
    return 3 if min(middle) >= SMALLEST_TO_HALVE else 2


def _require_variant(variant: str | None, dimensions: int) -> None:
    known = VARIANTS if dimensions == 2 else tuple(name for name in VARIANTS if name != "nano")
    if variant is not None and variant not in known:
        raise UsageError(f"--variant is {variant}. For {dimensions}D choose one of {', '.join(known)}.")


def _why_labels(task: Task) -> str:
    why = "named in the data folder"
    if not task.found.named:
        why = "the data folder names none: give them better names here, in the same order"
    shown = {value for case in task.training for value in case.voxels}
    never = [name for name, value in task.labels.items() if value not in shown]
    return f"{why}; beware, no training case holds {name_some(never)}." if never else f"{why}."


def _heading(found: Fingerprint, fitted: Fitted) -> list[str]:
    what = "pictures" if found.dimensions == 2 else "volumes"
    return [
        f"Planned by `rwkvseg plan` for {len(found.cases)} {what}. Reasons stand above what they are for.",
        f"Memory on a GPU, bfloat16, estimated by a step without content: {fitted.told} ({fitted.memory}).",
    ]
