"""Figures with the numbers that they stand for: the picture, and a JSON file of the same name beside it."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg import __version__
from rwkvseg.data.image_folder import list_pictures
from rwkvseg.data.pretraining import PictureSettings, read_rgb, validation_view
from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.figures import check_picture_name, draw_fields, draw_sizes, draw_tradeoff
from rwkvseg.evaluation.tradeoff import pareto_front, read_points
from rwkvseg.inference.device import choose_device
from rwkvseg.inference.freed_memory import is_kept
from rwkvseg.inference.named_networks import named_networks
from rwkvseg.inference.receptive_field import describe_field, receptive_field
from rwkvseg.inference.resolution import fit_line, measure_sizes, spatial_dims
from rwkvseg.models.rwkv_unet import STRIDE
from rwkvseg.output import write_json
from rwkvseg.wording import counted

SIDES = {2: (224, 256, 384, 512, 640, 768, 896, 1024), 3: (48, 64, 80, 96, 128, 160, 192)}
MEASURED = ("macs", "milliseconds", "peak_bytes")


def _nothing() -> None:
    return


def figure_of_fields(
    models: Sequence[str],
    out: Path,
    *,
    inputs: Path | None = None,
    size: int = 256,
    images: int = 16,
    seed: int = 0,
    device: str = "auto",
    on_image: Callable[[], None] = _nothing,
) -> Path:
    """Draw effective receptive fields of encoders; returns the file of the numbers.

    Args:
        models: as `named_networks` takes them.
        out: the picture.
        inputs: folder of pictures, of which the first are taken; None: uniform noise.
        size: side of the square that the networks see, a multiple of 16.
        images: number of pictures to average over.
        seed: of fresh weights and of the noise.
        device: "auto", "cpu" or "cuda".
        on_image: called after each picture of each network.

    Raises:
        UsageError, DataError, ModelFileError, OutputError: what cannot be used is named.
    """
    check_picture_name(out)
    if size < STRIDE or size % STRIDE:
        raise UsageError(f"size is {size}. Give a multiple of {STRIDE}.")
    chosen = choose_device(device)
    networks = named_networks(models, chosen, seed=seed)
    pictures = [picture.to(chosen) for picture in _pictures(inputs, size, images, seed)]
    fields = {
        label: receptive_field(network, pictures, on_image=on_image) for label, network in networks.items()
    }
    draw_fields({label: field.numpy() for label, field in fields.items()}, out)
    settings = {"size": size, "images": len(pictures), "seed": seed}
    settings["pictures"] = "uniform noise" if inputs is None else inputs.name  # type: ignore[assignment]
    described = {label: describe_field(field) for label, field in fields.items()}
    return _write_numbers(out, models, chosen, settings, described)


def _pictures(inputs: Path | None, size: int, number: int, seed: int) -> Iterator[Tensor]:
    if inputs is None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(number):
            yield torch.rand(1, 3, size, size, generator=generator)
        return
    paths = list_pictures(inputs)[:number]
    if len(paths) < number:
        raise DataError(
            f"{inputs} holds {counted(len(paths), 'picture')}, {number} are asked for. Lower --images."
        )
    for path in paths:
        yield validation_view(read_rgb(path), PictureSettings(size=size, validation_share=1))[None]


def read_sizes(text: str) -> list[int]:
    """Sides of pictures from "224,256,...", ascending.

    Raises:
        UsageError: anything but positive integers.

    >>> read_sizes("512, 224")
    [224, 512]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"sizes are {text!r}. Give positive integers with commas between, such as 224,512.")
    return sorted({int(part) for part in parts})


def figure_of_sizes(
    models: Sequence[str],
    out: Path,
    *,
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    seed: int = 0,
    device: str = "auto",
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Draw compute, time and peak memory against the pixels, with straight lines; returns the numbers' file.

    Args:
        models: as `named_networks` takes them, all for pictures or all for volumes.
        out: the picture.
        sizes: sides of the square pictures or cubes; None takes `SIDES`.
        repeats: timed passes of each.
        seed: of fresh weights.
        device: "auto", "cpu" or "cuda".
        on_step: called with (done, total) after each size of each network.

    Raises:
        UsageError, ModelFileError, OutputError: what cannot be used is named.
    """
    check_picture_name(out)
    chosen = choose_device(device)
    networks = named_networks(models, chosen, seed=seed)
    dimensions = _common_dimensions(networks)
    sides = SIDES[dimensions] if sizes is None else sizes
    steps = count(1)
    rows = {
        label: measure_sizes(
            network,
            sides,
            chosen,
            repeats=repeats,
            on_size=lambda: on_step(next(steps), len(networks) * len(sides)),
        )
        for label, network in networks.items()
    }
    fits = {
        label: {key: fit_line(measured, key, dimensions) for key in MEASURED}
        for label, measured in rows.items()
    }
    draw_sizes(rows, fits, out, dimensions=dimensions)
    settings = {
        "dimensions": dimensions,
        "batch": 1,
        "repeats": repeats,
        "counted": "convolutions and matrix products",
        "peak_memory": "measured" if chosen.type == "cuda" else "counted",
        "freed_memory": "kept" if is_kept() else "as the allocator does",
        "fits": {label: _without_nan(fit) for label, fit in fits.items()},
    }
    return _write_numbers(out, models, chosen, settings, rows)


def _common_dimensions(networks: Mapping[str, nn.Module]) -> int:
    """Number of spatial axes, which must be the same of all."""
    found = {label: spatial_dims(network) for label, network in networks.items()}
    if len(set(found.values())) != 1:
        told = ", ".join(f"{label} takes {axes} axes" for label, axes in found.items())
        raise UsageError(f"{told}. Draw pictures and volumes apart; MONAI's take spatial_dims=3.")
    return next(iter(found.values()))


def _without_nan(fit: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        key: {name: None if math.isnan(value) else value for name, value in numbers.items()}
        for key, numbers in fit.items()
    }


def figure_of_runs(runs: Iterable[str], out: Path, *, part: str = "test") -> Path:
    """Draw DSC against parameters of finished runs; returns the file of the numbers.

    Raises:
        UsageError, DataError, OutputError: what cannot be used is named.
    """
    check_picture_name(out)
    points = read_points(runs, part=part)
    front = pareto_front(points)
    draw_tradeoff(points, front, out, part)
    numbers = out.with_suffix(".json")
    write_json(numbers, {"part": part, "points": points, "front": front})
    return numbers


def _write_numbers(
    out: Path, models: Sequence[str], device: torch.device, settings: dict[str, Any], results: Any
) -> Path:
    content = {
        "rwkvseg": __version__,
        "torch": torch.__version__,
        "hardware": _hardware(device),
        "models": list(models),
        "settings": settings,
        "results": results,
    }
    numbers = out.with_suffix(".json")
    write_json(numbers, content)
    return numbers


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
