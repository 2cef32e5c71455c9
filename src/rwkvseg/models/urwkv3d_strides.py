"""How much each level of a network for volumes halves, from the spacing of the voxels."""

from collections.abc import Sequence

from rwkvseg.errors import UsageError

Triple = tuple[int, int, int]
NUM_HALVINGS = 4
SMALLEST_TO_HALVE = 8  # voxels


def strides_from_spacing(spacing: Sequence[float], patch: Sequence[int]) -> tuple[Triple, ...]:
    """Strides of the four levels below the finest: coarse axes wait until the others have caught up.

    At each level an axis is halved if its spacing is at most twice the finest of that level and it still has
    8 voxels. Isotropic volumes are halved along all axes four times. nnU-Net's rule in spirit.

    Args:
        spacing: mm between voxels along axes 0, 1, 2 as the network sees them.
        patch: voxels of a training patch along the same axes.

    Returns:
        Four triples of 1 or 2, for `create_model("urwkv3d_tiny", strides=...)`.

    Raises:
        UsageError: not three positive numbers each.

    Example:
        >>> strides_from_spacing((0.76, 0.76, 3.0), (128, 128, 64))
        ((2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    if len(spacing) != 3 or len(patch) != 3 or min(*spacing, *patch) <= 0:
        raise UsageError(
            f"spacing {tuple(spacing)} and patch {tuple(patch)}: give three positive numbers each."
        )
    now, size = [float(mm) for mm in spacing], [int(voxels) for voxels in patch]
    strides = []
    for _ in range(NUM_HALVINGS):
        reach = 2 * min(now) * (1 + 1e-6)  # spacings come from files, rounded
        step = [
            2 if mm <= reach and voxels >= SMALLEST_TO_HALVE else 1
            for mm, voxels in zip(now, size, strict=True)
        ]
        now = [mm * s for mm, s in zip(now, step, strict=True)]
        size = [-(-voxels // s) for voxels, s in zip(size, step, strict=True)]
        strides.append((step[0], step[1], step[2]))
    return tuple(strides)
