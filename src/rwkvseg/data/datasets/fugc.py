"""FUGC 2025 (cervix, semi-supervised)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="fugc",
    title="FUGC 2025 (cervix, semi-supervised)",
    aliases=("FUGC 2025",),
    modality="ultrasound",
    dimensions=2,
    cases="890 images, 450 of them without label",
    labels=None,
    layout=None,
    prepare=(
        "train/, val/, test/ with images/ and masks/ each, labels named in labels.json; images without "
        "label are not used yet"
    ),
    split="50 labelled and 450 unlabelled train, 90 validation, 300 test",
    parts=(500, 90, 300),
    citation=None,
    licence=None,
    source=None,
)
