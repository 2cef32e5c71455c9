"""Arrays and spacing in, numbers out: metrics, protocols, statistics, summaries and the report."""

from rwkvseg.evaluation.metrics import (
    assd,
    dice,
    hausdorff_95,
    iou,
    nsd,
    precision,
    recall,
    volume_difference,
)
from rwkvseg.evaluation.protocols import PROTOCOLS, ClassScore, Protocol, distance_unit, score_case
from rwkvseg.evaluation.score_files import write_csv, write_summary_json
from rwkvseg.evaluation.statistics import Interval, PairedTest, bootstrap_interval, paired_permutation_test
from rwkvseg.evaluation.summary import (
    CaseMean,
    ClassSummary,
    Summary,
    summarise,
)

__all__ = [
    "PROTOCOLS",
    "CaseMean",
    "ClassScore",
    "ClassSummary",
    "Interval",
    "PairedTest",
    "Protocol",
    "Summary",
    "assd",
    "bootstrap_interval",
    "dice",
    "distance_unit",
    "hausdorff_95",
    "iou",
    "nsd",
    "paired_permutation_test",
    "precision",
    "recall",
    "score_case",
    "summarise",
    "volume_difference",
    "write_csv",
    "write_summary_json",
]
