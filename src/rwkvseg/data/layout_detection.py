"""Which layout a data folder follows, by the names in it, and what to say of one that follows none."""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rwkvseg.data.dicom_files import any_dicom_below
from rwkvseg.data.nnunet_msd import is_nnunet
from rwkvseg.data.published import is_beside, pair_folders
from rwkvseg.data.transunet import is_transunet
from rwkvseg.errors import DataError

KNOWN = (
    "images/ + masks/; train/, val/, test/ with images/ + masks/ each; x.png + x_mask.png; "
    "imagesTr/ + labelsTr/ with dataset.json (nnU-Net raw, MSD); train_npz/ + test_vol_h5/ or "
    "ACDC_training_slices/ + ACDC_training_volumes/ (TransUNet)"
)
NEAR = 20  # entries of a folder among which a layout is looked for


def detect_layout(root: Path) -> str | None:
    """Which layout a folder follows by the names in it; None: none.

    Raises:
        DataError: its dataset.json cannot be read.
    """
    if (root / "imagesTr").is_dir():
        return "nnunet" if is_nnunet(root) else "msd"
    if pair_folders(root):
        return "images"
    if is_transunet(root):
        return "transunet"
    return "beside" if is_beside(root) else None


def unknown_layout(root: Path) -> DataError:
    """What to raise of a folder that follows none: its cure, or where near it one begins."""
    told = f"{root} follows no known layout"
    if (root / "imagesTs").is_dir():
        return DataError(
            f"{root} holds imagesTs/ without imagesTr/, images without labels. Move those that have labels "
            "to imagesTr/, put the labels into labelsTr/ and name them in dataset.json."
        )
    for near in (root.absolute().parent, *_below(root)):
        with suppress(DataError, OSError):
            if detect_layout(near) not in (None, "beside"):
                return DataError(f"{told}, but {near} does. Give that folder.")
    if any_dicom_below(root):
        return DataError(
            f"{root} holds DICOM files, which come without labels. Write its series to DST/imagesTs with "
            f"`rwkvseg data convert {shlex.quote(str(root))} DST --to nnunet --label NAME=VALUE`, move those "
            "that have labels to DST/imagesTr, and put the labels into DST/labelsTr."
        )
    return DataError(f"{told}. Expected {KNOWN}.")


def _below(root: Path) -> Iterator[Path]:
    """Folders in `root` and in those; unpacking an archive often adds one or two."""
    with suppress(OSError):
        below = [path for path in sorted(root.iterdir())[:NEAR] if path.is_dir()]
        yield from below
        for folder in below:
            yield from (path for path in sorted(folder.iterdir())[:NEAR] if path.is_dir())
