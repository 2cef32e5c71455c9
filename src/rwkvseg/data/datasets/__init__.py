"""Public data sets, one file each: labels, layout, split, citation, licence, where to get them."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
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
    """Return the description of a data set by its name or another it goes by.

    Capitals, spaces and signs do not matter.

    Raises:
        UsageError: unknown name; those that come near it and all known are listed.

    >>> get_dataset("Kvasir-SEG").parts
    (800, 100, 100)
    """
    spellings = {
        _plain(spelling): dataset
        for dataset in DATASETS.values()
        for spelling in (dataset.name, *dataset.aliases)
    }
    wanted = _plain(name)
    if wanted in spellings:
        return spellings[wanted]
    near = dict.fromkeys(spellings[alike].name for alike in get_close_matches(wanted, spellings, n=3))
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"unknown data set '{name}'. {hint}Choose one of {', '.join(DATASETS)}.")


def _plain(spelling: str) -> str:
    """Letters and digits alone, in lower case: Kvasir-SEG is kvasir_seg."""
    return re.sub(r"[\W_]", "", spelling.casefold())
