"""Rules of a plan for pictures, and for volumes slice by slice; their sources: docs/explanation/plan.md."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

from rwkvseg.data.fingerprint import Fingerprint
from rwkvseg.data.intensity_statistics import IntensitySummary
from rwkvseg.training.plan_choices import Choice, Task
from rwkvseg.training.plan_memory import Candidate, Fitted, estimate_memory, fit_batch, refuse

LONGEST = 512
MULTIPLE = 32
SMALLER = (512, 384, 256)  # longest sides that are tried with a proper batch, and below it ...
SMALLEST = (192, 128, 96, 64)
BATCHES, SMALL_BATCHES = (32, 16, 8), (4, 2)
VARIANTS = ("base", "small", "tiny", "nano")
PICTURES_DRAWN = 120_000  # 3750 batches of 32
EPOCHS = 30
RATE, RATE_BATCH = 1.5e-3, 32
SAME = 1e-3


def plan_pictures(task: Task) -> tuple[list[Choice], Fitted]:
    """Choices for a network that sees pictures, and what it takes.

    Raises:
        UsageError: not even the smallest network on the smallest pictures fits into the memory.
    """
    sides = [(case.sliced() if len(case.shape) == 3 else case).shape for case in task.training]
    middle = (median(side[0] for side in sides), median(side[1] for side in sides))
    fitted = _fit(task, middle)
    choices = [*_preprocessing(task, middle, fitted), *_network(task, fitted)]
    return [*choices, *_optimisation(fitted), *_augmentation(task)], fitted


def image_size(middle: Sequence[float], longest: float) -> tuple[int, int]:
    """`middle` shrunk so that no side exceeds `longest`, each rounded up to a multiple of 32.

    >>> image_size((1000, 1240), 512), image_size((256, 380), 512), image_size((40, 36), 256)
    ((416, 512), (256, 384), (64, 64))
    """
    factor = min(1.0, longest / max(middle))
    rows, columns = (math.ceil(round(side * factor, 3) / MULTIPLE) * MULTIPLE for side in middle)
    return rows, columns


def _fit(task: Task, middle: Sequence[float]) -> Fitted:
    """First of the candidates, the best first, of which a batch fits."""
    cap = max(2, len(task.training) // 2) if task.found.dimensions == 2 else BATCHES[0]
    candidates = [(candidate, capped(batches, cap)) for candidate, batches in _candidates(task, middle)]
    allowed: dict[object, float] = {}
    for candidate, batches in candidates:
        kind, pixels = (candidate.name, candidate.overrides), math.prod(candidate.sides) * batches[-1]
        if pixels > allowed.get(kind, math.inf):
            continue
        fitted = fit_batch(candidate, batches, task.options.memory)
        if fitted is not None:
            return fitted
        # memory falls more slowly than the pixels: what they alone make too large is not measured
        memory = estimate_memory(candidate, batches[-1])
        room = max(0, task.options.memory - memory.context - memory.weights)
        allowed[kind] = pixels * room / memory.step
    raise refuse(candidates[-1][0], 2, task.options.memory)


def capped(batches: Sequence[int], cap: int) -> list[int]:
    """Those up to `cap`, which is 2 or more; if there are none, the largest power of two up to it.

    >>> capped((32, 16, 8), 20), capped((32, 16, 8), 5)
    ([16, 8], [4])
    """
    return [batch for batch in batches if batch <= cap] or [2 ** (cap.bit_length() - 1)]


def _candidates(task: Task, middle: Sequence[float]) -> Iterator[tuple[Candidate, tuple[int, ...]]]:
    """Smaller pictures, then maps computed twice, then smaller networks; small batches last."""
    wanted = task.options.variant
    variants = (wanted,) if wanted else VARIANTS[VARIANTS.index("tiny") :]
    sizes = list(dict.fromkeys(image_size(middle, longest) for longest in SMALLER))
    tiny = list(dict.fromkeys(image_size(middle, longest) for longest in (SMALLER[-1], *SMALLEST)))

    def candidate(variant: str, size: tuple[int, int], **overrides: bool) -> Candidate:
        name, classes = f"rwkv_unet_{variant}", len(task.labels)
        return Candidate(name, task.channels, classes, size, tuple(overrides.items()))

    for variant in variants:
        for size in sizes:
            yield candidate(variant, size), BATCHES
        yield candidate(variant, sizes[-1], gradient_checkpointing=True), BATCHES
    for size in tiny:
        yield candidate(variants[-1], size, gradient_checkpointing=True), SMALL_BATCHES


def _preprocessing(task: Task, middle: Sequence[float], fitted: Fitted) -> list[Choice]:
    found = task.found
    size = fitted.candidate.sides
    what = "pictures" if found.dimensions == 2 else "slices"
    if size == image_size(middle, max(LONGEST, max(middle))):
        how = "kept, but for the next multiple of 32"
    elif size == image_size(middle, LONGEST):
        how = f"the longer side at most {LONGEST}"
    else:
        how = "as much as fits into the memory"
    choices = [
        Choice("preprocessing.dimensions", 2, _why_two(task)),
        Choice(
            "preprocessing.channels",
            task.channels,
            f"the most that a file has is {task.channels}; fewer are repeated.",
        ),
        Choice(
            "preprocessing.size",
            list(size),
            f"the median of the training {what} is {middle[0]:g} x {middle[1]:g}; {how}.",
        ),
    ]
    if found.dimensions == 2 and set(found.counted("dtype")) == {"uint8"}:
        why = "stored as uint8: 0 to 255 becomes 0 to 1."
        return [*choices, Choice("preprocessing.normalisation", "unit", why)]
    if found.folder.layout == "transunet" and all(_within_one(channel.whole) for channel in found.channels):
        why = "the files hold 0 to 1 of whole scans: slices and volumes must not be scaled each for itself."
        return [*choices, Choice("preprocessing.normalisation", "none", why)]
    why = (
        "intensities have no fixed range: each image is clipped to its 0.5 and 99.5 percentiles, then 0 to 1."
    )
    return [*choices, Choice("preprocessing.normalisation", "percentile", why)]


def _within_one(intensities: IntensitySummary) -> bool:
    return intensities.least >= 0 and intensities.most <= 1


def _why_two(task: Task) -> str:
    if task.found.dimensions == 2:
        return "the data are pictures."
    if task.options.dimensions == 2:
        return "asked for: volumes are seen slice by slice."
    return (
        "the median volume has fewer than 8 voxels along an axis: a network for volumes could not halve it."
    )


def _network(task: Task, fitted: Fitted) -> list[Choice]:
    variant = fitted.candidate.name.removeprefix("rwkv_unet_")
    if task.options.variant:
        why = "asked for."
    elif variant == "tiny":
        why = "the variant that was measured most; --variant small or base takes more."
    else:
        why = "tiny does not fit into the memory, not even with 8 small pictures and maps computed twice."
    choices = [Choice("model.name", fitted.candidate.name, why)]
    if fitted.candidate.overrides:
        told = "maps inside blocks are computed twice instead of kept, since the memory is short."
        choices.append(Choice("model.overrides", dict(fitted.candidate.overrides), told))
    return choices


def _optimisation(fitted: Fitted) -> list[Choice]:
    batch = fitted.batch_size
    steps = round(PICTURES_DRAWN / (EPOCHS * batch))
    of_what, dice = ("one structure", 1.0) if fitted.candidate.classes == 2 else ("several organs", 0.5)
    warmup = round(0.04 * steps * EPOCHS)
    why_batch = f"{fitted.told}; at most 32, and at most half of the training pictures."
    why_steps = f"{PICTURES_DRAWN:,} pictures are drawn in all, as in the recipes measured on Kvasir-SEG."
    return [
        Choice("loss.cross_entropy", 0.5, f"the weights of the RWKV-UNet paper for {of_what}."),
        Choice("loss.dice", dice),
        Choice(
            "optimizer.learning_rate",
            scaled_rate(RATE, batch, RATE_BATCH),
            "1.5e-3 was found from scratch with batches of 32; it goes with the root of the batch.",
        ),
        Choice("optimizer.weight_decay", 0.05),
        Choice("optimizer.warmup_steps", warmup, "4 % of all steps."),
        Choice("optimizer.schedule", "step"),
        Choice("optimizer.gradient_clip", 5.0),
        Choice("training.epochs", EPOCHS, why_steps),
        Choice("training.steps_per_epoch", steps),
        Choice("training.batch_size", batch, why_batch),
        Choice("training.validate_every", 2),
        Choice("training.checkpoint_every", 2),
    ]


def scaled_rate(rate: float, batch: int, of_batch: int) -> float:
    """Learning rate for another batch size, by the root rule, two digits.

    >>> scaled_rate(1.5e-3, 8, 32)
    0.00075
    """
    return float(f"{rate * math.sqrt(batch / of_batch):.1e}")


def is_grey(found: Fingerprint) -> bool:
    """Whether the channels of a folder are one and the same: mean and deviation agree within 1e-3."""
    first, *others = (channel.whole for channel in found.channels)
    return all(
        math.isclose(first.mean, other.mean, rel_tol=SAME)
        and math.isclose(first.deviation, other.deviation, rel_tol=SAME)
        for other in others
    )


def _augmentation(task: Task) -> list[Choice]:
    if task.channels == 3 and task.found.dimensions == 2 and not is_grey(task.found):
        why = "colour pictures of endoscopy, histology or skin have no upright: any rotation, flips, colour."
        geometry = {"rotation": 180, "scale": 0.3, "shift": 0.15, "flip_rows": 0.5, "flip_columns": 0.5}
        values = geometry | {"contrast": 0.3, "brightness": 0.1, "channel_offset": 0.1}
    else:
        why = "grey pictures have an upright and sides: small rotations, no flips; intensities vary."
        geometry = {"rotation": 30, "scale": 0.3, "shift": 0.1}
        values = geometry | {"contrast": 0.3, "brightness": 0.1, "gamma": 0.2}
    keys = list(values)
    return [Choice(f"augmentation.{key}", values[key], why if key == keys[0] else "") for key in keys]
