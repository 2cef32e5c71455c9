"""Image folders: images/ and masks/, in train/, val/ and test/ where there are parts.

Files of pictures are copied as they are; volumes are cut into slices along the axis with the largest spacing.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rwkvseg.data.case import Case
from rwkvseg.data.convert.nnunet_msd import geometry
from rwkvseg.data.convert.plan import Item, Plan, stem_in_part
from rwkvseg.data.convert.result import Done, unread, write_folds, write_groups, write_labels
from rwkvseg.data.convert.scale import Scale, choose_scale
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.io import PICTURE_SUFFIXES, case_suffix, write_label_map
from rwkvseg.data.pictures import write_picture
from rwkvseg.data.preprocessing import Preprocessing, iterate_slices, slice_axis
from rwkvseg.data.reading import read_geometry
from rwkvseg.errors import DataError
from rwkvseg.output import write_atomically

DEPTH = (
    "volumes are cut into pictures, which hold no spacing, no affine and no distance between slices; "
    "both are noted in conversion.json"
)
SHIFTED = "intensities below 0, or a single fraction: stored = value - offset, see conversion.json"
QUANTISED = (
    "intensities beyond whole numbers of 16 bits: stored in 65536 steps, see offset and step in "
    "conversion.json"
)
WINDOWED = "intensities outside --window are clipped, those within stored in 65536 steps"


def write_case(item: Item, case: Case, plan: Plan, root: Path) -> Done:
    """Write the picture and the mask of one case, or those of each slice.

    Raises:
        DataError: more channels than a picture holds.
        LabelError, OutputError: as `write_label_map`.
    """
    folder = root if item.part is None else root / item.part
    stem = stem_in_part(item.id, item.part)
    volume = len(case.spatial_shape) == 3
    scale, lost = None, [DEPTH] if volume else []
    picture = _one_picture(item)
    lost += unread(item) if picture is None else []
    record = geometry(case) | {"axis": slice_axis(case, Preprocessing())} if volume else {}
    if picture is None and not (case.image.dtype == np.uint8 and len(case.image) == 3 and not volume):
        scale = choose_scale(_one_channel(case), _stored_type(item, case), plan.options.window)
        lost += _loss(scale, plan)
        bits = 8 * np.dtype(scale.dtype).itemsize
        record |= {"offset": scale.offset, "step": scale.step, "bits": bits}
    names = []
    for name, part in _pieces(case, stem, volume=volume):
        names.append(name)
        _write_image(folder / "images", name, part, picture, scale)
        if part.label is not None:
            _write_mask(folder / "masks" / f"{name}.png", part, item)
    return Done(
        source=item.id,
        ids=tuple(f"{item.part}_{name}" if item.part else name for name in names),
        part=item.part,
        group=item.group,
        labelled=item.has_label,
        channels=len(case.image),
        lost=tuple(lost),
        record=record,
    )


def _pieces(case: Case, stem: str, *, volume: bool) -> Iterator[tuple[str, Case]]:
    if not volume:
        yield stem, case
        return
    for index, piece in enumerate(iterate_slices(case, slice_axis(case, Preprocessing()))):
        yield f"{stem}_slice{index:03d}", piece


def _one_picture(item: Item) -> Path | None:
    """File of a case that is one picture, which can be copied."""
    paths = [path for files in item.sources for path in files.images]
    return paths[0] if len(paths) == 1 and case_suffix(paths[0]) in PICTURE_SUFFIXES else None


def _stored_type(item: Item, case: Case) -> np.dtype[Any]:
    """Type of the intensities in the file, which volumes do not keep when they are read."""
    geometry_only = None if case.image.dtype.kind in "iu" else read_geometry(item.sources[0])
    return case.image.dtype if geometry_only is None else geometry_only.image.dtype


def _one_channel(case: Case) -> Any:
    if len(case.image) != 1:
        raise DataError(
            f"case {case.id} has {len(case.image)} channels; pictures hold one, or three of 8 bit. "
            "Use --to nnunet, which has a file for each."
        )
    return case.image


def _loss(scale: Scale, plan: Plan) -> list[str]:
    if plan.options.window is not None:
        return [WINDOWED]
    if not scale.exact:
        return [QUANTISED]
    return [SHIFTED] if scale.offset else []


def _write_image(folder: Path, name: str, case: Case, picture: Path | None, scale: Scale | None) -> None:
    if picture is not None:
        _copy(picture, folder / f"{name}{case_suffix(picture)}")
    elif scale is None:
        write_picture(folder / f"{name}.png", np.ascontiguousarray(np.moveaxis(case.image, 0, -1)))
    else:
        write_picture(folder / f"{name}.png", scale.apply(case.image[0]))


def _write_mask(path: Path, case: Case, item: Item) -> None:
    assert case.label is not None
    stored = _one_mask(item.sources[0]) if len(item.sources) == 1 else None
    if stored is not None:
        _copy(stored, path)
    else:
        write_label_map(path, np.ascontiguousarray(case.label))


def _one_mask(files: CaseFiles) -> Path | None:
    """File of a mask that can be copied."""
    plain = files.label is not None and not files.joined and not files.instances
    return files.label if plain and files.label is not None and case_suffix(files.label) == ".png" else None


def _copy(source: Path, path: Path) -> None:
    with write_atomically(path) as temporary:
        shutil.copyfile(source, temporary)


def finish(root: Path, plan: Plan, done: Sequence[Done]) -> list[str]:
    """Write labels.json, splits_final.json and groups.csv; what else there is to know.

    Raises:
        DataError: channels and labels that do not fit.
    """
    write_labels(root, plan, done)
    folds = write_folds(root, plan, done, val=False)
    write_groups(root, done)
    notes = [folds] if folds else []
    if {8, 16} <= {case.record.get("bits") for case in done}:
        notes.append("pictures have 8 and 16 bit: train with normalisation percentile or zscore, not unit")
    return notes
