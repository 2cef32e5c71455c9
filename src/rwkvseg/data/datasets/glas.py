"""GlaS (glands; MICCAI 2015, Warwick-QU)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="glas",
    title="GlaS (glands; MICCAI 2015, Warwick-QU)",
    aliases=("Warwick-QU",),
    modality="histology",
    dimensions=2,
    cases="165 images: 85 train, 80 test (60 test A, 20 test B)",
    labels={"background": 0, "gland": 1},
    layout="train_1.bmp + train_1_anno.bmp (numbered glands), testA_1.bmp, testB_1.bmp",
    prepare=(
        "as published, or train/ and test/ with images/ and masks/ each; the rule `official` sets a tenth of "
        "train aside for validation"
    ),
    split="official: 85 train, of which a tenth validates (three seeds), 80 test",
    parts=(77, 8, 80),
    split_files=("glas_seed0.json", "glas_seed1.json", "glas_seed2.json"),
    citation=(
        "Sirinukunwattana et al., Gland segmentation in colon histology images: The GlaS challenge "
        "contest, Medical Image Analysis 35, 2017"
    ),
    licence="research use, cite the authors",
    source="the GlaS contest of MICCAI 2015",
    unverified=("licence",),
)
