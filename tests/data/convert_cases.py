"""Folders to convert: volumes of every kind, and a set with parts, folds and unlabelled cases."""

import json

import nibabel
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scipy.spatial.transform import Rotation

from rwkvseg.data.layouts import open_data, read_case

NAMED = {"background": 0, "a": 1, "b": 2, "c": 3}


def oblique(spacing, degrees, offset):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = offset
    return affine


def write_nnunet(root, cases, labels=NAMED, channels=None, suffix=".nii.gz", **extra):
    """Write {id: (image (C, i, j, k), label, affine)} with NiBabel alone."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    number = 1
    for name, (image, label, affine) in cases.items():
        number = len(image)
        for channel, values in enumerate(image):
            path = root / "imagesTr" / f"{name}_{channel:04d}{suffix}"
            nibabel.save(nibabel.Nifti1Image(values, affine), path)
        nibabel.save(nibabel.Nifti1Image(label, affine), root / "labelsTr" / f"{name}{suffix}")
    names = channels or [f"c{index}" for index in range(number)]
    content = {"channel_names": {str(i): name for i, name in enumerate(names)}, "labels": labels, **extra}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@st.composite
def volumes(draw, channels=(1, 2)):
    """Odd shapes, spacings, oblique affines, every kind of intensity, labels up to 16 bits."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    number = draw(st.sampled_from(channels))
    dtype = np.dtype(draw(st.sampled_from(["u1", "i2", "u2", "f4"])))
    spacing = draw(st.tuples(*[st.floats(0.2, 9)] * 3))
    degrees = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    offset = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    floats = {"elements": st.floats(-1e4, 1e4, width=32)} if dtype.kind == "f" else {}
    image = draw(arrays_of.arrays(dtype, (number, *shape), **floats))
    label = draw(arrays_of.arrays(np.uint16, shape, elements=st.sampled_from([0, 1, 2, 3, 700])))
    return image, label, oblique(spacing, degrees, offset)


WIDE = NAMED | {"far": 700}


def fresh(tmp_path_factory, name="x"):
    return tmp_path_factory.mktemp(name)


def read_all(root, labels=None):
    data = open_data(root)
    return data, {files.id: read_case(files, labels or data.labels) for files in data.cases}


def same_geometry(one, other):
    np.testing.assert_allclose(one.affine, other.affine, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(one.spacing, other.spacing, rtol=1e-6)


def small(seed, shape=(4, 3, 5), channels=1):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 99, (channels, *shape)).astype(np.uint8)
    return image, generator.integers(0, 4, shape).astype(np.uint8), np.diag([1.0, 1, 3, 1])
