"""What to predict: a path in, a list of cases out; labels are neither needed nor looked for."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rwkvseg.data.dicom_files import any_dicom_below, find_dicom
from rwkvseg.data.files import (
    CaseFiles,
    group_channels,
    has_channel_numbers,
    list_images,
    read_json,
    require_folder,
)
from rwkvseg.data.io import VOLUME_SUFFIXES, case_id, case_suffix
from rwkvseg.data.layout_detection import KNOWN, detect_layout
from rwkvseg.data.nnunet_msd import has_channels_last, says_nnunet
from rwkvseg.data.published import beside_images, pair_folders
from rwkvseg.data.transunet import is_transunet, list_transunet
from rwkvseg.errors import DataError, UsageError
from rwkvseg.wording import counted


def find_inputs(path: Path, series: Sequence[str] = ()) -> tuple[CaseFiles, ...]:
    """List what to predict: one file, a folder of images, or a data folder's images; labels are not needed.

    Of a data folder the first of imagesTs/, images/ (or what the set calls it), the root itself, the parts'
    images, TransUNet's volumes or else slices, and imagesTr/ that holds anything is taken. A folder that
    holds none of these is searched for DICOM series.

    Args:
        path: file or folder.
        series: which DICOM series, see `find_dicom`; empty for all.

    Raises:
        DataError: no such path, no image in it, a file of unknown format, images among DICOM files, or as
            `find_dicom`.
        UsageError: `series` where there is no DICOM, or as `find_dicom`.
    """
    path = Path(path)
    found = _find_files(path)
    if not found:
        return _find_series(path, series)
    if path.is_dir() and found[0].images[0].parent == path and any_dicom_below(path):
        if series:
            return _find_series(path, series)
        raise DataError(
            f"{path} holds {counted(len(found), 'picture or NIfTI volume', 'pictures or NIfTI volumes')} "
            "among DICOM files, or above them. Give the files or the folder that you mean, or --series."
        )
    if series:
        raise UsageError(f"--series is of DICOM, {path} holds other images. Leave it out.")
    return found


def _find_series(path: Path, series: Sequence[str]) -> tuple[CaseFiles, ...]:
    cases = tuple(find_dicom(path, series))
    if not cases and path.is_file():
        raise DataError(f"{path} is of no known format. Use NIfTI, DICOM, PNG, JPEG, TIFF, BMP, npz or h5.")
    if not cases:
        raise DataError(f"{path} holds no images. Give a file, a folder of images or DICOM, or {KNOWN}.")
    return cases


def _find_files(path: Path) -> tuple[CaseFiles, ...]:
    """All but DICOM."""
    if path.is_file():
        return () if case_suffix(path) is None else (_alone(path),)
    require_folder(path)
    for find in (_in_tests, _in_images, _in_root, _in_parts, _in_arrays, _in_training):
        cases = find(path)
        if cases:
            return tuple(sorted(cases, key=lambda case: case.id))
    return ()


def _alone(path: Path) -> CaseFiles:
    """A file by itself; the first channel of a volume stands for the case, as in a search of its folder."""
    if case_suffix(path) in VOLUME_SUFFIXES and has_channel_numbers([path]):
        with suppress(DataError):  # channels of other cases may be missing
            return next(case for case in unlabelled(path.parent) if case.images[0] == path)
    return CaseFiles(case_id(path), (path,))


def _in_tests(root: Path) -> list[CaseFiles]:
    return unlabelled(root / "imagesTs")


def _in_images(root: Path) -> list[CaseFiles]:
    return [case for pair in pair_folders(root) if pair.part is None for case in unlabelled(pair.images)]


def _in_root(root: Path) -> list[CaseFiles]:
    if detect_layout(root) == "beside":
        return [CaseFiles(case_id(path), (path,)) for path in beside_images(root)]
    return unlabelled(root)


def _in_parts(root: Path) -> list[CaseFiles]:
    return [case for pair in pair_folders(root) if pair.part for case in unlabelled(pair.images, pair.part)]


def _in_arrays(root: Path) -> list[CaseFiles]:
    if not is_transunet(root):
        return [CaseFiles(case_id(path), (path,)) for path in list_images(root, arrays=True)]
    cases = list_transunet(root).cases
    return [case for case in cases if case.part == "test"] or list(cases)


def _in_training(root: Path) -> list[CaseFiles]:
    return unlabelled(root / "imagesTr")


def unlabelled(folder: Path, part: str | None = None, *, as_channels: bool | None = None) -> list[CaseFiles]:
    """Images of a folder as cases without labels; none where there is no folder.

    Args:
        folder: the images.
        part: goes before the ids, as parts may number their files alike.
        as_channels: whether CASE_0000 names a channel; None looks.
    """
    paths = list_images(folder) if folder.is_dir() else []
    # among pictures IMG_0001 is a name like any other, so channel numbers count only where nnU-Net says so
    volumes = all(case_suffix(path) in VOLUME_SUFFIXES for path in paths)
    says = (volumes or says_nnunet(folder.parent)) if as_channels is None else as_channels
    if has_channel_numbers(paths) and says:
        return [CaseFiles(case, channels, part=part) for case, channels in group_channels(paths).items()]
    names = [f"{part}_{case_id(path)}" if part else case_id(path) for path in paths]
    last = volumes and has_channels_last(read_json(folder.parent / "dataset.json"))
    return [
        CaseFiles(name, (path,), part=part, channels_last=last)
        for name, path in zip(names, paths, strict=True)
    ]
