"""Folders of pictures as their owners name them: where images and masks of each part lie.

Sources: ISIC 2017's archives (ISIC-2017_Training_Data, ISIC-2017_Training_Part1_GroundTruth); the GlaS
contest's train_1.bmp with train_1_anno.bmp, and Train_Folder/img with labelcol as UCTransNet has it;
CVC-ClinicDB's Original and Ground Truth; TrainDataset and TestDataset as PraNet has them; BUSI's
benign/benign (1).png with benign (1)_mask.png.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvseg.data.files import CaseFiles, is_image_name, name_some, pair, require_folder
from rwkvseg.data.io import case_id
from rwkvseg.errors import DataError
from rwkvseg.wording import counted

PART_FOLDERS = {
    "train": ("train", "Train_Folder", "TrainDataset"),
    "val": ("val", "valid", "Val_Folder"),
    "test": ("test", "Test_Folder", "TestDataset"),
}
PAIRS = (("images", "masks"), ("image", "mask"), ("img", "labelcol"), ("Original", "Ground Truth"))
ISIC = {
    "train": "ISIC-2017_Training",
    "val": "ISIC-2017_Validation",
    "test": "ISIC-2017_Test_v2",
}
MASK_BESIDE = re.compile(r"^(?P<case>.+)_(?P<kind>mask|segmentation|gt|anno)(?:_\d+)?$", re.IGNORECASE)
CONTEST_PART = re.compile(r"^(?P<part>train|test)[AB]?_\d+$")  # GlaS


@dataclass(frozen=True, slots=True)
class PairFolders:
    """A folder of images and that of their masks, which may be kept back; `part` of None: the whole set."""

    part: str | None
    images: Path
    masks: Path


@dataclass(frozen=True, slots=True)
class Beside:
    """Images and masks that lie in the same folders, by case id."""

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    twins: list[tuple[Path, Path]] = field(default_factory=list)
    """Two images of one id, the second of which is passed over."""


def pair_folders(root: Path) -> list[PairFolders]:
    """Folders of images and masks below `root`: of the whole set, else of its parts; none: another layout."""
    whole = _pair_in(root, None)
    if whole is not None:
        return [whole]
    found = []
    for part, names in PART_FOLDERS.items():
        parts = (_pair_in(root / name, part) for name in names)
        found += [folders for folders in parts if folders is not None][:1]
        isic = PairFolders(part, root / f"{ISIC[part]}_Data", root / f"{ISIC[part]}_Part1_GroundTruth")
        found += [isic] if isic.images.is_dir() else []
    return found


def _pair_in(folder: Path, part: str | None) -> PairFolders | None:
    pairs = [PairFolders(part, folder / images, folder / masks) for images, masks in PAIRS]
    found = [folders for folders in pairs if folders.images.is_dir()]
    return next((folders for folders in found if folders.masks.is_dir()), found[0] if found else None)


def read_pairs(root: Path) -> list[CaseFiles]:
    """Cases of folders of images and of masks, see `pair_folders`.

    Raises:
        DataError: images without mask, masks without image, or no masks of the training part.
    """
    cases = []
    for folders in pair_folders(root):
        if folders.part in (None, "train"):
            require_folder(folders.masks)
        if folders.masks.is_dir():  # challenges often keep the masks of the other parts
            cases += pair(folders.images, folders.masks, part=folders.part)
    return cases


def list_beside(root: Path) -> Beside:
    """Images and masks in `root` and the folders in it, told apart by name: x and x_mask, x_mask_1, ..."""
    found = Beside()
    for folder in (root, *_subfolders(root)):
        for path in sorted(path for path in folder.iterdir() if is_image_name(path) and path.is_file()):
            mask = MASK_BESIDE.match(case_id(path))
            if mask:
                found.masks[mask["case"]].append(path)
            elif case_id(path) in found.images:
                found.twins.append((found.images[case_id(path)], path))
            else:
                found.images[case_id(path)] = path
    return found


def is_beside(root: Path) -> bool:
    """Whether most images have their masks beside them."""
    found = list_beside(root)
    return 2 * sum(case in found.masks for case in found.images) > len(found.images)


def read_beside(root: Path) -> list[CaseFiles]:
    """Cases of pictures with masks beside them; several masks of one image are joined.

    Raises:
        DataError: images without mask, masks without image, or two images of one name.
    """
    found = list_beside(root)
    for first, second in found.twins:
        raise DataError(f"{first} and {second} have the same name. Remove or rename one of them.")
    _refuse_alone(root, "image", "mask", [case for case in found.images if case not in found.masks])
    _refuse_alone(root, "mask", "image", [case for case in found.masks if case not in found.images])
    parts = contest_parts(found.images)
    cases = []
    for case, image in found.images.items():
        masks = found.masks[case]
        cases.append(
            CaseFiles(
                case, (image,), masks[0], parts.get(case), None, tuple(masks[1:]), numbers_objects(masks)
            )
        )
    return cases


def contest_parts(cases: Mapping[str, object]) -> dict[str, str]:
    """Official part of each case where all are named as in the GlaS contest (train_1, testA_1), else none."""
    matches = {case: CONTEST_PART.match(case) for case in cases}
    return {case: match["part"] for case, match in matches.items() if match} if all(matches.values()) else {}


def numbers_objects(masks: Sequence[Path]) -> bool:
    """Whether masks number their objects, as those called x_anno do (GlaS)."""
    kinds = [MASK_BESIDE.match(case_id(path)) for path in masks]
    return any(kind is not None and kind["kind"].lower() == "anno" for kind in kinds)


def beside_images(root: Path) -> list[Path]:
    """Images of a folder whose masks lie beside them."""
    return list(list_beside(root).images.values())


def mask_files(path: Path) -> CaseFiles:
    """Case of a mask that lies beside its image, further masks of it included; of any other, itself alone."""
    match = MASK_BESIDE.match(case_id(path))
    found = list_beside(path.parent) if match else Beside()
    case = match["case"] if match else case_id(path)
    if case not in found.images or path not in found.masks[case]:
        return CaseFiles(case_id(path), (), path)
    masks = found.masks[case]
    return CaseFiles(
        case, (found.images[case],), masks[0], None, None, tuple(masks[1:]), numbers_objects(masks)
    )


def _refuse_alone(root: Path, what: str, lacking: str, cases: Sequence[str]) -> None:
    if cases:
        raise DataError(
            f"{counted(len(cases), what)} below {root} without {lacking} beside: {name_some(cases)}. "
            f"Add the {lacking}s under the same names, or move these {what}s out."
        )


def _subfolders(root: Path) -> list[Path]:
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if os.access(path, os.R_OK | os.X_OK))
