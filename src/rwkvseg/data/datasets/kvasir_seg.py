"""Kvasir-SEG (polyps)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="kvasir_seg",
    title="Kvasir-SEG (polyps)",
    aliases=("Kvasir",),
    modality="colonoscopy",
    dimensions=2,
    cases="1000 images, 332 x 487 to 1920 x 1072",
    labels={"background": 0, "polyp": 1},
    layout=None,
    prepare=(
        "images/x.jpg and masks/x.png (x, x_mask, x_segmentation or x_gt); JPEG masks are taken as black and "
        "white"
    ),
    split="random 8:1:1 with three seeds: the rule `paper`, seeds 0, 1, 2",
    parts=(800, 100, 100),
    split_files=("kvasir_seg_seed0.json", "kvasir_seg_seed1.json", "kvasir_seg_seed2.json"),
    citation="Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MultiMedia Modeling (MMM) 2020",
    licence="academic and research use without permission, commercial use with prior permission",
    source="github.com/DebeshJha/Kvasir-SEG names the terms",
)
