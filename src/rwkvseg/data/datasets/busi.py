"""BUSI (breast ultrasound images)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="busi",
    title="BUSI (breast ultrasound images)",
    aliases=("Dataset_BUSI_with_GT",),
    modality="ultrasound",
    dimensions=2,
    cases="780 images: normal, benign, malignant",
    labels={"background": 0, "tumor": 1},
    layout=(
        "benign/benign (1).png + benign (1)_mask.png; several masks of one image are joined; normals "
        "have empty masks"
    ),
    prepare="as published",
    split=(
        "random 8:1:1 with three seeds: the rule `paper`, seeds 0, 1, 2; all three classes of images are used"
    ),
    parts=(624, 78, 78),
    citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28:104863, 2020",
    licence="article CC BY 4.0, files CC0 on Kaggle",
    source="Kaggle",
    unverified=("licence", "source"),
)
