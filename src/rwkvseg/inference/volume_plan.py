"""How one volume will be predicted: grids, windows, slabs, batches."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from rwkvseg.data.case import Case
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.data.volume_resampling import through_plane_axis
from rwkvseg.data.volumes import VolumeGrid, plan_grid
from rwkvseg.errors import UsageError
from rwkvseg.inference.sliding_window import Shape, Windows, slab_axis

VOXELS_AT_ONCE = 2**21  # of a batch of windows on a GPU: two of 128 x 128 x 64
WINDOWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeOptions:
    """Choices of a prediction that are the user's, for networks that see whole volumes.

    Raises:
        UsageError: values that cannot be meant.
    """

    overlap: float = 0.5
    """Of neighbouring windows, as a share of the patch."""
    mirror: tuple[int, ...] = ()
    """Axes of the network's grid to mirror along; every one doubles the time."""
    max_memory: int | None = None
    """Bytes of main memory that the process may take; None: what there is."""
    batch_size: int | None = None
    """Windows that go through the network together; None: 1 on a CPU, by their size on a GPU."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UsageError(f"overlap is {self.overlap}. Give a share of the patch, from 0 to below 1.")
        if len(set(self.mirror)) != len(self.mirror) or not set(self.mirror) <= {0, 1, 2}:
            raise UsageError(f"mirror is {self.mirror}. Give some of the axes 0, 1, 2, each once.")
        for name, number in (("max_memory", self.max_memory), ("batch_size", self.batch_size)):
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}. Give 1 or more, or leave it out.")


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumePlan:
    """Everything that follows from a volume's geometry, the model and the options; no voxel is looked at."""

    case: Case
    """Of its image only shape and type count."""
    grid: VolumeGrid
    preprocessing: Preprocessing
    patch: Shape
    options: VolumeOptions
    num_classes: int
    """Of the logits, background included."""
    device: torch.device
    """Of the network."""
    batch_size: int
    keeps_memory: bool = False
    """Whether freed memory stays with the process while windows go by, see freed_memory.py."""

    @property
    def order(self) -> Shape:
        """Axes of the network's grid, the slab axis first: the one whose slabs are smallest."""
        axis = slab_axis(self.grid.network_shape, self.patch)
        first, second = (other for other in range(3) if other != axis)
        return axis, first, second

    @property
    def windows(self) -> Windows:
        """On the network's grid with its axes in `order`."""
        shape: Any = tuple(self.grid.network_shape[axis] for axis in self.order)
        patch: Any = tuple(self.patch[axis] for axis in self.order)
        return Windows(shape=shape, patch=patch, overlap=self.options.overlap)

    @property
    def through_plane(self) -> int | None:
        """Axis of the network's grid along which image and labels take the nearest slice, if there is one."""
        if self.case.spacing is None:
            return None
        return through_plane_axis(
            [self.case.spacing[axis] for axis in self.grid.axes], self.preprocessing.spacing
        )

    @property
    def slab_bytes(self) -> int:
        """Of the sums of a slab, and of the planes that `write_labels` holds."""
        sums = 4 * (self.num_classes + 1) * self.windows.slab_voxels
        axis, *_ = self.order
        plane = math.prod(self.grid.cropped_shape) // self.grid.cropped_shape[axis]
        return sums + 4 * (6 * self.num_classes + 3) * plane

    @property
    def sums_device(self) -> torch.device:
        """Where logits are summed: beside the network if a slab takes at most half of what is free there."""
        if self.device.type != "cuda":
            return torch.device("cpu")
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.device if self.slab_bytes <= free // 2 else torch.device("cpu")


def plan_volume(
    case: Case,
    preprocessing: Preprocessing,
    options: VolumeOptions,
    *,
    num_classes: int,
    device: torch.device,
) -> VolumePlan:
    """Plan the prediction of a case; a crop to what is not zero looks at its voxels.

    Raises:
        DataError, GeometryError: as `plan_grid`.
    """
    patch = preprocessing.patch
    assert patch is not None
    fitting = VOXELS_AT_ONCE // math.prod(patch) if device.type == "cuda" else 1
    return VolumePlan(
        case=case,
        grid=plan_grid(case, preprocessing),
        preprocessing=preprocessing,
        patch=patch,
        options=options,
        num_classes=num_classes,
        device=device,
        batch_size=options.batch_size or max(1, min(WINDOWS_AT_ONCE, fitting)),
    )
