"""Synapse multi-organ segmentation (BTCV abdomen)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="synapse",
    title="Synapse multi-organ segmentation (BTCV abdomen)",
    aliases=("BTCV",),
    modality="CT",
    dimensions=2,
    cases="30 abdominal scans",
    labels={
        "background": 0,
        "aorta": 1,
        "gallbladder": 2,
        "left kidney": 3,
        "right kidney": 4,
        "liver": 5,
        "pancreas": 6,
        "spleen": 7,
        "stomach": 8,
    },
    layout=(
        "TransUNet: train_npz/case0005_slice000.npz, test_vol_h5/case0001.npy.h5, lists train.txt and "
        "test_vol.txt; image (HU clipped to -125..275, scaled to 0..1) and label"
    ),
    prepare=(
        "as published by TransUNet (the split file then names volumes for their slices; normalisation "
        "`none`), or as volumes: imagesTr/ and labelsTr/ under equal names (MSD layout), img0001 for the 3D "
        "recipe, case0001 for the 2D split"
    ),
    split=(
        "the TransUNet lists: 18 train, 12 test; no validation set, the paper reports the last epoch. "
        "The split file sets case0040 of the 18 aside for validation"
    ),
    parts=(18, 0, 12),
    split_files=("synapse_transunet.json", "synapse_nnformer.json"),
    citation=(
        "Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault: Workshop and Challenge, 2015"
    ),
    licence=None,
    source="the MICCAI 2015 Multi-Atlas Abdomen Labeling Challenge",
    unverified=("labels",),
)
