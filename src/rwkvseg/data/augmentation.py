"""Random geometry and intensities of whole batches on any device, by the settings in transforms.py.

What a sample undergoes is decided by uniform numbers drawn for it alone, before and on the CPU, so neither
the batch it comes in nor the device changes it (only noise is drawn where the batch lies). Rotation, scale,
shift and bend are one resampling. B: batch, C: channels, *spatial: rows and columns, or a patch's three axes.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from rwkvseg.data.transforms import Augmentation

Numbers = NDArray[np.float64]

CONTROL_POINTS = 8  # a side, of the elastic field
CUT = 4  # deviations that a blur's bell reaches
# how many numbers every step takes; the first of a step with a probability decides whether it happens
LENGTHS = {
    "flips": 3, "geometry": 1, "angle": 1, "scales": 2, "shifts": 2, "contrast": 2, "brightness": 2,
    "gamma": 2, "channel": 1, "blur": 4, "noise": 3,
}  # fmt: skip


def draw_numbers(settings: "Augmentation", channels: int, generator: np.random.RandomState) -> Numbers:
    """Draw the numbers, uniform in 0..1, that decide what a sample of so many channels undergoes."""
    bend = 1 + 2 * CONTROL_POINTS**2 if settings.elastic else 0
    return generator.uniform(size=sum(LENGTHS.values()) + channels + bend)


class _Draws:
    """The numbers (B, K) of a batch by the step that takes them."""

    def __init__(self, numbers: Numbers, channels: int, device: torch.device) -> None:
        lengths = LENGTHS | {"offsets": channels}
        lengths["bend"] = numbers.shape[1] - sum(lengths.values())
        ends = np.cumsum(list(lengths.values()))
        self.device = device
        self._parts = dict(zip(lengths, np.split(numbers, ends[:-1], axis=1), strict=True))

    def __getitem__(self, name: str) -> Numbers:
        return self._parts[name]

    def happens(self, name: str, probability: float) -> NDArray[np.bool_]:
        """Return of which samples the step happens, (B,)."""
        chosen: NDArray[np.bool_] = self[name][:, 0] < probability
        return chosen

    def within(self, name: str, limit: float) -> Numbers:
        """Return the second column, uniform in -limit..limit, (B,)."""
        found: Numbers = limit * (2 * self[name][:, 1] - 1)
        return found

    def tensor(self, values: NDArray[Any], ndim: int) -> Tensor:
        """Return values (B, ...) as float32, or as truth values, with axes appended up to `ndim`."""
        kind = torch.bool if values.dtype == bool else torch.float32
        made = torch.from_numpy(np.ascontiguousarray(values)).to(kind)
        return made.to(self.device, non_blocking=True).view(*values.shape, *[1] * (ndim - values.ndim))


def augment_batch(
    settings: "Augmentation", images: Tensor, labels: Tensor, numbers: Numbers
) -> tuple[Tensor, Tensor]:
    """Augment images (B, C, *spatial) float32 and labels (B, *spatial); same shapes and types.

    Pictures undergo everything; of patches of volumes only flips and intensities change, since geometry is
    part of cutting them (volume_patches.py). The inputs are not changed.

    Args:
        settings: ranges and probabilities.
        images: on any device; so are the results.
        labels: move with the images, by the nearest pixel.
        numbers: (B, K), a row of `draw_numbers` for each sample.
    """
    draws = _Draws(numbers, images.shape[1], images.device)
    images, labels = _flip(settings, draws, images, labels)
    if images.ndim == 4 and (settings.rotation or settings.scale or settings.shift or settings.elastic):
        images, labels = _resample(settings, draws, images, labels)
    return _change_intensities(settings, draws, images), labels


def _flip(settings: "Augmentation", draws: _Draws, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    chances = (settings.flip_rows, settings.flip_columns, settings.flip_slices)
    for axis, chance in enumerate(chances[: labels.ndim - 1]):
        if chance:
            chosen = draws["flips"][:, axis] < chance
            images = torch.where(draws.tensor(chosen, images.ndim), images.flip(axis + 2), images)
            labels = torch.where(draws.tensor(chosen, labels.ndim), labels.flip(axis + 1), labels)
    return images, labels


def _resample(
    settings: "Augmentation", draws: _Draws, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Sample images linearly, labels at the nearest pixel, where geometry and bend send every pixel."""
    size = images.shape[2:]
    turned = draws.happens("geometry", settings.geometry_probability)
    moved = turned & bool(settings.rotation or settings.scale or settings.shift)
    theta = np.where(moved[:, None, None], _affine(settings, draws, size), np.eye(2, 3))
    # places in torch's order and units: the last axis first, a side is -1..1, pixel centres inside
    x, y = ((2 * torch.arange(n, device=images.device) + 1) / n - 1 for n in reversed(size))
    columns, rows = x.view(1, 1, -1), y.view(1, -1, 1)
    if settings.elastic:
        bent = draws.happens("bend", settings.elastic_probability)
        moved = moved | bent
        bend = _bend(settings, draws, bent, size)
        columns, rows = columns + bend[:, 0], rows + bend[:, 1]
    a = draws.tensor(theta.reshape(-1, 6), 4).unbind(1)  # (B, 1, 1) each
    # sums, not a product of matrices, which a GPU may round to TF32
    grid = torch.stack([a[0] * columns + a[1] * rows + a[2], a[3] * columns + a[4] * rows + a[5]], dim=-1)
    image = F.grid_sample(images, grid, "bilinear", settings.padding, align_corners=False)
    label = F.grid_sample(labels[:, None].float(), grid, "nearest", settings.padding, align_corners=False)
    label = label[:, 0].to(labels.dtype)
    if moved.all():
        return image, label
    return (
        torch.where(draws.tensor(moved, 4), image, images),
        torch.where(draws.tensor(moved, 3), label, labels),
    )


def _affine(settings: "Augmentation", draws: _Draws, size: Sequence[int]) -> Numbers:
    """(B, 2, 3) in torch's units: pixel x of the result shows R (S x + t), in pixels from the centre."""
    angle = np.deg2rad(settings.rotation) * (2 * draws["angle"][:, 0] - 1)
    low, high = math.exp(-settings.scale), math.exp(settings.scale)
    scales = low + (high - low) * draws["scales"]  # (B, 2), of rows and columns
    sides = np.array(size, dtype=np.float64)
    shift = settings.shift * (2 * draws["shifts"] - 1) * sides
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    matrix = turn * scales[:, None] * sides / sides[:, None]
    offset = (turn @ shift[:, :, None]) * 2 / sides[:, None]
    found: Numbers = np.concatenate([matrix[:, ::-1, ::-1], offset[:, ::-1]], axis=2)
    return found


def _bend(settings: "Augmentation", draws: _Draws, bent: NDArray[np.bool_], size: Sequence[int]) -> Tensor:
    """(B, 2, H, W): how far every pixel is sent along columns and rows, a side being 2 long."""
    limit = 2 * settings.elastic
    points = limit * (2 * draws["bend"][:, 1:] - 1) * bent[:, None]
    coarse = draws.tensor(points.reshape(-1, 2, CONTROL_POINTS, CONTROL_POINTS), 4)
    return F.interpolate(coarse, tuple(size), mode="bicubic", align_corners=True).clamp(-limit, limit)


def _change_intensities(settings: "Augmentation", draws: _Draws, x: Tensor) -> Tensor:
    if settings.contrast:
        chosen = draws.happens("contrast", settings.contrast_probability)
        factor = draws.tensor(1 + draws.within("contrast", settings.contrast) * chosen, x.ndim)
        mean = x.flatten(1).mean(1).view(factor.shape)
        x = torch.where(draws.tensor(chosen, x.ndim), (x - mean) * factor + mean, x)
    if settings.brightness:
        chosen = draws.happens("brightness", settings.brightness_probability)
        x = x + draws.tensor(draws.within("brightness", settings.brightness) * chosen, x.ndim)
    if settings.gamma:
        x = _gamma(settings, draws, x)
    if settings.channel_offset:
        chosen = draws.happens("channel", settings.channel_probability)
        offsets = settings.channel_offset * (2 * draws["offsets"] - 1) * chosen[:, None]
        x = x + draws.tensor(offsets, x.ndim)
    if settings.blur:
        x = _blur(settings, draws, x)
    if settings.noise:
        x = x + _noise(settings, draws, x)
    return x


def _gamma(settings: "Augmentation", draws: _Draws, x: Tensor) -> Tensor:
    """Raise intensities, as fractions of their range, to a power; then restore mean and deviation."""
    chosen = draws.happens("gamma", settings.gamma_probability)
    low, high = math.exp(-settings.gamma), math.exp(settings.gamma)
    power = draws.tensor(low + (high - low) * draws["gamma"][:, 1], 2)
    flat = x.flatten(1)
    least, greatest = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = (greatest - least).clamp_min(torch.finfo(x.dtype).tiny)
    raised = ((flat - least) / span).pow(power)
    deviation = raised.std(1, keepdim=True, correction=0).clamp_min(torch.finfo(x.dtype).eps)
    mean, spread = flat.mean(1, keepdim=True), flat.std(1, keepdim=True, correction=0)
    changed = (raised - raised.mean(1, keepdim=True)) / deviation * spread + mean
    return torch.where(draws.tensor(chosen, 2), changed, flat).view_as(x)


def _blur(settings: "Augmentation", draws: _Draws, x: Tensor) -> Tensor:
    """Convolve with a Gaussian of a width of its own along every axis; the border is repeated."""
    chosen = draws.happens("blur", settings.blur_probability)
    reach = math.ceil(CUT * settings.blur) + 1
    places = np.arange(-reach, reach + 1)
    axes = x.ndim - 2
    maps = x.reshape(1, -1, *x.shape[2:])  # every map of every sample is a channel
    for axis in range(axes):
        width = np.maximum(settings.blur * draws["blur"][:, 1 + axis], 1e-3)[:, None]
        bell = np.where(np.abs(places) <= CUT * width, np.exp(-0.5 * (places / width) ** 2), 0)
        kernel = draws.tensor(np.repeat(bell / bell.sum(1, keepdims=True), x.shape[1], axis=0), 2)
        sides = [1] * axes
        sides[axis] = len(places)
        pad = [0] * (2 * axes)
        pad[2 * (axes - 1 - axis)] = pad[2 * (axes - 1 - axis) + 1] = reach
        convolve = F.conv2d if axes == 2 else F.conv3d
        maps = convolve(F.pad(maps, pad, "replicate"), kernel.view(-1, 1, *sides), groups=maps.shape[1])
    return torch.where(draws.tensor(chosen, x.ndim), maps.view_as(x), x)


def _noise(settings: "Augmentation", draws: _Draws, x: Tensor) -> Tensor:
    """Gaussian noise; its values belong to the sample and to the kind of device."""
    chosen = draws.happens("noise", settings.noise_probability)
    deviation = settings.noise * draws["noise"][:, 1] * chosen
    generator = torch.Generator(x.device)
    noise = torch.empty_like(x)
    for row, number in zip(noise, draws["noise"][:, 2], strict=True):
        row.normal_(generator=generator.manual_seed(int(number * 2**53)))
    return noise * draws.tensor(deviation, x.ndim)
