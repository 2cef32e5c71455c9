"""MSD Task04 Hippocampus."""

from rwkvseg.data.datasets.description import DataSet
from rwkvseg.data.downloads import Download

DATASET = DataSet(
    name="hippocampus",
    title="MSD Task04 Hippocampus",
    aliases=("Task04_Hippocampus", "MSD Hippocampus"),
    modality="MR",
    dimensions=3,
    cases="260 labelled volumes, about 35 x 50 x 36 voxels of 1 mm",
    labels={"background": 0, "anterior": 1, "posterior": 2},
    layout="MSD: Task04_Hippocampus/{dataset.json (training: [{image, label}]), imagesTr, labelsTr}",
    prepare="as published",
    split=(
        "none is official; five folds are customary. The file: the first 52 of the permutation of seed 0 "
        "validate, 208 train"
    ),
    parts=(208, 52, 0),
    split_files=("hippocampus_seed0.json",),
    citation="Antonelli et al., The Medical Segmentation Decathlon, 2022",
    licence="CC-BY-SA 4.0",
    source="medicaldecathlon.com",
    download=Download(  # as MONAI's DecathlonDataset fetches and checks it
        url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
        checksum="md5:9d24dba78a72977dbd1d2e110310f31b",
        folder="Task04_Hippocampus",
    ),
    unverified=("licence",),
)
