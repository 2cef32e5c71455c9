"""Arrays and spacing in, numbers out: metrics, protocols, statistics, summaries and the report."""

from rwkvseg.evaluation.metrics import dice, hausdorff_95
from rwkvseg.evaluation.protocols import PROTOCOLS, ClassScore, Protocol, distance_unit, score_case
from rwkvseg.evaluation.statistics import Interval, PairedTest, bootstrap_interval, paired_permutation_test
from rwkvseg.evaluation.summary import (
    CaseMean,
    ClassSummary,
    Summary,
    summarise,
    write_csv,
    write_summary_json,
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
    "bootstrap_interval",
    "dice",
    "distance_unit",
    "hausdorff_95",
    "paired_permutation_test",
    "score_case",
    "summarise",
    "write_csv",
    "write_summary_json",
]
