"""Rules for volumes, on fingerprints of the kinds that the field has."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import GIB, facts, fingerprint, task_of

from rwkvseg.errors import UsageError
from rwkvseg.models.urwkv3d_strides import strides_from_spacing
from rwkvseg.training.plan_choices import nested
from rwkvseg.training.plan_memory import estimate_memory
from rwkvseg.training.plan_volume_choices import plan_volumes
from rwkvseg.training.plan_volumes import MOST, find_grid, first_patch, fit_patch, make_patch, smaller_patches

SYNAPSE = [(512, 512, 85 + 9 * n) for n in range(9)]
CT = (0.76, 0.76, 3.0)


def hippocampus(number=12):
    return fingerprint([facts(f"h{n}", (31 + n, 40 + n, 36)) for n in range(number)], classes=3)


def synapse():
    return fingerprint([facts(f"s{n}", s, CT) for n, s in enumerate(SYNAPSE)], modality=("CT",), classes=9)


def acdc():
    spacings = [(1.37, 1.37, 10.0), (1.56, 1.56, 10.0), (1.68, 1.68, 5.0)] * 4
    return fingerprint([facts(f"a{n}", (216, 256, 8 + n % 3), mm) for n, mm in enumerate(spacings)])


def planned(found, memory=8 * GIB, **options):
    choices, fitted = plan_volumes(task_of(found, memory, **options))
    assert fitted.memory.total <= memory
    return nested(choices), fitted


def test_small_isotropic_volumes_are_held_whole():
    content, fitted = planned(hippocampus())
    assert content["preprocessing"] == {
        "dimensions": 3,
        "channels": 1,
        "patch": [48, 56, 40],
        "spacing": None,
        "normalisation": "percentile",
    }
    assert content["training"]["foreground_fraction"] == 0
    assert content["training"]["batch_size"] == fitted.batch_size == 4  # 11 to train: at most 5
    assert "through_plane" not in content["augmentation"]


def test_large_ct_volumes_are_cut():
    content, fitted = planned(synapse())
    preprocessing, patch = content["preprocessing"], content["preprocessing"]["patch"]
    assert preprocessing["normalisation"] == "ct"
    assert preprocessing["spacing"] is None
    strides = content["model"]["overrides"]["strides"]
    assert strides == [[2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]  # as the recipe of nnFormer's protocol
    assert strides == [list(level) for level in strides_from_spacing(CT, patch)]
    assert all(
        side % math.prod(axis) == 0 for side, axis in zip(patch, zip(*strides, strict=True), strict=True)
    )
    assert content["training"]["foreground_fraction"] == pytest.approx(1 / 3, abs=1e-3)
    # nearly a cube in mm: no side longer than the others by more than two steps
    extents = [side * mm for side, mm in zip(patch, CT, strict=True)]
    assert max(extents) - min(extents) <= 2 * 16 * 3
    assert fitted.batch_size >= 2
    # and not smaller than it must be: one step more along the shortest side would be too much
    assert fitted.memory.total > 0.75 * 8 * GIB


def test_thick_slices_are_neither_resampled_nor_turned_out_of_their_plane():
    content, _ = planned(acdc())
    assert content["preprocessing"]["spacing"] == [1.56, 1.56, None]
    assert content["augmentation"]["through_plane"] == 2
    assert content["model"]["overrides"]["strides"][0] == [2, 2, 1]


def test_slices_of_very_different_distance_are_made_alike():
    spacings = [(1.0, 1.0, mm) for mm in (2.0, 6.0, 6.0, 7.0, 5.0)]
    grid = find_grid(
        task_of(fingerprint([facts(f"v{n}", (64, 64, 20), mm) for n, mm in enumerate(spacings)]))
    )
    assert grid.spacing == (1.0, 1.0, 6.0)
    assert grid.sizes[0] == (64, 64, 7)


def test_axes_of_several_orientations_are_compared_after_turning():
    """Sizes and spacings along right, front and head, whatever the order of the file's axes."""
    cases = [facts(f"v{n}", (40, 60, 20), (1.0, 2.0, 3.0)) for n in range(3)]
    cases += [facts(f"w{n}", (20, 40, 60), (3.0, 1.0, 2.0), orientation="SLA") for n in range(3)]
    grid = find_grid(task_of(fingerprint(cases)))
    assert grid.orientation == "RAS"
    assert set(grid.sizes) == {(40, 60, 20)}
    assert (grid.spacing, grid.file_spacing) == (None, (1.0, 2.0, 3.0))
    unknown = [*cases, facts("x", (40, 60, 20), orientation=None)]
    assert find_grid(task_of(fingerprint(unknown))).orientation == "file"  # what is unknown cannot be turned
    alike = find_grid(task_of(fingerprint(cases[3:])))
    assert (alike.orientation, alike.file_spacing) == ("file", (3.0, 1.0, 2.0))


@pytest.mark.parametrize(("outside", "crop"), [(0, "nonzero"), (3, "none")])
def test_a_border_of_zeros_is_cut_away_if_it_holds_no_label(outside, crop):
    cases = [facts(f"v{n}", (40, 40, 40), inner=(30, 30, 30)) for n in range(4)]
    cases.append(facts("test", (40, 40, 40), inner=(30, 30, 30), labelled_outside=outside))
    grid = find_grid(task_of(fingerprint(cases)))
    assert grid.crop == crop
    assert grid.sizes[0] == ((30,) * 3 if crop == "nonzero" else (40,) * 3)


def test_only_training_cases_count():
    cases = [facts(f"v{n}", (32, 32, 32), (1.0, 1.0, 1.0)) for n in range(4)] + [
        facts("z", (90, 90, 90), (3.0,) * 3)
    ]
    grid = find_grid(task_of(fingerprint(cases)))
    assert (grid.spacing, set(grid.sizes)) == (None, {(32, 32, 32)})


@pytest.mark.parametrize(
    ("modality", "lowest", "expected"),
    [
        (("CT",), 0, "ct"),
        ((" ct ",), 0, "ct"),
        (("MRI",), -1000, "percentile"),  # what is said wins over what it looks like
        (None, -1010, "ct"),
        (None, -3024, "ct"),
        (None, -5000, "percentile"),
        (None, -500, "percentile"),
    ],
)
def test_normalisation(modality, lowest, expected):
    cases = [facts(f"v{n}", (32, 32, 32)) for n in range(4)]
    content, _ = planned(fingerprint(cases, modality=modality, lowest=lowest))
    assert content["preprocessing"]["normalisation"] == expected
    two = [facts(f"v{n}", (32, 32, 32), channels=2) for n in range(4)]
    content, _ = planned(fingerprint(two, modality=modality and modality * 2, lowest=lowest))
    assert content["preprocessing"]["normalisation"] == "percentile"  # "ct" is of one channel


def test_less_memory_gives_less_and_always_fits():
    patches = []
    for memory in (0.7, 4, 80):
        content, fitted = planned(synapse(), memory * GIB)
        twice = content["model"]["overrides"].get("gradient_checkpointing", False)
        patches.append((math.prod(content["preprocessing"]["patch"]), fitted.batch_size, twice))
    voxels = [patch for patch, _, _ in patches]
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[1] < voxels[-1] <= MOST
    assert patches[0][2]
    assert not patches[-1][2]
    assert patches[0][1] == 2


def test_memory_too_small_for_anything_says_the_least_that_would_do():
    task = task_of(synapse(), 2**28)
    with pytest.raises(
        UsageError, match="--gpu-memory allows 256 MiB; even urwkv3d_tiny on 2 patches"
    ) as caught:
        fit_patch(task, find_grid(task))
    least = int(re.search(r"about (\d+) MiB", str(caught.value))[1])
    task = task_of(synapse(), least * 2**20)
    fitted = fit_patch(task, find_grid(task))
    assert fitted.batch_size == 2
    task = task_of(synapse(), (least - 8) * 2**20)
    with pytest.raises(UsageError):
        fit_patch(task, find_grid(task))


def test_a_larger_variant_takes_a_smaller_patch():
    tiny, base = (planned(synapse(), 8 * GIB, variant=name)[1] for name in ("tiny", "base"))
    assert base.candidate.name == "urwkv3d_base"
    assert math.prod(base.candidate.sides) < math.prod(tiny.candidate.sides)
    assert estimate_memory(base.candidate, 2).total <= 8 * GIB


SIDES = st.tuples(*[st.integers(1, 300)] * 3)
SPACING = st.tuples(*[st.floats(0.2, 12)] * 3)


@settings(max_examples=60)
@given(SIDES, SPACING)
def test_patches_shrink_to_an_end(sides, spacing):
    patch = make_patch(sides, spacing)
    assert all(new >= old for new, old in zip(patch.sides, sides, strict=True))
    seen = [patch, *smaller_patches(patch, spacing)]
    assert len(seen) < 1000
    for before, after in pairwise(seen):
        assert after.voxels < before.voxels
    for one in (seen[0], seen[-1]):
        assert one.strides == strides_from_spacing(spacing, one.sides)
        assert all(side % multiple == 0 for side, multiple in zip(one.sides, one.multiple, strict=True))
    floors = [2 * multiple for multiple in patch.multiple]
    assert all(
        side >= min(floor, own) for side, floor, own in zip(seen[-1].sides, floors, patch.sides, strict=True)
    )


def test_first_patches():
    assert first_patch(find_grid(task_of(hippocampus()))).sides == (48, 56, 40)
    large = find_grid(task_of(fingerprint([facts(f"v{n}", (600, 600, 600)) for n in range(4)])))
    assert first_patch(large).sides == (128, 128, 128)
    odd = [facts(f"v{n}", (70, 70, 70)) for n in range(4)] + [
        facts("v5", (300, 300, 300)),
        facts("v6", (9, 9, 9)),
    ]
    assert first_patch(find_grid(task_of(fingerprint(odd)))).sides == (
        80,
        80,
        80,
    )  # the median, not the largest
