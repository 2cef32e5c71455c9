"""ACDC as volumes (Automated Cardiac Diagnosis Challenge)."""

from rwkvseg.data.datasets.description import DataSet

DATASET = DataSet(
    name="acdc_volumes",
    title="ACDC as volumes (Automated Cardiac Diagnosis Challenge)",
    modality="cine MR",
    dimensions=3,
    cases=(
        "100 training patients, end of diastole and of systole; 80 of them, 160 volumes, were checked: "
        "0.70-1.92 mm in the plane, slices 5-10 mm apart"
    ),
    labels={"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    layout=None,
    prepare="imagesTr/ and labelsTr/ under equal names, patient001_frame01.nii.gz (MSD layout)",
    split=(
        "the SSL4MIS 70/10/20 patient split; the file is cut to the 80 patients of the copy that was "
        "checked (110, 18 and 32 volumes)"
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
