"""Score a folder of predictions against a folder of truths: table, CSV, summary.json, HTML report."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.io import expected_pixels
from rwkvseg.data.reading import read_to_show
from rwkvseg.errors import DataError, UsageError
from rwkvseg.evaluation.pictures import Picture, make_picture, representative_cases
from rwkvseg.evaluation.protocols import TOLERANCE, ClassScore, Protocol, distance_unit, score_case
from rwkvseg.evaluation.regions import Regions, resolve_regions
from rwkvseg.evaluation.report import Section, write_report
from rwkvseg.evaluation.score_files import write_csv, write_summary_csv, write_summary_json
from rwkvseg.evaluation.summary import Summary, Unit, summarise
from rwkvseg.inference.evaluation_context import Context, Grid, read_record
from rwkvseg.inference.pairs import Pair, labels_in_files, pair_files, read_pair, recorded_images
from rwkvseg.output import require_writable, write_json
from rwkvseg.parallel import available_cores, map_in_order

MOST_PIXELS_AT_ONCE = 2**25
"""Of all the cases that are being scored; each takes some 16 bytes, and a larger case is scored alone."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases, their summary, and what was left out."""

    summary: Summary
    scores: list[ClassScore]
    context: Context
    report: Path

    @property
    def not_predicted(self) -> list[str]:
        """Truths without a prediction, which no figure counts."""
        return list(self.context.not_predicted)


def evaluate(
    predictions: Path,
    truth: Path,
    out: Path,
    *,
    labels: Mapping[str, int] | None = None,
    images: Path | None = None,
    only: Collection[str] | None = None,
    layout: str = "auto",
    protocol: Protocol = "strict",
    tolerance: float = TOLERANCE,
    scored: Collection[str] | None = None,
    regions: Regions | None = None,
    seed: int = 0,
    context: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
    on_case: Callable[[int, int], None] = lambda _done, _total: None,
) -> Evaluation:
    """Score every prediction; write scores.csv, summary.csv, summary.json and report.html into `out`.

    Args:
        predictions: folder of label maps, such as `predict` writes.
        truth: folder of label maps of the same names, or a data folder.
        out: folder for the results, made when missing.
        labels: name -> value; else those of the predictions' record, of the data folder, or the values found.
        images: folder of the images behind the report's pictures; else the truth's, or the recorded one if
            it is still there.
        only: ids of the cases to score, when others are no concern of this evaluation.
        layout: of the data folder, see `open_data`.
        protocol: scoring rules, see docs/explanation/evaluation.md.
        tolerance: of NSD, in mm for volumes, in pixels for pictures and under "transunet".
        scored: names of the structures that count, where the literature leaves some out; None for all.
        regions: unions of labels to score beside the classes, see `evaluation.regions`; no mean counts them.
        seed: of the bootstrap.
        context: lines for the head of the report.
        sections: what else the report shows.
        on_case: called with (done, total) after each case.

    Raises:
        DataError: a prediction without truth, nothing to score, an unreadable file, or pictures (px) among
            volumes (mm).
        GeometryError: prediction and truth on different grids.
        OutputError: the results cannot be written.
        UsageError: `out` is one of the other two, `scored` or `regions` name what no label does, or a
            tolerance that is no distance.
    """
    require_writable(out)
    if out.resolve() in (predictions.resolve(), truth.resolve()):
        raise UsageError(f"the output folder {out} holds the label maps. Choose another --out.")
    record = read_record(predictions)
    pictured = find_inputs(images) if images else recorded_images(record)
    found = pair_files(predictions, truth, pictured, layout=layout).only(only)
    labels = labels or record.labels or found.labels or labels_in_files(found.pairs)
    chosen = _check_scored(scored, labels, (predictions, truth))
    rules = _Rules(labels, chosen, resolve_regions(regions or {}, labels), protocol, tolerance)
    scores, grids, unit = _score_all(found.pairs, rules, on_case)
    summary = summarise(
        scores, protocol=protocol, unit=unit, tolerance=tolerance, groups=found.groups, seed=seed
    )
    behind = Context(
        predictions, truth, record, protocol, grids, found.digests, found.not_predicted, rules.left_out
    )
    result = Evaluation(summary, scores, behind, out / "report.html")
    # whatever cannot be read is found before anything is written
    pictures = _pictures(found.pairs, scores, summary, labels)
    _write_files(out, result, found.pairs, tolerance)
    _write_report(result, pictures, context or {}, sections)
    return result


def _check_scored(
    scored: Collection[str] | None, labels: Mapping[str, int], folders: tuple[Path, Path]
) -> set[str]:
    structures = {name for name, value in labels.items() if value != 0}
    if not structures:
        raise DataError(
            f"neither {folders[0]} nor {folders[1]} holds anything but background, so nothing tells the "
            "labels. Give the data folder as truth; its dataset.json names them."
        )
    unknown = sorted(set(scored or ()) - structures)
    if unknown or (scored is not None and not scored):
        raise UsageError(
            f"scored names {', '.join(unknown) or 'nothing'}; known are {', '.join(sorted(structures))}. "
            "Name some of these, or leave it out to score all."
        )
    return structures if scored is None else set(scored)


@dataclass(frozen=True)
class _Rules:
    """What is scored, and how."""

    labels: Mapping[str, int]
    chosen: Collection[str]
    """Names of the structures that count."""
    regions: Mapping[str, tuple[int, ...]]
    protocol: Protocol
    tolerance: float

    @property
    def left_out(self) -> list[str]:
        """Structures that do not count."""
        return [name for name, value in self.labels.items() if value != 0 and name not in self.chosen]

    def score(self, pair: Pair) -> tuple[list[ClassScore], Grid]:
        """Scores of one case, and its grid."""
        prediction, reference, spacing = read_pair(pair, self.labels)
        found = score_case(
            pair.case,
            prediction,
            reference,
            labels=self.labels,
            spacing=spacing,
            regions=self.regions,
            protocol=self.protocol,
            tolerance=self.tolerance,
        )
        counted = [entry for entry in found if entry.region or entry.name in self.chosen]
        return counted, Grid(reference.shape, spacing)


def _score_all(
    pairs: Sequence[Pair], rules: _Rules, on_case: Callable[[int, int], None]
) -> tuple[list[ClassScore], dict[str, Grid], Unit]:
    """Scores, grids by case, and the unit of all distances.

    Raises:
        DataError: pictures (px) among volumes (mm).
    """
    scores: list[ClassScore] = []
    grids: dict[str, Grid] = {}
    unit: Unit | None = None
    scored = map_in_order(
        rules.score,
        pairs,
        threads=available_cores(),
        cost=lambda pair: expected_pixels(pair.prediction),
        room=MOST_PIXELS_AT_ONCE,
    )
    for number, (pair, (found, grids[pair.case])) in enumerate(zip(pairs, scored, strict=True), 1):
        unit = _same_unit(unit, distance_unit(rules.protocol, grids[pair.case].spacing), pair)
        scores += found
        on_case(number, len(pairs))
    return scores, grids, unit or "px"


def _same_unit(unit: Unit | None, found: Unit, pair: Pair) -> Unit:
    if unit not in (None, found):
        raise DataError(
            f"{pair.truth} is measured in {found}, the cases before it in {unit}. "
            "Evaluate pictures and volumes apart."
        )
    return found


def _write_files(out: Path, result: Evaluation, pairs: Sequence[Pair], tolerance: float) -> None:
    """Everything but the report."""
    summary, scores, context = result.summary, result.scores, result.context
    write_csv(out / "scores.csv", scores, summary.unit, tolerance=tolerance)
    write_summary_csv(out / "summary.csv", summary)
    write_summary_json(
        out / "summary.json",
        summary,
        scores,
        prediction_files={pair.case: str(pair.prediction) for pair in pairs},
        truth_files={pair.case: str(pair.truth) for pair in pairs},
        image_files={
            pair.case: str(pair.image.images[0]) for pair in pairs if pair.image and pair.image.series is None
        },
        tolerance=tolerance,
        context=context.to_json(),
    )
    if context.not_predicted:
        write_json(out / "not_predicted.json", list(context.not_predicted))


def _write_report(
    result: Evaluation,
    pictures: Mapping[str, Sequence[Picture]],
    context: Mapping[str, str],
    sections: Sequence[Section],
) -> None:
    write_report(
        result.report,
        result.summary,
        result.scores,
        pictures,
        context=result.context.lines() | dict(context),
        excluded=result.context.exclusions(),
        sections=sections,
    )


def _pictures(
    pairs: Sequence[Pair], scores: Sequence[ClassScore], summary: Summary, labels: Mapping[str, int]
) -> dict[str, list[Picture]]:
    by_case = {pair.case: pair for pair in pairs}
    mean = {case.case: case.dsc for case in summary.cases}
    drawn = {}
    for kind, cases in representative_cases(scores).items():
        drawn[kind] = [_picture(by_case[case], labels, mean[case]) for case in cases]
    return drawn


def _picture(pair: Pair, labels: Mapping[str, int], dsc: float) -> Picture:
    prediction, reference, spacing = read_pair(pair, labels)
    image, affine = np.full((1, *reference.shape), 128, np.uint8), None
    if pair.image:
        read, found_affine = read_to_show(pair.image)
        if read.shape[1:] == reference.shape:
            image, affine = read, found_affine
    return make_picture(pair.case, image, reference, prediction, dsc, spacing=spacing, affine=affine)
