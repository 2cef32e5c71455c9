"""What the plan says of memory is what is held, and limits are kept by smaller batches or a refusal."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from volume_cases import case_of, make_predictor, oblique_affine

from rwkvseg.data.files import CaseFiles
from rwkvseg.data.reading import read_case, read_geometry
from rwkvseg.errors import DataError
from rwkvseg.inference import volume_memory
from rwkvseg.inference.sliding_window import slab_logits
from rwkvseg.inference.volume_memory import PROGRAM, fit_memory, memory_needed
from rwkvseg.inference.volume_plan import VolumeOptions, plan_volume


def plan_of(shape, *, spacing=(1.0, 1.0, 1.0), wanted=None, options=None):
    """Plan of an empty volume for a network of five classes and patches of 16."""
    case = case_of(np.zeros(shape, np.float32), oblique_affine(spacing=spacing))
    network = make_predictor(torch.nn.Identity(), patch=(16, 16, 16), spacing=wanted)
    return plan_volume(
        case,
        network.description.preprocessing,
        options or VolumeOptions(),
        num_classes=5,
        device=torch.device("cpu"),
    )


def test_the_geometry_of_a_file_needs_no_memory(tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((40, 30, 20), np.int16), oblique_affine()), path)
    files = CaseFiles("a", (path, path))
    geometry, case = read_geometry(files), read_case(files)
    assert geometry.image.strides == (0, 0, 0, 0)
    assert (geometry.image.shape, geometry.image.dtype) == (case.image.shape, np.dtype(np.int16))
    assert geometry.spacing == case.spacing
    np.testing.assert_array_equal(geometry.affine, case.affine)
    assert read_geometry(CaseFiles("b", (tmp_path / "a.nii.gz",))).image.shape == (1, 40, 30, 20)


def test_sums_of_a_slab_are_what_the_plan_counts():
    plan = plan_of((48, 30, 20))
    windows, held = plan.windows, []
    infer = lambda x: x.expand(-1, plan.num_classes, -1, -1, -1)  # noqa: E731
    for slab in slab_logits(torch.zeros(1, *windows.shape), infer, windows):
        held.append(slab.untyped_storage().nbytes())
    assert max(held) == 4 * plan.num_classes * windows.slab_voxels
    assert plan.slab_bytes >= max(held) + 4 * windows.slab_voxels  # the weights' sum, too


def test_memory_grows_with_what_is_held():
    few, many = plan_of((64, 64, 64)), plan_of((64, 64, 128))
    needed, more = memory_needed(few, 1000), memory_needed(many, 1000)
    assert all(more[step] > needed[step] > PROGRAM for step in needed)
    # slabs lie across the longer axis, so their sums do not grow
    assert more["windows"] - needed["windows"] == 64**3 * (4 + 4 + 1)
    finer = plan_of((64, 64, 64), spacing=(2.0, 2.0, 2.0), wanted=(1.0, 1.0, 1.0))
    assert finer.grid.network_shape == (128, 128, 128)
    assert memory_needed(finer, 1000)["windows"] >= needed["windows"] + 7 * 4 * 64**3


def test_batches_shrink_before_a_volume_is_refused():
    plan = plan_of((64, 64, 64), options=VolumeOptions(batch_size=8))
    one = memory_needed(replace(plan, batch_size=1), 2**26)
    three = max(memory_needed(replace(plan, batch_size=3), 2**26).values())
    limited = replace(plan, options=VolumeOptions(batch_size=8, max_memory=three))
    assert fit_memory(limited, 2**26).batch_size == 2
    assert fit_memory(replace(plan, options=VolumeOptions(max_memory=2**40)), 2**26).batch_size == 8
    short = replace(plan, options=VolumeOptions(max_memory=max(one.values()) - 1))
    with pytest.raises(DataError, match=r"64 x 64 x 64 voxels.*reading .* windows .*--max-memory allows"):
        fit_memory(short, 2**26)


def test_without_a_limit_the_machine_is_the_limit(monkeypatch):
    monkeypatch.setattr(volume_memory, "available_memory", lambda: PROGRAM)
    with pytest.raises(DataError, match=r"this machine has 768 MiB\. Check its spacing"):
        fit_memory(plan_of((20, 20, 20)), 1000)
