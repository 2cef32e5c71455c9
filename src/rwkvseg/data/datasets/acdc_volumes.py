"""ACDC as volumes (Automated Cardiac Diagnosis Challenge): the set of acdc.py, not cut into slices."""

from dataclasses import replace

from rwkvseg.data.datasets import acdc

DATASET = replace(
    acdc.DATASET,
    name="acdc_volumes",
    title="ACDC as volumes (Automated Cardiac Diagnosis Challenge)",
    aliases=("ACDC 3D",),
    dimensions=3,
    cases=(
        "100 training patients, end of diastole and of systole; 80 of them, 160 volumes, were checked: "
        "0.70-1.92 mm in the plane, slices 5-10 mm apart"
    ),
    layout=None,
    prepare="imagesTr/ and labelsTr/ under equal names, patient001_frame01.nii.gz (MSD layout)",
    split=(
        "the SSL4MIS 70/10/20 patient split; the file is cut to the 80 patients of the copy that was "
        "checked (110, 18 and 32 volumes)"
    ),
)
