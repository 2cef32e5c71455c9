"""CVC-ClinicDB (polyps)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="cvc_clinicdb",
    title="CVC-ClinicDB (polyps)",
    aliases=("ClinicDB",),
    modality="colonoscopy",
    dimensions=2,
    cases="612 frames of 29 sequences from 25 videos",
    labels={"background": 0, "polyp": 1},
    layout="Original/1.tif + Ground Truth/1.tif",
    prepare=(
        "as published, or images/x.jpg and masks/x.png (x, x_mask, x_segmentation or x_gt); sequences.csv "
        "(frame,sequence) for groups"
    ),
    split=(
        "random 8:1:1 with three seeds: the rule `paper`, seeds 0, 1, 2. Sequences cross its parts; "
        "`grouped` keeps them whole"
    ),
    parts=(490, 61, 61),
    split_files=(
        "cvc_clinicdb_seed0.json",
        "cvc_clinicdb_seed1.json",
        "cvc_clinicdb_seed2.json",
        "cvc_clinicdb_grouped_seed0.json",
        "cvc_clinicdb_grouped_seed1.json",
        "cvc_clinicdb_grouped_seed2.json",
    ),
    groups="sequences, listed in the README of the data set",
    citation=(
        "Bernal et al., WM-DOVA maps for accurate polyp highlighting in colonoscopy, Computerized "
        "Medical Imaging and Graphics 43, 2015"
    ),
    licence=(
        "research and education only, commercial use forbidden; images property of Hospital Clinic "
        "Barcelona, ground truth of CVC Barcelona"
    ),
    source=None,
)
