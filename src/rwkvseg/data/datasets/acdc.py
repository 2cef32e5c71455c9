"""ACDC, slice by slice (Automated Cardiac Diagnosis Challenge)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="acdc",
    title="ACDC, slice by slice (Automated Cardiac Diagnosis Challenge)",
    modality="cine MR",
    dimensions=2,
    cases="100 training patients, end of diastole and of systole",
    labels={"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    layout=(
        "TransUNet: ACDC_training_slices/patient100_frame13_slice_0.h5, "
        "ACDC_training_volumes/patient100_frame01.h5"
    ),
    prepare=(
        "as published by SSL4MIS (slices train, volumes validate and test; spacing is not in these files), "
        "or as volumes: imagesTr/ and labelsTr/ under equal names, patient001_frame01.nii.gz (MSD layout); "
        "2D networks take their slices"
    ),
    split=(
        "patients 031-100 train, 021-030 validation, 001-020 test. The split file is the SSL4MIS "
        "70/10/20 patient split, cut to the 80 patients of the copy that was checked"
    ),
    parts=(70, 10, 20),
    split_files=("acdc_ssl4mis.json",),
    groups="patients, named by the ids (patient001_frame01)",
    citation=(
        "Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-structures "
        "Segmentation and Diagnosis: Is the Problem Solved?, IEEE TMI 37(11), 2018"
    ),
    licence="CC BY-NC-SA 4.0: not for commercial use",
    source="the ACDC challenge of MICCAI 2017",
    unverified=("licence",),
)
