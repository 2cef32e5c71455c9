"""A data folder in, a list of labelled cases out: image folders, nnU-Net raw, MSD, TransUNet.

MSD is the Medical Segmentation Decathlon. docs/reference/data.md shows each layout. Extra files and folders
are passed over. inputs.py finds what needs no labels, layout_detection.py tells which layout a folder
follows, the readers of each stand in files of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rwkvseg.data.files import (
    CaseFiles,
    groups_file,
    list_images,
    read_groups,
    read_json,
    require_folder,
    with_groups,
)
from rwkvseg.data.inputs import find_inputs, unlabelled
from rwkvseg.data.io import case_id
from rwkvseg.data.label_names import channel_names, parse_labels
from rwkvseg.data.layout_detection import KNOWN, detect_layout, unknown_layout
from rwkvseg.data.nnunet_msd import read_msd, read_nnunet
from rwkvseg.data.published import pair_folders, read_beside, read_pairs
from rwkvseg.data.reading import read_case
from rwkvseg.data.transunet import known_labels, read_transunet
from rwkvseg.errors import DataError

__all__ = ["CaseFiles", "DataFolder", "find_inputs", "open_data", "read_case"]

READERS: dict[str, Callable[[Path], list[CaseFiles]]] = {
    "images": read_pairs,
    "beside": read_beside,
    "nnunet": read_nnunet,
    "msd": read_msd,
    "transunet": read_transunet,
}


@dataclass(frozen=True)
class DataFolder:
    """Labelled cases of one folder, sorted by id; `labels` maps name to value, background 0 included."""

    root: Path
    layout: str
    cases: tuple[CaseFiles, ...]
    labels: dict[str, int] | None = None
    licence: str | None = None
    channels: tuple[str, ...] | None = None
    """What the image's channels are called, where that is said."""


def open_data(root: Path, layout: str = "auto") -> DataFolder:
    """List the labelled cases of a data folder without decoding any.

    Args:
        root: the data folder.
        layout: "images", "beside", "nnunet", "msd", "transunet", or "auto" to look.

    Raises:
        DataError: no such folder, nothing in it, an unknown layout, images without label or labels without
            image, label regions or an ignore label.
    """
    root = Path(root)
    require_folder(root)
    settings = read_json(root / "labels.json") | read_json(root / "dataset.json")
    chosen = (detect_layout(root) or "unknown") if layout == "auto" else layout
    if chosen == "unknown":
        raise unknown_layout(root)
    if chosen not in READERS:
        raise DataError(f"unknown layout '{layout}'. Choose one of auto, {', '.join(READERS)}.")
    cases = READERS[chosen](root)
    if not cases:
        raise DataError(f"{root} holds no labelled images in the layout '{chosen}'. Expected {KNOWN}.")
    named = settings.get("labels")
    labels = known_labels(cases, root) if chosen == "transunet" else None
    licence = settings.get("licence", settings.get("license"))
    return DataFolder(
        root=root,
        layout=chosen,
        cases=with_groups(root, cases),
        labels=labels if named is None else parse_labels(named, root),
        licence=str(licence) if licence else None,
        channels=channel_names(settings),
    )


def held_back(folder: DataFolder) -> tuple[CaseFiles, ...]:
    """Cases that `open_data` passes over: imagesTs, with the labels in labelsTs, and parts without masks."""
    root = folder.root
    if folder.layout == "images":
        pairs = (pair for pair in pair_folders(root) if pair.part and not pair.masks.is_dir())
        cases = [case for pair in pairs for case in unlabelled(pair.images, pair.part)]
    elif folder.layout in ("nnunet", "msd"):
        truths = list_images(root / "labelsTs") if (root / "labelsTs").is_dir() else []
        labels = {case_id(path): path for path in truths}
        found = unlabelled(root / "imagesTs", as_channels=folder.layout == "nnunet")
        cases = [replace(case, label=labels.get(case.id), part="test") for case in found]
    else:
        return ()
    path = groups_file(root)
    groups = {} if path is None else read_groups(path)
    return tuple(replace(case, group=groups.get(case.id)) for case in cases)
