"""How much main memory the prediction of a volume takes, known before any of it is taken.

N voxels of c channels in the file, n on the network's grid; all values are float32. See
docs/how-to/predict-volumes.md.
"""

import math
from dataclasses import replace

from rwkvseg.data.volume_resampling import SLAB_VOXELS
from rwkvseg.errors import DataError
from rwkvseg.inference.volume_plan import VolumePlan
from rwkvseg.memory import available_memory, show_size

PROGRAM = 768 * 2**20  # Python, torch, MONAI and the weights of a small network
WORKSPACE = 1.5  # what convolutions and the allocator take, of what the tensors of a call take
WORKSPACE_KEPT = 3.0
"""The same where freed memory is kept, gaps included: 2.5 was measured, and it grows over some windows."""


def memory_needed(plan: VolumePlan, window_bytes: int) -> dict[str, int]:
    """Bytes that each step has at its height; the program is one of the parts that every step has.

    Args:
        plan: of the volume.
        window_bytes: of one window's call of the network, see `live_bytes`; 0 where it runs on a GPU.
    """
    channels, item = len(plan.case.image), plan.case.image.dtype.itemsize
    own, network = math.prod(plan.grid.shape), math.prod(plan.grid.network_shape)
    image, inputs = 4 * channels * own, 4 * plan.preprocessing.channels * network
    stacked = image if channels > 1 else 0
    return {
        "reading": PROGRAM + image + max(stacked, item * own),
        "preprocessing": PROGRAM + image + inputs + _preprocessing(plan),
        "windows": PROGRAM + image + inputs + own + _windows(plan, window_bytes),
        "writing": PROGRAM + 2 * image + 3 * own,  # an overlay takes percentiles of a copy
    }


def fit_memory(plan: VolumePlan, window_bytes: int, *, keep: bool = False) -> VolumePlan:
    """The plan, with batches as small as its memory limit asks for, and freed memory kept where it allows.

    Args:
        plan: of the volume.
        window_bytes: as above.
        keep: freed memory is to stay with the process while windows go by, if the limit leaves room for it.

    Raises:
        DataError: it does not fit even so.
    """
    limit = plan.options.max_memory or available_memory()
    plan = replace(plan, keeps_memory=keep)
    needed = memory_needed(plan, window_bytes)
    while max(needed.values()) > limit and plan.batch_size > 1:
        plan = replace(plan, batch_size=plan.batch_size // 2)
        needed = memory_needed(plan, window_bytes)
    if max(needed.values()) > limit and plan.keeps_memory:
        plan = replace(plan, keeps_memory=False)
        needed = memory_needed(plan, window_bytes)
    if max(needed.values()) > limit:
        raise DataError(_refusal(plan, needed, limit))
    return plan


def _preprocessing(plan: VolumePlan) -> int:
    """What `to_network_grid` has beside the case and its result."""
    cropped, network = plan.grid.cropped_shape, plan.grid.network_shape
    channels = len(plan.case.image)
    is_percentile = plan.preprocessing.normalisation == "percentile"
    percentiles = 4 * math.prod(cropped) if is_percentile else 0  # of a copy of a channel
    between = 4 * channels * cropped[0] * network[1] * network[2]
    if plan.through_plane is not None or cropped[0] == network[0]:
        between = 0  # slices are taken as they are
    repeated = 4 * channels * math.prod(network) if channels < plan.preprocessing.channels else 0
    slabs = 16 * min(SLAB_VOXELS, channels * max(math.prod(cropped), math.prod(network)))
    return max(percentiles, between + slabs, repeated)


def _windows(plan: VolumePlan, window_bytes: int) -> int:
    """What a slab and a batch of windows have in main memory."""
    slab = plan.slab_bytes if plan.sums_device.type == "cpu" else 0
    channels = plan.preprocessing.channels + (4 if plan.options.mirror else 2) * plan.num_classes
    window = 4 * channels * math.prod(plan.patch)
    workspace = WORKSPACE_KEPT if plan.keeps_memory else WORKSPACE
    return slab + int(plan.batch_size * (window + workspace * window_bytes))


def _refusal(plan: VolumePlan, needed: dict[str, int], limit: int) -> str:
    steps = ", ".join(f"{step} {show_size(size)}" for step, size in needed.items())
    own, network = (" x ".join(map(str, shape)) for shape in (plan.grid.shape, plan.grid.network_shape))
    whose = "--max-memory allows" if plan.options.max_memory else "this machine has"
    return (
        f"case {plan.case.id} of {own} voxels, {network} for the network, would take "
        f"{show_size(max(needed.values()))} of memory ({steps}), {whose} {show_size(limit)}. "
        "Check its spacing, cut the volume, or give more with --max-memory."
    )
