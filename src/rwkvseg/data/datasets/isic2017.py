"""ISIC 2017, task 1 (skin lesions)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="isic2017",
    title="ISIC 2017, task 1 (skin lesions)",
    modality="dermoscopy",
    dimensions=2,
    cases="2750 images",
    labels={"background": 0, "lesion": 1},
    layout="ISIC_0000000.jpg + ISIC_0000000_segmentation.png",
    prepare=(
        "the challenge's archives unpacked in one folder (ISIC-2017_Training_Data, "
        "ISIC-2017_Training_Part1_GroundTruth, ...); or train/, val/, test/ with images/ and masks/ each"
    ),
    split="official: 2000 / 150 / 600. The split file is of a copy without the test masks",
    parts=(2000, 150, 600),
    split_files=("isic2017_official.json",),
    citation=(
        "Codella et al., Skin Lesion Analysis Toward Melanoma Detection: A Challenge at ISBI 2017, "
        "hosted by ISIC, ISBI 2018"
    ),
    licence="CC-0",
    source="the ISIC challenge 2017",
    unverified=("licence",),
)
