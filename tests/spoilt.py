"""Spoiling a copy of the phantom, and what `verify_data` finds in it."""

import json

import nibabel
import numpy as np

from rwkvseg.data.verify import verify_data


def found(root, split=None):
    """Findings by kind."""
    result = verify_data(root, split)
    by_kind = {}
    for finding in result.findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    return by_kind


def only(root, kind, split=None):
    """The single finding, of the given kind."""
    findings = found(root, split)
    assert list(findings) == [kind], findings
    (finding,) = findings[kind]
    assert finding.what
    assert finding.cure
    return finding


def picture(root, index, folder="images"):
    return root / folder / f"phantom-{index:04d}.png"


def volume(root, index, folder="imagesTr"):
    return root / folder / f"phantom-{index:04d}{'_0000' if folder == 'imagesTr' else ''}.nii.gz"


def change_volume(path, change=None, affine=None, dtype=None):
    """Write a volume anew, its values or affine changed."""
    old = nibabel.load(path)
    values = np.asanyarray(old.dataobj).astype(dtype or old.get_data_dtype())
    if change is not None:
        change(values)
    nibabel.save(nibabel.Nifti1Image(values, old.affine if affine is None else affine), path)


def write_split(root, **parts):
    path = root.parent / "split.json"
    path.write_text(json.dumps({"train": [], "val": [], "test": []} | parts))
    return path


def ids(*numbers):
    return [f"phantom-{number:04d}" for number in numbers]


def split_of(root):
    return write_split(root, train=ids(*range(16)), val=ids(16, 17), test=ids(18, 19))
