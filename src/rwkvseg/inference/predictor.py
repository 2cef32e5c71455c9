"""From a case to its label map on its own grid.

Case -> normalised slices -> logits -> probabilities on the network's grid -> prediction on the case's grid.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rwkvseg.data.case import Case
from rwkvseg.data.transforms import iterate_slices, normalise, resize_image, resize_spline, slice_axis
from rwkvseg.inference.device import choose_device
from rwkvseg.inference.model_file import ModelDescription, load_model

Protocol = Literal["strict", "transunet"]
LabelMap = NDArray[np.integer[Any]]


class Predictor:
    """Segments pictures, and volumes slice by slice, with one trained network.

    Args:
        network: (B, C, H, W) -> logits (B, num_classes, H, W).
        description: what model.json says of it: preprocessing, labels.
        device: where it runs.
        batch_size: slices of a volume that go through the network together.

    Example:
        >>> predictor = Predictor.from_file(Path("runs/kvasir"))  # doctest: +SKIP
        >>> prediction = predictor.predict(case)  # doctest: +SKIP
    """

    def __init__(
        self, network: nn.Module, description: ModelDescription, device: torch.device, *, batch_size: int = 8
    ) -> None:
        self.network = network.to(device).eval()
        if device.type == "cuda":
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.description = description
        self.device = device
        self.batch_size = batch_size

    @classmethod
    def from_file(cls, path: Path | str, *, device: str = "auto", batch_size: int = 8) -> Self:
        """Load a run folder, a model folder or a file of one.

        Raises:
            ModelFileError: missing, altered, foreign, or a pickle.
            BackendError: the device is not there.
        """
        chosen = choose_device(device)
        network, description = load_model(Path(path))
        return cls(network, description, chosen, batch_size=batch_size)

    @property
    def labels(self) -> dict[str, int]:
        """Name -> value of every label, background included."""
        return self.description.labels

    def predict(self, case: Case, *, protocol: Protocol = "strict") -> LabelMap:
        """Label map (*spatial) uint8 on the case's own grid; its label, if any, is not looked at.

        Args:
            case: picture or volume as the reader returns it.
            protocol: "strict" resamples probabilities to the case's grid, then takes the arg-max; "transunet"
                feeds the image resized by cubic spline, takes the arg-max on the network's grid and resizes
                labels by nearest neighbour, as the 2D literature does.

        Raises:
            DataError: the case's channels do not fit the network.
        """
        settings = self.description.preprocessing
        normalised = normalise(case.replace(label=None), settings)
        if len(case.spatial_shape) == 2:
            return self._predict_slices([normalised], protocol)[0]
        axis = slice_axis(case, settings)
        prediction = np.empty(case.spatial_shape, dtype=np.uint8)
        position = 0
        for group in _groups(iterate_slices(normalised, axis), self.batch_size):
            for label_map in self._predict_slices(group, protocol):
                prediction[(slice(None),) * axis + (position,)] = label_map
                position += 1
        return prediction

    def _predict_slices(self, slices: list[Case], protocol: Protocol) -> list[LabelMap]:
        settings = self.description.preprocessing
        rows, columns = shape = slices[0].spatial_shape
        size = settings.size or (rows, columns)
        if protocol == "transunet":
            images = [
                np.stack([resize_spline(channel, size, order=3) for channel in item.image]) for item in slices
            ]
            logits = _with_background(self.logits(torch.from_numpy(np.stack(images))))
            return [resize_spline(label_map, shape, order=0) for label_map in _label_maps(logits)]
        images = [resize_image(item.image, size, settings.interpolation) for item in slices]
        logits = _with_background(self.logits(torch.from_numpy(np.stack(images))))
        probabilities = logits.softmax(1)
        if tuple(size) != tuple(shape):
            probabilities = interpolate(probabilities, size=shape, mode="bilinear", align_corners=False)
        return list(_label_maps(probabilities))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) float32 on the predictor's device; images: (B, C, H, W)."""
        images = images.to(self.device, torch.float32)
        logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits.float()


def _with_background(logits: Tensor) -> Tensor:
    """Two logits for one: softmax of (0, z) is sigmoid of z, so foreground is where z > 0."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _label_maps(scores: Tensor) -> NDArray[np.uint8]:
    label_maps: NDArray[np.uint8] = scores.argmax(1).to(torch.uint8).cpu().numpy()
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
