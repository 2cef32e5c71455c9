"""The files of a data folder as far as they are there: what `layouts.open_data` refuses becomes a finding."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkvseg.data.files import (
    CHANNEL,
    MASK_ENDINGS,
    group_in_id,
    groups_file,
    is_image_name,
    name_some,
    read_groups,
    read_json,
)
from rwkvseg.data.findings import Finding, from_error
from rwkvseg.data.io import PICTURE_SUFFIXES, case_id, case_suffix
from rwkvseg.data.label_names import parse_labels
from rwkvseg.data.layouts import KNOWN, unknown_layout
from rwkvseg.data.published import contest_parts, is_beside, list_beside, numbers_objects, pair_folders
from rwkvseg.data.transunet import is_transunet, known_labels, list_transunet
from rwkvseg.errors import DataError
from rwkvseg.wording import counted

HELD_BACK = ("val", "test", "imagesTs")
"""Parts whose labels may be kept back."""


@dataclass(frozen=True, slots=True)
class FoundCase:
    """The files of one case that are there; several masks count as one, joined."""

    id: str
    images: tuple[Path, ...] = ()
    labels: tuple[Path, ...] = ()
    part: str | None = None
    """Folder that holds it, where the layout has parts."""
    group: str | None = None
    instances: bool = False
    """Whether the label map numbers its objects, which are all label 1."""
    channels_last: bool = False
    """Whether the image's fourth axis, if it has one, is that of its channels."""


@dataclass(slots=True)
class Listing:
    """Cases of a data folder, sorted by id, and what was wrong with their names."""

    root: Path
    layout: str = ""
    cases: list[FoundCase] = field(default_factory=list)
    labels: dict[str, int] | None = None
    findings: list[Finding] = field(default_factory=list)

    def find(
        self, kind: str, what: str, cure: str, cases: Iterable[str] = (), file: Path | None = None
    ) -> None:
        """Add a finding."""
        inside = None if file is None else self.inside(file)
        self.findings.append(Finding(kind, what, cure, tuple(cases), inside))

    def inside(self, path: Path) -> str:
        """Path within the folder."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def list_folder(root: Path) -> Listing:
    """List every case of a data folder; nothing is decoded.

    Raises:
        DataError: no such folder, one that follows no known layout, or lists that contradict each other.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder. Give the folder that holds the data.")
    listing = Listing(root)
    settings = _settings(listing, root / "dataset.json")
    listing.layout, read = _detect(root, settings)
    read(listing, settings)
    if not listing.cases:
        raise DataError(f"{root} holds no images in the layout '{listing.layout}'. Expected {KNOWN}.")
    _name_labels(listing, settings)
    _name_groups(listing)
    return listing


def _settings(listing: Listing, path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except DataError as error:
        listing.findings.append(from_error("layout", error, listing.root))
        return {}


def _detect(root: Path, settings: Mapping[str, Any]) -> tuple[str, Callable[[Listing, dict[str, Any]], None]]:
    if (root / "imagesTr").is_dir():
        return ("nnunet", _list_nnunet) if _has_channels(root, settings) else ("msd", _list_msd)
    if pair_folders(root):
        return "images", _list_image_folders
    if is_transunet(root):
        return "transunet", _list_transunet
    if is_beside(root):
        return "beside", _list_beside
    raise unknown_layout(root)


def _has_channels(root: Path, settings: Mapping[str, Any]) -> bool:
    """Whether images are called CASE_0000: said in dataset.json, or most are and their labels are not."""
    if "channel_names" in settings:
        return True
    images = [case_id(path) for path in _pictures(root / "imagesTr")]
    labels = {case_id(path) for path in _pictures(root / "labelsTr")}
    numbered = [name for name in images if CHANNEL.match(name) and name not in labels]
    return len(numbered) > len(images) / 2


def _list_image_folders(listing: Listing, _: dict[str, Any]) -> None:
    for folders in pair_folders(listing.root):
        _list_pairs(listing, folders.images, folders.masks, folders.part)


def _list_transunet(listing: Listing, _: dict[str, Any]) -> None:
    found = list_transunet(listing.root)
    for case in found.cases:
        listing.cases.append(FoundCase(case.id, case.images, case.images, case.part, case.group))
    for path, names in found.missing.items():
        what = f"lists {counted(len(names), 'case')} without a file: {name_some(names)}"
        listing.find("missing_image", what, "Restore the files, or take them off the list", names, path)
    listing.labels = known_labels(found.cases, listing.root)


def _list_nnunet(listing: Listing, settings: dict[str, Any]) -> None:
    training, test = (_by_channel(listing, listing.root / name) for name in ("imagesTr", "imagesTs"))
    labels = {case_id(path): path for path in _unique(listing, listing.root / "labelsTr")}
    number = len(settings.get("channel_names", ())) or max(map(len, training.values()), default=0)
    for case, found in (*training.items(), *test.items()):
        if sorted(found) != list(range(number)) and not _is_picture(found):
            has = ", ".join(f"{channel:04d}" for channel in sorted(found))
            what = f"has the channels {has}, not 0000 to {number - 1:04d}"
            cure = "Add the files, or mend channel_names in dataset.json"
            listing.find("missing_channel", what, cure, (case,))
    images = {case: tuple(path for _, path in sorted(found.items())) for case, found in training.items()}
    _join(listing, images, {case: (path,) for case, path in labels.items()})
    _add_test(listing, [tuple(path for _, path in sorted(found.items())) for found in test.values()])


def _is_picture(channels: Mapping[int, Path]) -> bool:
    """Whether it is one picture, whose file may hold three channels."""
    return [*channels] == [0] and case_suffix(channels[0]) in PICTURE_SUFFIXES


def _by_channel(listing: Listing, folder: Path) -> dict[str, dict[int, Path]]:
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _unique(listing, folder):
        match = CHANNEL.match(case_id(path))
        if match is None:
            what, cure = "the name lacks the channel number of the nnU-Net layout", "Rename it to CASE_0000"
            listing.find("layout", what, cure, (case_id(path),), path)
            continue
        channels[match["case"]][int(match["channel"])] = path
    return channels


def _list_msd(listing: Listing, settings: dict[str, Any]) -> None:
    listed = settings.get("training")
    if not isinstance(listed, list) or not listed:
        _list_pairs(listing, listing.root / "imagesTr", listing.root / "labelsTr")
    else:
        for entry in listed:
            if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
                what = f"'training' in dataset.json lists {entry!r}"
                listing.find("layout", what, "Write each entry as {image: path, label: path}")
                continue
            _list_entry(listing, listing.root / str(entry["image"]), listing.root / str(entry["label"]))
    _add_test(listing, [(path,) for path in _unique(listing, listing.root / "imagesTs")])
    modality = settings.get("modality")
    if isinstance(modality, dict) and len(modality) > 1:
        listing.cases = [replace(case, channels_last=True) for case in listing.cases]


def _add_test(listing: Listing, images: Sequence[tuple[Path, ...]]) -> None:
    """Add the unlabelled cases of imagesTs, as a part beside imagesTr."""
    if not images:
        return
    listing.cases = [replace(case, part="imagesTr") for case in listing.cases]
    _add_unlabelled(listing, "imagesTs", images)


def _list_entry(listing: Listing, image: Path, label: Path) -> None:
    case = case_id(image)
    for kind, path in (("missing_image", image), ("missing_label", label)):
        if not path.is_file():
            what = f"{listing.inside(path)}, listed in dataset.json, does not exist"
            listing.find(kind, what, "Restore it, or take the case off the list", (case,), path)
    images, labels = ((path,) if path.is_file() else () for path in (image, label))
    listing.cases.append(FoundCase(case, images, labels))


def _list_beside(listing: Listing, _: dict[str, Any]) -> None:
    found = list_beside(listing.root)
    for first, second in found.twins:
        _refuse_twin(listing, second, first)
    images = {case: (path,) for case, path in found.images.items()}
    _join(listing, images, {case: tuple(paths) for case, paths in found.masks.items()})
    parts = contest_parts(found.images)
    listing.cases = [
        replace(case, part=parts.get(case.id), instances=numbers_objects(case.labels))
        for case in listing.cases
    ]


def _list_pairs(listing: Listing, images: Path, masks: Path, part: str | None = None) -> None:
    if not masks.is_dir():
        unlabelled = [(path,) for path in _unique(listing, images)]
        if unlabelled:
            _add_unlabelled(listing, part, unlabelled)
        return
    left = {case_id(path): path for path in _unique(listing, masks)}
    prefix = f"{part}_" if part else ""
    found, labels = {}, {}
    for image in _unique(listing, images):
        names = [name for ending in MASK_ENDINGS if (name := case_id(image) + ending) in left]
        case = prefix + case_id(image)
        found[case], labels[case] = (image,), tuple(left.pop(name) for name in names)
        if len(names) > 1:
            what = f"has {len(names)} masks: {', '.join(names)}"
            listing.find("layout", what, "Keep one", (case,), image)
    labels |= {prefix + name: (path,) for name, path in left.items()}
    _join(listing, found, labels, part)


def _join(
    listing: Listing,
    images: Mapping[str, tuple[Path, ...]],
    labels: Mapping[str, tuple[Path, ...]],
    part: str | None = None,
) -> None:
    """Make the cases, and findings of those that lack image or label."""
    for case in [*images, *(case for case in labels if case not in images)]:
        found = FoundCase(case, images.get(case, ()), labels.get(case, ()), part)
        listing.cases.append(found)
        if not found.images:
            cure = "Add the image under the same name, or move the label out"
            listing.find("missing_image", "the label has no image", cure, (case,), found.labels[0])
        elif not found.labels:
            cure = "Add the label under the same name, or move the image out"
            listing.find("missing_label", "the image has no label", cure, (case,), found.images[0])


def _add_unlabelled(listing: Listing, part: str | None, images: Sequence[tuple[Path, ...]]) -> None:
    """Add cases that have no folder of labels: all right in a part whose truth may be kept back."""
    where = listing.inside(images[0][0].parent)
    if part in HELD_BACK:
        cure = "Right for a part whose truth is kept back; else add its labels"
        what = f"{counted(len(images), 'case')} of {where} without labels, checked as images only"
        listing.find("unlabelled_part", what, cure)
    else:
        cure = "Add them in a folder masks/ beside it, under the images' names"
        listing.find("missing_label", f"{counted(len(images), 'image')} of {where} without masks", cure)
    prefix = f"{part}_" if part else ""
    listing.cases += [FoundCase(prefix + case_id(paths[0]), paths, (), part) for paths in images]


def _name_labels(listing: Listing, settings: Mapping[str, Any]) -> None:
    named = settings.get("labels", _settings(listing, listing.root / "labels.json").get("labels"))
    if named is None:
        return
    try:
        listing.labels = parse_labels(named, listing.root)
    except DataError as error:
        listing.findings.append(from_error("layout", error, listing.root))


def _name_groups(listing: Listing) -> None:
    """Groups from groups.csv or sequences.csv; without them, from ids such as patient007_frame01."""
    listing.cases.sort(key=lambda case: case.id)
    groups: Mapping[str, str] = {}
    path = groups_file(listing.root)
    if path is None:
        groups = {case.id: group for case in listing.cases if (group := group_in_id(case.id, case.part))}
    else:
        try:
            groups = read_groups(path)
        except (DataError, OSError, ValueError) as error:
            what = f"the groups cannot be read: {error}"
            listing.find("layout", what, "Write two columns, id and group, under a header", (), path)
        missing = [case.id for case in listing.cases if case.labels and case.id not in groups]
        if groups and missing:
            what = f"lists no group for {counted(len(missing), 'case')}: {name_some(missing)}"
            listing.find("layout", what, "Add their rows", missing, path)
    listing.cases = [replace(case, group=groups.get(case.id, case.group)) for case in listing.cases]


def _unique(listing: Listing, folder: Path) -> list[Path]:
    """Images of a folder; of two that differ in their suffix only, the first."""
    found: dict[str, Path] = {}
    for path in _pictures(folder):
        other = found.setdefault(case_id(path), path)
        if other is not path:
            _refuse_twin(listing, path, other)
    return list(found.values())


def _refuse_twin(listing: Listing, path: Path, other: Path) -> None:
    what = (
        f"has the name of {listing.inside(other)}, so that both would be the same case; only that was checked"
    )
    listing.find("layout", what, "Remove or rename one of them", (case_id(path),), path)


def _pictures(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        return ()
    return sorted(path for path in folder.iterdir() if is_image_name(path) and path.is_file())
