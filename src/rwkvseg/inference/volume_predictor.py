"""A volume to its label map on its own grid: windows, slabs, probabilities, arg-max, and the way back."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from rwkvseg.data.case import Case
from rwkvseg.data.volumes import to_network_grid
from rwkvseg.inference.freed_memory import freed_memory_kept
from rwkvseg.inference.label_rows import write_labels
from rwkvseg.inference.sliding_window import Infer, along_axis, mirrored, slab_logits
from rwkvseg.inference.volume_plan import VolumePlan

OnWindows = Callable[[int, int], None]


@torch.inference_mode()
def predict_volume(
    case: Case, plan: VolumePlan, infer: Infer, *, on_windows: OnWindows = lambda _done, _total: None
) -> NDArray[np.uint8]:
    """Label map (*case.spatial_shape); what the crop leaves out is background.

    Args:
        case: as the reader returns it.
        plan: of this case.
        infer: windows (B, C, *patch) -> logits (B, K, *patch).
        on_windows: called with (done, total) after each batch.
    """
    network_case, grid = to_network_grid(case.replace(label=None), plan.preprocessing)
    windows, order, done = plan.windows, plan.order, 0
    total = windows.count

    def advance(number: int) -> None:
        nonlocal done
        done += number
        on_windows(done, total)

    slabs = slab_logits(
        torch.from_numpy(network_case.image).permute(0, *(axis + 1 for axis in order)),
        along_axis(order[0], mirrored(infer, plan.options.mirror)),
        windows,
        batch_size=plan.batch_size,
        device=plan.sums_device,
        on_windows=advance,
    )
    labels = np.zeros(case.spatial_shape, np.uint8)
    nearest = () if plan.through_plane is None else (order.index(plan.through_plane),)
    with freed_memory_kept(plan.keeps_memory):
        write_labels(slabs, windows.shape[0], grid.cropped(labels).transpose(order), nearest=nearest)
    return labels
