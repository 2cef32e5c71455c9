"""Pictures in folders by class, as ImageNet-1k is laid out: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from dataclasses import dataclass
from pathlib import Path

from rwkvseg.data.files import name_some
from rwkvseg.data.io import PICTURE_SUFFIXES
from rwkvseg.errors import DataError
from rwkvseg.wording import counted


@dataclass(frozen=True)
class Picture:
    """One picture to pre-train on: its id, its file, and the place of its class (-1: without)."""

    id: str
    path: Path
    target: int = -1


@dataclass(frozen=True)
class ImageFolder:
    """Class names, sorted, and the pictures of both parts, sorted by id."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Picture, ...]
    val: tuple[Picture, ...]


def open_image_folder(root: Path) -> ImageFolder:
    """List train/CLASS/* and val/CLASS/* below `root` without decoding any picture.

    Raises:
        DataError: a part is missing, has no class or an empty one, or the parts disagree in their classes.
    """
    classes = _classes(root / "train")
    if len(classes) < 2:
        raise DataError(
            f"{root / 'train'} holds {counted(len(classes), 'class', 'classes')}. "
            "At least 2 folders are needed."
        )
    foreign = sorted(set(classes) ^ set(_classes(root / "val")))
    if foreign:
        raise DataError(
            f"train/ and val/ of {root} differ in {counted(len(foreign), 'class', 'classes')}: "
            f"{name_some(foreign)}. Give both parts the same folders."
        )
    train, val = (_pictures(root / part, classes) for part in ("train", "val"))
    return ImageFolder(root, tuple(classes), train, val)


def list_pictures(folder: Path) -> list[Path]:
    """Pictures anywhere below `folder`, sorted; hidden ones and other files are passed over.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Check the path.")
    return sorted(path for path in folder.rglob("*") if _is_picture(path.relative_to(folder), path))


def _is_picture(inside: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise DataError(f"{part} does not exist. Lay the pictures out as train/CLASS/* and val/CLASS/*.")
    return sorted(path.name for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(part: Path, classes: list[str]) -> tuple[Picture, ...]:
    found: list[Picture] = []
    for target, name in enumerate(classes):
        paths = list_pictures(part / name)
        if not paths:
            raise DataError(f"{part / name} holds no picture. Fill it or remove the class from both parts.")
        found += [Picture(path.relative_to(part).as_posix(), path, target) for path in paths]
    return tuple(found)
