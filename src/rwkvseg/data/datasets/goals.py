"""GOALS (layers of the retina)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="goals",
    title="GOALS (layers of the retina)",
    modality="OCT",
    dimensions=2,
    cases="300 images",
    labels=None,
    layout=None,
    prepare=(
        "train/, val/, test/ with images/ and masks/ each; three layers and background, named in labels.json"
    ),
    split="official: 100 / 100 / 100",
    parts=(100, 100, 100),
    citation=None,
    licence=None,
    source=None,
)
