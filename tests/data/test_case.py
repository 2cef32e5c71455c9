import numpy as np
import pytest

from rwkvseg.data.case import Case
from rwkvseg.errors import GeometryError


def test_repr_states_shape_type_spacing_orientation_memory_and_id():
    affine = np.diag([-0.7, -0.7, 5.0, 1.0])
    case = Case(
        "p1", np.zeros((2, 4, 5, 6), np.float32), np.zeros((4, 5, 6), np.uint8), (0.7, 0.7, 5.0), affine
    )
    text = repr(case)
    for part in (
        "'p1'",
        "2 x (4, 5, 6) float32",
        "label=uint8",
        "0.7 x 0.7 x 5 mm",
        "orientation=LPS",
        "1.055 KiB",
    ):
        assert part in text


def test_replace_keeps_what_is_not_named():
    case = Case("a", np.zeros((1, 3, 4)))
    changed = case.replace(id="b")
    assert changed.id == "b"
    assert changed.image is case.image
    assert case.spatial_shape == (3, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": np.zeros((3, 4))}, r"shape \(3, 4\).*channel axis"),
        ({"label": np.zeros((4, 3), np.uint8)}, r"label has shape \(4, 3\), image has \(3, 4\).*Resample"),
        ({"spacing": (1.0,)}, "does not fit 2 axes"),
        ({"spacing": (1.0, -1.0)}, "positive"),
        ({"spacing": (1.0, float("nan"))}, "positive"),
        ({"affine": np.eye(3)}, "4 x 4"),
        ({"affine": np.full((4, 4), np.nan)}, "finite"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(GeometryError, match=message):
        Case(**({"id": "a", "image": np.zeros((1, 3, 4))} | fields))
