"""A data folder in, its fingerprint out: `rwkvseg data fingerprint`, and every training from what it reads.

One case is in memory at a time; of each case a few hundred bytes are kept, and of all cases together at most
two million intensities of each region.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rwkvseg.data.case import Case
from rwkvseg.data.case_facts import CaseFacts, gather_facts
from rwkvseg.data.checksums import file_checksums
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.fingerprint import ChannelFacts, Fingerprint, Unreadable
from rwkvseg.data.intensity_statistics import IntensityStatistics, values_per_case
from rwkvseg.data.layouts import DataFolder, open_data
from rwkvseg.data.listing import list_folder
from rwkvseg.data.reading import WHITE, read_case
from rwkvseg.errors import DataError
from rwkvseg.wording import counted


def take_fingerprint(
    root: Path, layout: str = "auto", on_case: Callable[[int, int], object] | None = None
) -> Fingerprint:
    """Read every labelled case of a data folder once.

    Cases that cannot be read are passed over and listed with the reason.

    Args:
        root: the data folder.
        layout: as of `open_data`.
        on_case: called with the number of cases done and in all.

    Raises:
        DataError: as `open_data`; a folder without labels; none of its cases can be read; pictures and
            volumes in one part. (Pictures to train on and volumes to test on are taken for pictures.)
    """
    folder = open_labelled(Path(root), layout)
    gatherer = Gatherer(folder)
    for done, files in enumerate(folder.cases, start=1):
        gatherer.take(files)
        if on_case is not None:
            on_case(done, len(folder.cases))
    return gatherer.fingerprint()


def open_labelled(root: Path, layout: str = "auto") -> DataFolder:
    """Open a data folder as `open_data`; where it has images but no label at all, say that.

    Raises:
        DataError: as `open_data`, or no label.
    """
    try:
        return open_data(root, layout)
    except DataError as error:
        try:
            cases = list_folder(root).cases
        except DataError:
            raise error from None
        if any(case.labels for case in cases):
            raise
        raise DataError(
            f"{root} holds {counted(len(cases), 'image')} and no label, so there is nothing to learn from. "
            "Put label maps under the images' names into masks/ (images/) or labelsTr/ (imagesTr/)."
        ) from error


class Gatherer:
    """Takes up the labelled cases of a folder one by one, as somebody reads them, and sums them up.

    Args:
        folder: the cases that are to come, and what is known of all; it may be a choice of its own.
    """

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self._gathered = _Gathered(values_per_case(len(folder.cases)))
        self._unreadable: list[Unreadable] = []

    def take(self, files: CaseFiles, case: Case | None = None) -> None:
        """Take up the case of these files, which are read where `case` is not given.

        Raises:
            DataError: a picture among volumes or a volume among pictures, within one part.
        """
        found = _look_at(files, self.folder, case)
        if isinstance(found, Unreadable):
            self._unreadable.append(found)
        else:
            self._gathered.add(*found)

    @property
    def checksums(self) -> dict[str, dict[str, str]]:
        """Of the files of the cases so far, by case id."""
        return {facts.id: facts.checksums for facts in self._gathered.cases}

    def fingerprint(self) -> Fingerprint:
        """Sum up what was taken; nothing may be taken after it.

        Raises:
            DataError: none of the cases could be read.
        """
        unreadable = self._unreadable
        if not self._gathered.cases:
            raise DataError(
                f"none of {counted(len(unreadable), 'case')} of {self.folder.root} can be read. "
                f"The first: {unreadable[0].why}"
            )
        return _sum_up(self.folder, self._gathered, unreadable)


def _look_at(files: CaseFiles, folder: DataFolder, case: Case | None) -> tuple[Case, CaseFacts] | Unreadable:
    try:
        case = read_case(files, folder.labels) if case is None else case
        return case, gather_facts(files, case, file_checksums(files, folder.root))
    except DataError as error:
        return Unreadable(files.id, str(error))
    except OSError as error:
        return Unreadable(files.id, f"cannot read {error.filename}: {error.strerror}.")


@dataclass(slots=True)
class _Gathered:
    """Facts and intensities so far."""

    per_case: int
    cases: list[CaseFacts] = field(default_factory=list)
    regions: dict[tuple[int, int | None], IntensityStatistics] = field(default_factory=dict)
    """(channel, label value; None: the whole image; -1: all that is labelled)."""

    def add(self, case: Case, facts: CaseFacts) -> None:
        first = next((case for case in self.cases if case.part == facts.part), facts)
        if len(first.shape) != len(facts.shape):
            picture, volume = sorted((first, facts), key=lambda item: len(item.shape))
            raise DataError(
                f"the folder mixes pictures ({picture.id}) and volumes ({volume.id}), which one network "
                "cannot take. Split it into two folders."
            )
        self.cases.append(facts)
        assert case.label is not None
        labelled = case.label != 0
        values = case.label[labelled]
        for index, channel in enumerate(case.image):
            self._region(index, None).add(channel.ravel(order="K"))
            inside = channel[labelled]
            self._region(index, -1).add(inside)
            for value in facts.voxels:
                if value:
                    self._region(index, value).add(inside[values == value])

    def take_white_as_one(self) -> None:
        """Black and white masks: their 255 is label 1."""
        self.cases = [
            replace(case, voxels={min(value, 1): number for value, number in case.voxels.items()})
            for case in self.cases
        ]
        self.regions = {
            (channel, 1 if value == WHITE else value): region
            for (channel, value), region in self.regions.items()
        }

    def take_volumes_as_slices(self) -> None:
        """Beside pictures in another part, a volume stands for its slices."""
        if len({len(case.shape) for case in self.cases}) > 1:
            self.cases = [case.sliced() if len(case.shape) == 3 else case for case in self.cases]

    def _region(self, channel: int, value: int | None) -> IntensityStatistics:
        return self.regions.setdefault((channel, value), IntensityStatistics(self.per_case))


def _sum_up(folder: DataFolder, gathered: _Gathered, unreadable: Sequence[Unreadable]) -> Fingerprint:
    values = {value for case in gathered.cases for value in case.voxels}
    if folder.labels is None and WHITE in values <= {0, WHITE}:
        gathered.take_white_as_one()
    gathered.take_volumes_as_slices()
    modality = folder.channels
    number = max(case.channels for case in gathered.cases)
    if modality is not None and len(modality) != number:
        modality = None
    summaries = {key: region.summary() for key, region in gathered.regions.items()}
    channels = []
    for index in range(number):
        whole = summaries[index, None]
        assert whole is not None
        classes = {
            value: found
            for (channel, value), found in summaries.items()
            if channel == index and value is not None and value > 0 and found is not None
        }
        name = modality[index] if modality else f"channel {index}"
        channels.append(ChannelFacts(name, whole, summaries[index, -1], dict(sorted(classes.items()))))
    labels = folder.labels or name_values(values)
    return Fingerprint(
        folder=folder,
        labels=labels,
        named=folder.labels is not None,
        modality=modality,
        cases=tuple(gathered.cases),
        channels=tuple(channels),
        unreadable=tuple(unreadable),
    )


def name_values(values: set[int]) -> dict[str, int] | None:
    """Names for the values of label maps that nothing names; None where they are not 0, 1, 2, ...

    >>> name_values({0, 255}), name_values({0, 1, 2}), name_values({0, 7})
    ({'background': 0, 'foreground': 1}, {'background': 0, 'label 1': 1, 'label 2': 2}, None)
    """
    if values <= {0, WHITE} or values <= {0, 1}:
        return {"background": 0, "foreground": 1}
    if (
        values - set(range(max(values) + 1))
        or min(values) < 0
        or not set(range(1, max(values) + 1)) <= values
    ):
        return None
    return {"background": 0} | {f"label {value}": value for value in range(1, max(values) + 1)}
