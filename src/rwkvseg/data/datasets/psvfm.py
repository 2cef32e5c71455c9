"""PSVFM (vessels of the placenta)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="psvfm",
    title="PSVFM (vessels of the placenta)",
    modality="fetoscopy",
    dimensions=2,
    cases="frames of 6 videos; their number is not verified",
    labels={"background": 0, "vessel": 1},
    layout=None,
    prepare="train/, val/, test/ with images/ and masks/ each",
    split="by video: 1-3 train, 4 validation, 5-6 test",
    groups="videos, which the split keeps whole",
    citation=None,
    licence=None,
    source=None,
    unverified=("labels",),
)
