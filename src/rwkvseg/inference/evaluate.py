"""Score a folder of predictions against a folder of truths: table, CSV, summary.json, HTML report."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from rwkvseg.data.files import MASK_ENDINGS, list_images, with_groups
from rwkvseg.data.io import case_id, read_label
from rwkvseg.data.layouts import CaseFiles, detect_layout, find_inputs, open_data
from rwkvseg.data.reading import (
    AFFINE_TOLERANCE,
    check_label_values,
    label_values,
    read_case_label,
    read_to_show,
)
from rwkvseg.errors import DataError, GeometryError, MissingExtraError, UsageError
from rwkvseg.evaluation.protocols import TOLERANCE, ClassScore, Protocol, distance_unit, score_case
from rwkvseg.evaluation.regions import Regions, resolve_regions
from rwkvseg.evaluation.report import Picture, Section, make_picture, representative_cases, write_report
from rwkvseg.evaluation.score_files import write_csv, write_summary_csv, write_summary_json
from rwkvseg.evaluation.summary import Summary, summarise
from rwkvseg.inference.evaluation_context import Context, Grid, Record, Spacing, digest_of, read_record
from rwkvseg.inference.predictor import LabelMap
from rwkvseg.output import write_json
from rwkvseg.wording import counted


@dataclass(frozen=True)
class Pair:
    """A prediction, its truth and, for the pictures of the report, its image where one is known."""

    case: str
    prediction: Path
    truth: Path
    files: CaseFiles
    """Of the truth."""
    image: CaseFiles | None = None
    group: str | None = None


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

    @property
    def recorded_protocol(self) -> str | None:
        """The one `predict` wrote down."""
        return self.context.record.protocol


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
        UsageError: `scored` or `regions` name what no label does, or a tolerance that is no distance.
    """
    record = read_record(predictions)
    pictured = find_inputs(images) if images else _recorded_images(record)
    pairs, missing, found = _chosen_pairs(predictions, truth, pictured, only=only, layout=layout)
    labels = labels or record.labels or found or _labels_in_files(pairs)
    chosen = _check_scored(scored, labels, (predictions, truth))
    unions = resolve_regions(regions or {}, labels)
    rules: dict[str, Any] = {
        "labels": labels,
        "regions": unions,
        "protocol": protocol,
        "tolerance": tolerance,
    }
    score = partial(_score_pair, chosen=chosen, **rules)
    scores, grids = _score_all(pairs, score, protocol, on_case)
    unit = distance_unit(protocol, next(iter(grids.values())).spacing) if grids else "px"
    summary = summarise(
        scores, protocol=protocol, unit=unit, tolerance=tolerance, groups=_groups(pairs), seed=seed
    )
    left_out = [name for name, value in labels.items() if value != 0 and name not in chosen]
    behind = Context(predictions, truth, record, protocol, grids, _digests(pairs), missing, left_out)
    result = Evaluation(summary, scores, behind, out / "report.html")
    # whatever cannot be read is found before anything is written
    pictures = _pictures(pairs, scores, summary, labels)
    _write_files(out, result, pairs, tolerance)
    lines = behind.lines() | dict(context or {})
    excluded = behind.exclusions()
    write_report(
        result.report, summary, scores, pictures, context=lines, excluded=excluded, sections=sections
    )
    return result


def _chosen_pairs(
    predictions: Path,
    truth: Path,
    pictured: Sequence[CaseFiles],
    *,
    only: Collection[str] | None,
    layout: str,
) -> tuple[list[Pair], list[str], dict[str, int] | None]:
    pairs, missing, labels = pair_files(predictions, truth, pictured, layout=layout)
    if only is None:
        return pairs, missing, labels
    return [pair for pair in pairs if pair.case in only], [case for case in missing if case in only], labels


def _groups(pairs: Sequence[Pair]) -> dict[str, str | None] | None:
    """Patient or video of every case, where that of each is known."""
    groups = {pair.case: pair.group for pair in pairs}
    return None if None in groups.values() else groups


def _digests(pairs: Sequence[Pair]) -> dict[str, str]:
    return {
        "truth": digest_of(pair.truth for pair in pairs),
        "predictions": digest_of(pair.prediction for pair in pairs),
    }


def _score_all(
    pairs: Sequence[Pair],
    score: Callable[[Pair], tuple[list[ClassScore], Grid]],
    protocol: Protocol,
    on_case: Callable[[int, int], None],
) -> tuple[list[ClassScore], dict[str, Grid]]:
    scores: list[ClassScore] = []
    grids: dict[str, Grid] = {}
    unit = None
    for number, pair in enumerate(pairs, 1):
        found, grids[pair.case] = score(pair)
        unit = _same_unit(unit, distance_unit(protocol, grids[pair.case].spacing), pair)
        scores += found
        on_case(number, len(pairs))
    return scores, grids


def _score_pair(
    pair: Pair, *, labels: Mapping[str, int], chosen: Collection[str], **rules: Any
) -> tuple[list[ClassScore], Grid]:
    prediction, reference, spacing = _read_pair(pair, labels)
    found = score_case(pair.case, prediction, reference, labels=labels, spacing=spacing, **rules)
    counted = [entry for entry in found if entry.region or entry.name in chosen]
    return counted, Grid(reference.shape, spacing)


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


def pair_files(
    predictions: Path, truth: Path, images: Sequence[CaseFiles] = (), *, layout: str = "auto"
) -> tuple[list[Pair], list[str], dict[str, int] | None]:
    """Pair predictions with truths by case id; also the truths without prediction, and the data's labels.

    A prediction `x` belongs to the truth `x`, else to `x_mask`, `x_segmentation` or `x_gt`.

    Raises:
        DataError: no predictions, no truths, predictions without truth, or two truths of one case.
    """
    for folder in (predictions, truth):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder. Give the folder that holds the label maps.")
    predicted = {case_id(path): path for path in list_images(predictions)}
    if not predicted:
        raise DataError(f"{predictions} holds no label maps. Run `rwkvseg predict` into it first.")
    known, labels = _find_truths(truth, predicted, layout)
    orphans = [case for case in predicted if case not in known]
    if orphans:
        some = ", ".join(orphans[:5])
        raise DataError(
            f"{len(orphans)} of {counted(len(predicted), 'prediction')} without truth in {truth}: {some}. "
            "Give the truths of exactly these cases, under the same names."
        )
    pictured = {files.id: files for files in images}
    pairs = []
    for case, path in sorted(predicted.items()):
        files = known[case]
        assert files.label is not None
        pairs.append(
            Pair(case, path, files.label, files, files if files.images else pictured.get(case), files.group)
        )
    return pairs, sorted(set(known) - set(predicted)), labels


def _find_truths(
    truth: Path, predicted: Collection[str], layout: str
) -> tuple[dict[str, CaseFiles], dict[str, int] | None]:
    if detect_layout(truth) is not None:
        folder = open_data(truth, layout)
        return {case.id: case for case in folder.cases}, folder.labels
    paths = list_images(truth) or list_images(truth, arrays=True)
    if not paths:
        raise DataError(f"{truth} holds no label maps. Give the folder of the truths or the data folder.")
    found: dict[str, CaseFiles] = {}
    for path in paths:
        name = case_id(path)
        ending = next((end for end in MASK_ENDINGS if end and name.endswith(end)), "")
        case = name if name in predicted else name.removesuffix(ending)
        if case in found:
            raise DataError(f"{found[case].label} and {path} are both truths of case '{case}'. Keep one.")
        found[case] = CaseFiles(case, (), path)
    return {case.id: case for case in with_groups(truth, list(found.values()))}, None


def _recorded_images(record: Record) -> tuple[CaseFiles, ...]:
    """Images where `predict` found them; they are only for the pictures, so their absence is no fault."""
    try:
        series = tuple(record.dicom_series.values())
        return find_inputs(Path(record.images), series) if record.images else ()
    except (DataError, MissingExtraError, UsageError):
        return ()


def _labels_in_files(pairs: Sequence[Pair]) -> dict[str, int]:
    values = {0}
    for pair in pairs:
        for label, _ in (read_label(pair.prediction), read_case_label(pair.files)):
            values |= set(label_values(label))
    if values == {0, 255} or values == {0, 1, 255}:
        values = {0, 1}
    return {"background" if value == 0 else f"label {value}": value for value in sorted(values)}


def _read_pair(pair: Pair, labels: Mapping[str, int]) -> tuple[LabelMap, LabelMap, Spacing]:
    prediction, affine = read_label(pair.prediction)
    reference, truth_affine = read_case_label(pair.files, labels)
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"{pair.prediction} has size {prediction.shape}, its truth {pair.truth} has {reference.shape}. "
            "Predict on the image's own grid; `rwkvseg predict` does."
        )
    if affine is not None and truth_affine is not None:
        difference = float(np.abs(affine - truth_affine).max())
        if difference > AFFINE_TOLERANCE:
            raise GeometryError(
                f"the affine of {pair.prediction} differs from its truth's by up to {difference:.4g} mm. "
                "Predict on the image's own grid, or mend the header that is wrong."
            )
    spacing = None
    if truth_affine is not None:
        spacing = tuple(float(size) for size in nibabel.affines.voxel_sizes(truth_affine))
    prediction = check_label_values(prediction, labels, pair.prediction)
    return prediction, check_label_values(reference, labels, pair.truth), spacing


def _same_unit(unit: Any, found: Any, pair: Pair) -> Any:
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
    prediction, reference, spacing = _read_pair(pair, labels)
    image, affine = np.full((1, *reference.shape), 128, np.uint8), None
    if pair.image:
        read, found_affine = read_to_show(pair.image)
        if read.shape[1:] == reference.shape:
            image, affine = read, found_affine
    return make_picture(pair.case, image, reference, prediction, dsc, spacing, affine=affine)
