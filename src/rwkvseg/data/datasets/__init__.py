"""Public data sets, one file each: labels, layout, split, citation, licence, where to get them."""

from collections.abc import Mapping
from types import MappingProxyType

from rwkvseg.data.datasets import (
    acdc,
    acdc_volumes,
    busi,
    cvc_clinicdb,
    cvc_colondb,
    fugc,
    glas,
    goals,
    hippocampus,
    isic2017,
    kvasir_seg,
    psvfm,
    synapse,
)
from rwkvseg.data.datasets.description import NOT_VERIFIED, DataSet
from rwkvseg.errors import UsageError

__all__ = ["DATASETS", "NOT_VERIFIED", "DataSet", "get_dataset"]

PAPER = (synapse, acdc, goals, busi, cvc_clinicdb, cvc_colondb, kvasir_seg, isic2017, glas, psvfm, fugc)
DATASETS: Mapping[str, DataSet] = MappingProxyType(
    {module.DATASET.name: module.DATASET for module in (*PAPER, acdc_volumes, hippocampus)}
)
"""Name -> description, the paper's eleven first."""


def get_dataset(name: str) -> DataSet:
    """Return the description of a data set.

    Raises:
        UsageError: unknown name; the known are listed.

    >>> get_dataset("kvasir_seg").parts
    (800, 100, 100)
    """
    if name not in DATASETS:
        raise UsageError(f"unknown data set '{name}'. Choose one of {', '.join(DATASETS)}.")
    return DATASETS[name]
