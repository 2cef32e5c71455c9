"""A plan for volumes as choices of a recipe, each with its reason."""

from typing import Any

from rwkvseg.training.plan_choices import Choice, Task
from rwkvseg.training.plan_memory import Fitted
from rwkvseg.training.plan_pictures import scaled_rate
from rwkvseg.training.plan_volumes import Grid, find_grid, first_patch, fit_patch

PATCHES_DRAWN = 25_000
EPOCHS = 30
RATE, RATE_BATCH = 1e-3, 8
DARKEST = (-3100, -900)  # Hounsfield units: air is -1000, what scanners put around their circle down to -3024


def plan_volumes(task: Task) -> tuple[list[Choice], Fitted]:
    """Choices for a network that sees volumes, and what it takes.

    Raises:
        UsageError: not even the smallest patch fits into the memory.
    """
    grid = find_grid(task)
    fitted = fit_patch(task, grid)
    normalisation, why = choose_normalisation(task)
    choices = [
        Choice("preprocessing.dimensions", 3, _why_three(task)),
        Choice("preprocessing.channels", task.channels, f"the volumes have {task.channels}."),
        _patch(grid, fitted),
        *_grid(grid),
        Choice("preprocessing.normalisation", normalisation, why),
        *_network(task, fitted),
        *_optimisation(fitted, whole=_holds_all(grid, fitted)),
        *_augmentation(grid, normalisation),
    ]
    return choices, fitted


def choose_normalisation(task: Task) -> tuple[str, str]:
    """("ct", why) of computed tomography, which has units; else ("percentile", why)."""
    found = task.found
    if task.channels == 1:
        if found.modality and found.modality[0].strip().upper() == "CT":
            return "ct", (
                "the channel is called CT: intensities have a unit, so all are clipped to percentiles "
                "0.5 and 99.5 of the labelled training voxels and standardised alike."
            )
        lowest = found.channels[0].whole.percentiles["0.5"]
        if not found.modality and DARKEST[0] <= lowest <= DARKEST[1]:
            return "ct", (
                f"no file names the modality, but the darkest voxels lie at {lowest:g}, as in CT: "
                "clipped to percentiles of the labelled training voxels and standardised alike."
            )
    return "percentile", (
        "intensities have no unit: each volume is clipped to its own 0.5 and 99.5 percentiles, then 0 to 1."
    )


def _why_three(task: Task) -> str:
    if task.options.dimensions == 3:
        return "asked for."
    return "the data are volumes with 8 voxels or more along every axis at the median."


def _patch(grid: Grid, fitted: Fitted) -> Choice:
    sides = list(fitted.candidate.sides)
    if _holds_all(grid, fitted):
        why = "it holds the largest training volume."
    elif tuple(sides) == first_patch(grid).sides:
        why = "it holds the median training volume, or as many voxels as 128 x 128 x 128."
    else:
        why = "the largest of which two fit into the memory, shortened along its longest side in mm."
    strides = "each side is a multiple of what the strides divide it by"
    return Choice("preprocessing.patch", sides, f"{why.removesuffix('.')}; {strides}.")


def _holds_all(grid: Grid, fitted: Fitted) -> bool:
    return all(
        max(column) <= side
        for column, side in zip(zip(*grid.sizes, strict=True), fitted.candidate.sides, strict=True)
    )


def _grid(grid: Grid) -> list[Choice]:
    choices = []
    if grid.spacing is not None:
        why = "the median of the training volumes, to three digits"
        if None in grid.spacing:
            why += "; along the thick slices the file's own, so that none is invented"
        choices.append(Choice("preprocessing.spacing", list(grid.spacing), f"{why}."))
    elif grid.known:
        told = " x ".join(f"{mm:g}" for mm in grid.file_spacing)
        choices.append(Choice("preprocessing.spacing", None, f"all have {told} mm: none is resampled."))
    else:
        choices.append(
            Choice("preprocessing.spacing", None, "not every file states one: voxels are taken as they are.")
        )
    if grid.orientation == "RAS":
        why = "the files come in several orientations: axes are turned alike, and predictions back."
        choices.append(Choice("preprocessing.orientation", "RAS", why))
    if grid.crop == "nonzero":
        why = "more than a quarter of the median volume is a border of zeros without labels: it is cut away."
        choices.append(Choice("preprocessing.crop", "nonzero", why))
    return choices


def _network(task: Task, fitted: Fitted) -> list[Choice]:
    overrides: dict[str, Any] = dict(fitted.candidate.overrides)
    why = (
        "asked for."
        if task.options.variant
        else "the variant that was measured most; --variant small or base takes more."
    )
    strides = "an axis is halved when its spacing is within twice the finest and it has 8 voxels left"
    if overrides.get("gradient_checkpointing"):
        strides += "; maps are computed twice instead of kept, since the memory is short"
    overrides["strides"] = [list(level) for level in overrides["strides"]]
    return [
        Choice("model.name", fitted.candidate.name, why),
        Choice("model.overrides", overrides, f"{strides}."),
    ]


def _optimisation(fitted: Fitted, *, whole: bool) -> list[Choice]:
    batch = fitted.batch_size
    steps = round(PATCHES_DRAWN / (EPOCHS * batch))
    rate = scaled_rate(RATE, batch, RATE_BATCH)
    share = "a patch holds a whole volume." if whole else "a third of the patches shows a structure for sure."
    return [
        Choice("loss.cross_entropy", 1.0, "both terms alike, as nnU-Net's loss for volumes."),
        Choice("loss.dice", 1.0),
        Choice(
            "optimizer.learning_rate", rate, "1e-3 was run with batches of 8; it goes with the batch's root."
        ),
        Choice("optimizer.weight_decay", 0.05),
        Choice("optimizer.warmup_steps", round(0.04 * steps * EPOCHS), "4 % of all steps."),
        Choice("optimizer.schedule", "step"),
        Choice("optimizer.gradient_clip", 1.0),
        Choice(
            "training.epochs",
            EPOCHS,
            f"{PATCHES_DRAWN:,} patches in all, as in our recipes for volumes.",
        ),
        Choice("training.steps_per_epoch", steps),
        Choice(
            "training.batch_size",
            batch,
            f"{fitted.told}; at least 2, at most 8 and half of the training volumes: patches come first.",
        ),
        Choice("training.validate_every", 10),
        Choice("training.checkpoint_every", 5),
        Choice("training.foreground_fraction", 0.0 if whole else round(1 / 3, 4), share),
    ]


def _augmentation(grid: Grid, normalisation: str) -> list[Choice]:
    thick = grid.through_plane
    values: dict[str, Any]
    if thick is None:
        why = "small turns about every axis; no mirroring, since left and right may be different labels."
        values = {"rotation": 17, "scale": 0.2, "shift": 0.1}
    else:
        why = "slices are thick, so patches turn within them only; no mirroring: bodies have sides."
        values = {"rotation": 30, "scale": 0.2, "shift": 0.05, "through_plane": thick}
    strength = 0.2 if normalisation == "ct" else 0.1  # in deviations, or of the range 0 to 1
    values |= {"contrast": 0.2, "brightness": strength, "gamma": 0.2}
    keys = list(values)
    return [Choice(f"augmentation.{key}", values[key], why if key == keys[0] else "") for key in keys]
