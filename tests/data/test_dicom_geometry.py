"""Where slices lie: any orientation, spacing, order and tilt against world coordinates, and every refusal."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_cases import LPS_TO_RAS, Grid, lps
from rwkvseg.data.dicom_geometry import Plane, stack_planes
from rwkvseg.errors import GeometryError

angles = st.tuples(*[st.floats(-180, 180)] * 3)
lengths = st.floats(0.05, 20)


def planes_of(grid, order=None):
    rows, columns, slices = grid.shape
    return [
        Plane(
            f"slice {k}",
            (rows, columns),
            tuple(grid.place(0, 0, k)),
            (*grid.along_row, *grid.down_column),
            grid.spacing[:2],
        )
        for k in (range(slices) if order is None else order)
    ]


@given(
    degrees=angles,
    spacing=st.tuples(lengths, lengths, lengths),
    order=st.permutations(range(6)),
    shear=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
)
def test_any_stack_lies_where_its_headers_say(degrees, spacing, order, shear):
    grid = Grid.rotated(degrees, shape=(4, 3, 6), spacing=spacing)
    aside = spacing[2] * (shear[0] * np.array(grid.along_row) + shear[1] * np.array(grid.down_column))
    grid = replace(grid, shear=tuple(aside))
    stack = stack_planes(planes_of(grid, order), "series")
    assert stack.shape == (3, 4, 6)
    assert [order[index] for index in stack.order] == list(range(6))
    expected = grid.place(*np.indices((4, 3, 6))).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(lps(stack.shape, stack.affine), expected, atol=1e-9)
    assert np.linalg.det(stack.affine[:3, :3]) > 0
    tangent = np.hypot(*shear)
    if 5 * tangent * spacing[2] > 0.51 * min(spacing[:2]):
        assert stack.tilt == pytest.approx(np.degrees(np.arctan(tangent)), abs=1e-6)
    elif 5 * tangent * spacing[2] < 0.49 * min(spacing[:2]):
        assert stack.tilt == 0


def test_plain_axial_slices():
    stack = stack_planes(planes_of(Grid()), "series")
    expected = np.diag([-0.5, -0.8, 2.5, 1])
    expected[:3, 3] = np.array(Grid().origin) * LPS_TO_RAS
    np.testing.assert_allclose(stack.affine, expected)
    assert stack.tilt == 0


def test_a_single_slice_takes_its_thickness():
    grid = Grid.rotated((10, 20, 30), shape=(4, 3, 1), spacing=(1, 2, 6.5))
    stack = stack_planes(planes_of(grid), "series", thickness=6.5)
    normal = np.cross(grid.along_row, grid.down_column)
    np.testing.assert_allclose(stack.affine[:3, 2], 6.5 * normal * LPS_TO_RAS)


@pytest.mark.parametrize("decimals", [2, 3])
def test_rounded_positions_pass(decimals):
    grid = Grid.rotated((3, -8, 12), shape=(512, 512, 40), spacing=(0.7, 0.7, 1.25))
    planes = [replace(plane, position=tuple(np.round(plane.position, decimals))) for plane in planes_of(grid)]
    stack = stack_planes(planes, "series")
    for k, plane in enumerate(planes):
        found = (stack.affine @ [0, 0, k, 1])[:3] * LPS_TO_RAS
        np.testing.assert_allclose(found, plane.position, atol=0.02)
    assert stack.tilt == 0


def refusal(planes):
    with pytest.raises(GeometryError) as caught:
        stack_planes(planes, "the series")
    return str(caught.value)


def test_a_missing_slice_is_named_by_its_neighbours():
    planes = planes_of(Grid(shape=(4, 3, 8), origin=(0, 0, -10)))
    told = refusal([*planes[:3], *planes[4:]])
    assert told.startswith(
        "the series has 7 slices 2.5 mm apart, but 5 mm from -5 mm (slice 2) to 0 mm (slice 4)"
    )
    assert "fetch the whole series again" in told


def test_many_gaps_are_counted():
    planes = planes_of(Grid(shape=(4, 3, 30)))
    told = refusal([plane for k, plane in enumerate(planes) if k % 6 != 5])
    assert told.count("5 mm from") == 3
    assert ", and 1 more" in told


def test_slices_that_creep_together_are_refused():
    planes = [
        replace(plane, position=(0, 0, height))
        for plane, height in zip(
            planes_of(Grid(shape=(4, 3, 9))), np.cumsum(np.linspace(1, 1.06, 9)), strict=True
        )
    ]
    assert "lies 0.06 mm off the line of even steps" in refusal(planes)


def test_a_slice_that_was_moved_aside_is_refused():
    planes = planes_of(Grid())
    planes[2] = replace(planes[2], position=tuple(np.add(planes[2].position, (0.3, 0, 0))))
    assert "slice 2 lies 0.3 mm off the line" in refusal(planes)


def test_two_slices_at_one_place():
    planes = planes_of(Grid())
    told = refusal([*planes, replace(planes[3], name="again")])
    assert told.startswith("the series has 6 slices at 5 places: slice 3 and again both lie at 107.5 mm")
    told = refusal(planes * 3)
    assert "15 slices at 5 places" in told
    assert "times, echoes, b-values" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": (4, 4)}, "2 kinds: 4 of 7 x 9 pixels, 1 of 4 x 4 pixels"),
        (
            {"orientation": (0, 1, 0, 0, 0, -1)},
            "4 of orientation (1, 0, 0, 0, 1, 0), 1 of orientation (0, 1, 0, 0, 0, -1)",
        ),
        ({"orientation": (-1, 0, 0, 0, 1, 0)}, "1 of orientation (-1, 0, 0, 0, 1, 0)"),
        ({"spacing": (0.8, 0.501)}, "1 of spacing (0.8, 0.501)"),
    ],
)
def test_mixed_slices_are_counted(change, told):
    planes = planes_of(Grid())
    message = refusal([*planes[:4], replace(planes[4], **change)])
    assert told in message
    assert "leave it out, or put each kind into a series of its own" in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"orientation": (1, 0, 0, 0.1, 1, 0)}, "is not two unit vectors at a right angle"),
        ({"orientation": (0, 0, 0, 0, 0, 0)}, "is not two unit vectors"),
        ({"orientation": (float("nan"), 0, 0, 0, 1, 0)}, "is not two unit vectors"),
        ({"spacing": (0.0, 1.0)}, "states a pixel spacing of (0, 1) mm"),
        ({"position": (0.0, float("inf"), 0.0)}, "at (0, inf, 0)"),
    ],
)
def test_headers_that_cannot_be(change, told):
    assert told in refusal([replace(planes_of(Grid())[0], **change)])
