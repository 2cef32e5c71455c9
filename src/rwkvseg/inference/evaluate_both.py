"""Score predictions under both protocols, each into a folder of its own, and say where they part."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rwkvseg.data.files import list_images, name_some
from rwkvseg.data.io import case_id
from rwkvseg.errors import DataError
from rwkvseg.evaluation.both import Both, compare_protocols, write_both
from rwkvseg.evaluation.both_report import write_both_report
from rwkvseg.evaluation.protocols import PROTOCOLS, TOLERANCE
from rwkvseg.evaluation.regions import Regions
from rwkvseg.inference.evaluate import Evaluation, evaluate
from rwkvseg.inference.pairs import require_label_maps
from rwkvseg.wording import counted


@dataclass(frozen=True)
class BothEvaluations:
    """An evaluation under each protocol, and both beside each other."""

    strict: Evaluation
    transunet: Evaluation
    both: Both
    report: Path


def evaluate_both(
    predictions: Path,
    truth: Path,
    out: Path,
    *,
    transunet_predictions: Path | None = None,
    images: Path | None = None,
    tolerance: float = TOLERANCE,
    scored: Collection[str] | None = None,
    regions: Regions | None = None,
    seed: int = 0,
    on_case: Callable[[int, int], None] = lambda _done, _total: None,
) -> BothEvaluations:
    """Write OUT/strict/ and OUT/transunet/ as `evaluate` does, OUT/both.json, both.csv and report.html.

    Args:
        predictions: folder of label maps, scored under both protocols.
        truth: see `evaluate`.
        out: folder for the results.
        transunet_predictions: label maps that `predict --protocol transunet` made of the same cases, to be
            scored under "transunet" instead.
        images: see `evaluate`.
        tolerance: of NSD.
        scored: structures that count.
        regions: unions of labels to score beside them.
        seed: of the bootstrap.
        on_case: called with (done, total) after each case of each protocol.

    Raises:
        DataError: the two folders of predictions hold different cases; otherwise as `evaluate`.
    """
    if transunet_predictions is not None:
        _require_same_cases(predictions, transunet_predictions)
    rules: dict[str, Any] = {"tolerance": tolerance, "scored": scored, "regions": regions, "seed": seed}
    score: Callable[..., Evaluation] = partial(evaluate, truth=truth, images=images, **rules)
    strict = score(predictions, out=out / "strict", on_case=lambda done, n: on_case(done, 2 * n))
    transunet = score(
        transunet_predictions or predictions,
        out=out / "transunet",
        protocol="transunet",
        on_case=lambda done, n: on_case(n + done, 2 * n),
    )
    both = compare_protocols(
        (strict.summary, strict.scores),
        (transunet.summary, transunet.scores),
        {case: grid.spacing for case, grid in strict.context.grids.items()},
        notes=[*strict.context.warnings, *transunet.context.warnings, *_unseen_resize(strict, transunet)],
    )
    write_both(out / "both.json", out / "both.csv", both)
    reports = {str(name): f"{name}/report.html" for name in PROTOCOLS}
    write_both_report(out / "report.html", both, reports)
    return BothEvaluations(strict, transunet, both, out / "report.html")


def _unseen_resize(strict: Evaluation, transunet: Evaluation) -> list[str]:
    """One set of label maps for both protocols cannot show what the other rule of resizing would do."""
    record = strict.context.record
    resized = [case for case in record.resize.cases if case in strict.context.grids]
    if not resized or transunet.context.predictions != strict.context.predictions:
        return []
    return [
        f"resize: {len(resized)} of {counted(len(strict.context.grids), 'case')} ({name_some(resized, 8)}) "
        f"predicted at another size by the rule of {record.protocol} ({record.resize.rule}); the other "
        "protocol's label maps may differ there, which these figures do not show."
    ]


def _require_same_cases(first: Path, second: Path) -> None:
    for folder in (first, second):
        require_label_maps(folder)
    names = [{case_id(path) for path in list_images(folder)} for folder in (first, second)]
    alone = sorted(names[0] ^ names[1])
    if alone:
        raise DataError(
            f"{counted(len(alone), 'case is', 'cases are')} in only one of {first} and {second}: "
            f"{name_some(alone)}. Predict the same cases under both protocols."
        )
