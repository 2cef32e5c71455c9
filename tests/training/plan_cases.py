"""Fingerprints of folders that are nowhere: only what the rules of a plan look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkvseg.data.case_facts import CaseFacts
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.fingerprint import ChannelFacts, Fingerprint
from rwkvseg.data.intensity_statistics import PERCENTILES, IntensitySummary
from rwkvseg.data.layouts import DataFolder
from rwkvseg.data.splits import Split
from rwkvseg.training.plan_choices import PlanOptions, Task

GIB = 2**30


def facts(name: str, shape: tuple[int, ...], spacing: Any = None, **changes: Any) -> CaseFacts:
    """Facts of a case; of volumes 1 mm and RAS unless said otherwise."""
    volume = len(shape) == 3
    known: dict[str, Any] = {
        "id": name,
        "part": None,
        "group": None,
        "checksums": {},
        "shape": shape,
        "channels": 1 if volume else 3,
        "dtype": "int16" if volume else "uint8",
        "spacing": (spacing or (1.0, 1.0, 1.0)) if volume else None,
        "orientation": "RAS" if volume else None,
        "voxels": {0: 10, 1: 5},
        "box": (2,) * len(shape),
        "inner": shape,
        "labelled_outside": 0,
    }
    return CaseFacts(**known | changes)


def fingerprint(
    cases: Sequence[CaseFacts],
    *,
    modality: tuple[str, ...] | None = None,
    lowest: float = 0.0,
    classes: int = 2,
) -> Fingerprint:
    """Fingerprint of the cases, whose intensities begin at `lowest`."""
    percentiles = {f"{at:g}": lowest + at for at in PERCENTILES}
    whole = IntensitySummary(100, lowest + 50, 10.0, lowest - 1, lowest + 101, percentiles)
    files = tuple(
        CaseFiles(case.id, (Path(case.id),), Path(case.id), case.part, case.group) for case in cases
    )
    labels = {"background": 0} | {f"organ {value}": value for value in range(1, classes)}
    return Fingerprint(
        folder=DataFolder(Path("data"), "msd", files, labels),
        labels=labels,
        named=True,
        modality=modality,
        cases=tuple(cases),
        channels=tuple(ChannelFacts(f"channel {n}", whole, None, {}) for n in range(cases[0].channels)),
    )


def task_of(found: Fingerprint, memory: float = 8 * GIB, **options: Any) -> Task:
    """Task whose training part is all but the last case."""
    ids = [case.id for case in found.cases]
    split = Split("file", 0, tuple(ids[:-1]), (ids[-1],), ())
    assert found.labels is not None
    return Task(found, found.labels, split, PlanOptions(int(memory), **options))
