"""From a case to its label map on its own grid.

Case -> normalised slices -> logits -> probabilities on the network's grid -> prediction on the case's grid.
Networks that see whole volumes (preprocessing.dimensions 3) go by windows: volume_predictor.py.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rwkvseg.data.case import Case
from rwkvseg.data.notices import say_once
from rwkvseg.data.preprocessing import (
    Preprocessing,
    iterate_slices,
    normalise,
    resize_image,
    resize_spline,
    slice_axis,
)
from rwkvseg.data.volumes import plan_grid
from rwkvseg.errors import DataError, UsageError
from rwkvseg.inference.device import choose_device
from rwkvseg.inference.freed_memory import can_keep, freed_memory_kept
from rwkvseg.inference.model_file import ModelDescription, load_model
from rwkvseg.inference.recorded_calls import MOST_RECORDINGS, RecordedCalls
from rwkvseg.inference.volume_memory import fit_memory
from rwkvseg.inference.volume_plan import VolumeOptions, VolumePlan, plan_volume
from rwkvseg.inference.volume_predictor import OnWindows, predict_volume
from rwkvseg.models.live_memory import live_bytes

Protocol = Literal["strict", "transunet"]
Precision = Literal["float32", "bfloat16"]
LabelMap = NDArray[np.integer[Any]]
SLICES_AT_ONCE = 8  # through a GPU
NOT_KEPT = (
    "freed memory is given back at every step, which is slower: to keep it takes more than the limit allows."
)


class Predictor:
    """Segments pictures, and volumes slice by slice or as a whole, with one trained network.

    Args:
        network: (B, C, H, W) -> logits (B, num_classes, H, W), or the same with D, H, W.
        description: what model.json says of it: preprocessing, labels.
        device: where it runs.
        batch_size: slices of a volume that go through the network together; None: 8 on a GPU, one on a CPU,
            which gains nothing from more.
        options: for networks that see whole volumes.
        keep_memory: on a CPU, let freed memory stay with the process while it predicts: faster, for more
            memory. It is a setting of the whole process, so nobody but the caller can decide it; for volumes
            it gives way to options.max_memory. See freed_memory.py.
        precision: "float32" gives the same label maps everywhere but for rounding; "bfloat16" is torch's
            autocast: faster where the processor has instructions for it, with logits of 8 bits. Memory is
            planned as for float32, which takes more.
        record_calls: on a GPU, record the network's second call of each size of input as a CUDA graph and
            repeat that: faster, for the memory of the recordings. See recorded_calls.py.

    Raises:
        UsageError: options for a network that sees slices; an unknown precision, or one not for this device;
            no batch.

    Example:
        >>> predictor = Predictor.from_file(Path("runs/kvasir"))  # doctest: +SKIP
        >>> prediction = predictor.predict(case)  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        description: ModelDescription,
        device: torch.device,
        *,
        batch_size: int | None = None,
        options: VolumeOptions = VolumeOptions(),  # noqa: B008 - frozen
        keep_memory: bool = False,
        precision: Precision = "float32",
        record_calls: bool = True,
    ) -> None:
        _check_precision(precision, device)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}. Give 1 or more, or leave it out.")
        self.precision = precision
        self.network = network.to(device).eval()
        self.sees_volumes = description.preprocessing.dimensions == 3
        if device.type == "cuda" and not self.sees_volumes:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.description = description
        self.device = device
        self.batch_size = batch_size or (1 if device.type == "cpu" else SLICES_AT_ONCE)
        if options != VolumeOptions() and not self.sees_volumes:
            raise UsageError(
                "this network sees slices, so overlap, mirror and max_memory have no meaning. Leave them out."
            )
        self.options = options
        self.keep_memory = keep_memory and device.type == "cpu"
        self._calls = RecordedCalls(self.network, MOST_RECORDINGS if record_calls else 0)

    @classmethod
    def from_file(
        cls,
        path: Path | str,
        *,
        device: str | torch.device = "auto",
        batch_size: int | None = None,
        options: VolumeOptions = VolumeOptions(),  # noqa: B008 - frozen
        keep_memory: bool = False,
        precision: Precision = "float32",
        record_calls: bool = True,
    ) -> Self:
        """Load a run folder, a model folder or a file of one.

        Raises:
            ModelFileError: missing, altered, foreign, or a pickle.
            BackendError: the device is not there.
            UsageError: as the constructor.
        """
        chosen = choose_device(device)
        network, description = load_model(Path(path))
        return cls(
            network,
            description,
            chosen,
            batch_size=batch_size,
            options=options,
            keep_memory=keep_memory,
            precision=precision,
            record_calls=record_calls,
        )

    @property
    def labels(self) -> dict[str, int]:
        """Name -> value of every label, background included."""
        return self.description.labels

    def predict(
        self,
        case: Case,
        *,
        protocol: Protocol = "strict",
        prepared: Tensor | None = None,
        on_windows: OnWindows = lambda _done, _total: None,
    ) -> LabelMap:
        """Label map (*spatial) uint8 on the case's own grid; its label, if any, is not looked at.

        Args:
            case: picture or volume as the reader returns it.
            protocol: "strict" resamples probabilities to the case's grid, then takes the arg-max; "transunet"
                feeds the image resized by cubic spline, takes the arg-max on the network's grid and resizes
                labels by nearest neighbour, as the 2D literature does.
            prepared: of a picture, what `prepare` made of it under the same protocol; None: it is made here.
            on_windows: called with (done, total) as the windows of a network that sees whole volumes go by.

        Raises:
            DataError: the case's channels do not fit the network, it holds NaN or infinity, or it would take
                more memory than there is.
            UsageError: "transunet" for a network that sees whole volumes; an array in place of a case.
        """
        given: object = case
        if not isinstance(given, Case):
            kind = type(given).__name__
            raise UsageError(
                f"predict takes a Case, got {kind}. Give Case(id='a', image=...), (C, *spatial)."
            )
        if prepared is None:
            _refuse_non_finite(case)
        settings = self.description.preprocessing
        if self.sees_volumes:
            if protocol != "strict":
                raise UsageError(f"protocol {protocol} is of slices, this network sees volumes. Use strict.")
            plan = self._plan(case, settings)
            if self.keep_memory and can_keep() and not plan.keeps_memory:
                say_once(NOT_KEPT)
            return predict_volume(case, plan, self._window_logits, on_windows=on_windows)
        with freed_memory_kept(self.keep_memory):
            return self._predict_by_slices(case, protocol, prepared)

    def _predict_by_slices(self, case: Case, protocol: Protocol, prepared: Tensor | None) -> LabelMap:
        settings = self.description.preprocessing
        if len(case.spatial_shape) == 2:
            images = self.prepare(case, protocol=protocol) if prepared is None else prepared
            return self._predict_images(images, case.spatial_shape, protocol)[0]
        normalised = normalise(case.replace(label=None), settings)
        axis = slice_axis(case, settings)
        prediction = np.empty(case.spatial_shape, dtype=np.uint8)
        position = 0
        for group in _groups(iterate_slices(normalised, axis), self.batch_size):
            images = self._network_images(group, protocol)
            for label_map in self._predict_images(images, group[0].spatial_shape, protocol):
                prediction[(slice(None),) * axis + (position,)] = label_map
                position += 1
        return prediction

    def prepare(self, case: Case, *, protocol: Protocol = "strict") -> Tensor:
        """What the network sees of a picture, (1, C, H, W) on the CPU; several threads may call it at once.

        Raises:
            DataError: the picture's channels do not fit the network, or it holds NaN or infinity.
        """
        _refuse_non_finite(case)
        normalised = normalise(case.replace(label=None), self.description.preprocessing)
        return self._network_images([normalised], protocol)

    def resizes(self, case: Case) -> bool:
        """Whether slices of another size than the case's, or a volume of another spacing, are predicted."""
        settings = self.description.preprocessing
        if self.sees_volumes:
            grid = plan_grid(case, settings.model_copy(update={"crop": "none"}))
            return grid.network_shape != tuple(grid.shape[axis] for axis in grid.axes)
        shape = list(case.spatial_shape)
        if len(shape) == 3:
            del shape[slice_axis(case, settings)]
        return settings.size is not None and tuple(settings.size) != tuple(shape)

    def check_memory(self, geometry: Case) -> VolumePlan:
        """Plan the prediction of a volume before its voxels are read, as if nothing were cropped.

        Raises:
            DataError: it does not fit the network, or would take more memory than there is or is allowed.
        """
        return self._plan(geometry, self.description.preprocessing.model_copy(update={"crop": "none"}))

    def _plan(self, case: Case, preprocessing: Preprocessing) -> VolumePlan:
        plan = plan_volume(
            case,
            preprocessing,
            self.options,
            num_classes=max(2, self.description.architecture.num_classes),
            device=self.device,
        )
        return fit_memory(plan, self._bytes_of_a_window, keep=self.keep_memory and can_keep())

    @cached_property
    def _bytes_of_a_window(self) -> int:
        """Of main memory; on a GPU it takes none."""
        settings = self.description.preprocessing
        assert settings.patch is not None
        if self.device.type != "cpu":
            return 0
        return live_bytes(self.network, (1, settings.channels, *settings.patch))

    def _window_logits(self, windows: Tensor) -> Tensor:
        windows = windows.to(self.device, torch.float32).contiguous()
        return _with_background(self._call(windows))

    def _call(self, inputs: Tensor) -> Tensor:
        """Logits float32 of inputs on the predictor's device."""
        if self._calls.network is not self.network:
            self._calls = RecordedCalls(self.network, self._calls.most)
        logits: Tensor = self._calls(inputs, torch.bfloat16 if self.precision == "bfloat16" else None)
        return logits.float()

    def _network_images(self, slices: list[Case], protocol: Protocol) -> Tensor:
        """(B, C, H, W) of normalised slices of one size."""
        settings = self.description.preprocessing
        rows, columns = slices[0].spatial_shape
        size = settings.size or (rows, columns)
        if protocol == "transunet":
            images = [
                np.stack([resize_spline(channel, size, order=3) for channel in item.image]) for item in slices
            ]
        else:
            images = [resize_image(item.image, size, settings.interpolation) for item in slices]
        return torch.from_numpy(np.stack(images))

    def _predict_images(
        self, images: Tensor, shape: tuple[int, ...], protocol: Protocol
    ) -> list[NDArray[np.uint8]]:
        """Label maps of `shape` of what the network sees."""
        logits = _with_background(self.logits(images))
        if protocol == "transunet":
            return [resize_spline(label_map, shape, order=0) for label_map in _label_maps(logits)]
        probabilities = logits.softmax(1)
        if probabilities.shape[2:] != shape:
            probabilities = interpolate(probabilities, size=shape, mode="bilinear", align_corners=False)
        return list(_label_maps(probabilities))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) float32 on the predictor's device; images: (B, C, H, W)."""
        images = images.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
        return self._call(images)


def _refuse_non_finite(case: Case) -> None:
    """Raise DataError where one NaN would make every number of the case one, row by row to save memory."""
    if case.image.dtype.kind != "f":
        return
    bad = sum(int(row.size - np.count_nonzero(np.isfinite(row))) for part in case.image for row in part)
    if bad:
        raise DataError(
            f"case {case.id} holds NaN or infinity in {bad} of {case.image.size} numbers. "
            "Replace them, for instance by the background's intensity."
        )


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r} is not known; give {' or '.join(get_args(Precision))}.")
    if precision == "bfloat16" and not torch.amp.is_autocast_available(device.type):
        raise UsageError(f"torch has no bfloat16 on {device.type}; give float32 or another device.")


def _with_background(logits: Tensor) -> Tensor:
    """Two logits for one: softmax of (0, z) is sigmoid of z, so foreground is where z > 0."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _label_maps(scores: Tensor) -> NDArray[np.uint8]:
    # argmax takes ten times as long on a CPU; in both the first of equals wins
    label_maps: NDArray[np.uint8] = scores.max(1).indices.to(torch.uint8).cpu().numpy()
    return label_maps


def _groups(items: Iterator[Case], size: int) -> Iterator[list[Case]]:
    group: list[Case] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
