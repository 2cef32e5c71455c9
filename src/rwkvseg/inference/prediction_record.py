"""prediction.json, which tells by what the label maps beside it were made, and --report."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rwkvseg import __version__
from rwkvseg.inference.evaluation_context import RECORD
from rwkvseg.inference.predictor import Predictor, Protocol
from rwkvseg.output import write_json

RESIZE_RULES = {
    "strict": "probabilities resampled to the case's own grid, then arg-max",
    "transunet": "image by cubic spline to the network's size, arg-max, labels back by nearest neighbour",
}


@dataclass(frozen=True)
class Predicted:
    """What became of one case."""

    case: str
    file: Path
    seconds: float
    pixels: dict[str, int]  # label name -> number of pixels or voxels
    removed: dict[str, int]  # the same of what `keep_largest` made background
    resized: bool = False  # whether the network saw slices of another size than the case has


class PredictionRecord:
    """The record of label maps while they are written into the folder `out`.

    It names those that are there: before the first is written it is begun anew, and at the end, whatever
    ends the work, it tells which have been. A record of the same model, images and settings is gone on with.

    Args:
        out: the folder.
        predictor: the model.
        protocol: under which it predicts.
        source: path of the images as the user gave it.
        largest: names of labels of which only the largest part is kept.
        trained_on: ids of the cases that the model was trained on.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(
        self,
        out: Path,
        predictor: Predictor,
        protocol: Protocol,
        source: str,
        largest: list[str],
        trained_on: Collection[str] = (),
    ) -> None:
        self.out = out
        self.trained_on = trained_on
        self.done: list[Predicted] = []
        self._settings = describe(predictor, protocol, source, [])
        self._settings |= {"keep_largest": largest} if largest else {}
        self._begun = False
        self._cases: dict[str, str] = {}
        self._resized: list[str] = []
        self._series: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cases:
            self._write()
        elif self._begun:  # nothing that it could tell of
            (self.out / RECORD).unlink(missing_ok=True)

    def begin(self) -> None:
        """Say what the label maps are of, before the first of them is written."""
        if self._begun:
            return
        self._begun = True
        self._go_on()
        self._write()

    def add(self, item: Predicted, series: str | None) -> None:
        """Take up a case that is written, and the DICOM series that it is, if any."""
        self.done.append(item)
        self._cases[item.case] = item.file.name
        self._resized = [case for case in self._resized if case != item.case] + [item.case] * item.resized
        self._series |= {item.case: series} if series is not None else {}

    def _go_on(self) -> None:
        """Take up the cases of an earlier record, if all else is the same and their files are still there."""
        try:
            earlier = json.loads((self.out / RECORD).read_text(encoding="utf-8"))
            earlier.pop("trained_on", None)
            cases, series, resize = (
                earlier.pop("cases"),
                earlier.pop("dicom_series", {}),
                earlier.pop("resize"),
            )
            resized = resize.pop("cases")
            known = {case: name for case, name in cases.items() if (self.out / name).exists()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return  # none, or not one of ours
        ours = json.loads(json.dumps(self._settings))
        del ours["cases"], ours["resize"]["cases"]
        if earlier | {"resize": resize} == ours:
            self._cases = known
            self._resized = [case for case in resized if case in known]
            self._series = {case: uid for case, uid in series.items() if case in known}

    def _write(self) -> None:
        resize = self._settings["resize"] | {"cases": self._resized}
        record = self._settings | {"resize": resize, "cases": self._cases}
        seen = [case for case in self._cases if case in self.trained_on]
        record |= ({"dicom_series": self._series} if self._series else {}) | (
            {"trained_on": seen} if seen else {}
        )
        write_json(self.out / RECORD, record)


def describe(predictor: Predictor, protocol: Protocol, source: str, done: list[Predicted]) -> dict[str, Any]:
    """Return model and settings, and what was done with them."""
    description, options = predictor.description, predictor.options
    windows = {"overlap": options.overlap, "mirror": list(options.mirror)}
    return {
        "rwkvseg_version": __version__,
        "protocol": protocol,
        "resize": {
            "rule": RESIZE_RULES[protocol],
            "network_size": description.preprocessing.size,
            "cases": [item.case for item in done if item.resized],
        },
        **({"windows": windows} if predictor.sees_volumes else {}),
        "precision": predictor.precision,
        "labels": description.labels,
        "images": source,
        "model": {
            "name": description.architecture.name,
            "weights_sha256": description.weights_sha256,
            "protocol": description.protocol,
            "licence": description.licence,
        },
        "cases": {item.case: item.file.name for item in done},
    }


def write_report_json(
    path: Path, predictor: Predictor, protocol: Protocol, done: Sequence[Predicted]
) -> None:
    """Write for machines what was predicted: model, device, and per case file, seconds, pixels per label."""
    content = describe(predictor, protocol, "", list(done)) | {
        "device": str(predictor.device),
        "cases": [
            {
                "case": item.case,
                "file": str(item.file),
                "seconds": round(item.seconds, 4),
                "pixels": item.pixels,
                **({"removed": item.removed} if item.removed else {}),
            }
            for item in done
        ],
    }
    del content["images"]
    write_json(path, content)
