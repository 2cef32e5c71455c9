"""CVC-ColonDB (polyps)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="cvc_colondb",
    title="CVC-ColonDB (polyps)",
    aliases=("ColonDB",),
    modality="colonoscopy",
    dimensions=2,
    cases="380 frames, 574 x 500, chosen from 15 short videos",
    labels={"background": 0, "polyp": 1},
    layout=None,
    prepare="images/x.jpg and masks/x.png (x, x_mask, x_segmentation or x_gt)",
    split="random 8:1:1 with three seeds: the rule `paper`, seeds 0, 1, 2",
    parts=(304, 38, 38),
    groups="videos; which frame is of which is not verified. Name them in groups.csv",
    citation=(
        "Bernal et al., Towards automatic polyp detection with a polyp appearance model, Pattern "
        "Recognition 45(9), 2012"
    ),
    licence=None,
    source=None,
    unverified=("labels",),
)
