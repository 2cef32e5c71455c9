"""Labels row by row equal those of the whole volume's resampled probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from rwkvseg.inference.label_rows import write_labels

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)


def slabs_of(logits, cuts):
    """Slabs (rows, K, ...) in one buffer that the next slab overwrites."""
    ends = sorted({cut for cut in cuts if cut < logits.shape[1]} | {logits.shape[1]})
    buffer = torch.full_like(logits.transpose(0, 1), torch.nan)
    for start, end in zip([0, *ends], ends, strict=False):
        buffer.fill_(torch.nan)
        buffer[: end - start] = logits[:, start:end].transpose(0, 1)
        yield buffer[: end - start]


def labelled(logits, shape, cuts=(), nearest=()):
    labels = np.full(shape, 255, np.uint8)
    write_labels(slabs_of(logits, cuts), logits.shape[1], labels, nearest=nearest)
    return labels


@settings(max_examples=40, derandomize=True)
@given(SHAPES, SHAPES, st.sets(st.integers(1, 11)), st.sets(st.integers(0, 2)), st.integers(0, 99))
@example((9, 5, 4), (9, 5, 4), {3, 6}, set(), 0)
@example((9, 5, 4), (9, 10, 4), {1, 2, 6}, set(), 0)
@example((4, 5, 6), (11, 5, 6), {2}, {0}, 0)
def test_rows_equal_the_whole(shape, own, cuts, nearest, seed):
    logits = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    probabilities = logits.softmax(0)
    for axis in nearest:
        index = [(2 * x + 1) * shape[axis] // (2 * own[axis]) for x in range(own[axis])]
        probabilities = probabilities.index_select(axis + 1, torch.tensor(index))
    linear = interpolate(probabilities[None].double(), size=own, mode="trilinear", align_corners=False)[0]
    found = labelled(logits, own, cuts, nearest)
    np.testing.assert_array_equal(found, labelled(logits, own, (), nearest))  # slabs change no bit
    best, chosen = linear.max(0).values, linear.gather(0, torch.from_numpy(found)[None].long())[0]
    torch.testing.assert_close(chosen, best, atol=1e-6, rtol=0)  # a tie may go either way


def test_labels_may_be_a_turned_view():
    logits = torch.randn(3, 5, 6, 7)
    whole = np.full((9, 10, 8), 77, np.uint8)
    view = whole[1:-1, ::-1, 2:].transpose(1, 2, 0)  # (10, 6, 7)
    write_labels(slabs_of(logits, {2}), 5, view)
    np.testing.assert_array_equal(view, labelled(logits, (10, 6, 7)))
    assert (whole == 77).sum() == whole.size - 10 * 6 * 7


@pytest.mark.parametrize("shift", [-80.0, 80.0])
def test_where_nothing_is_resampled_saturated_logits_still_differ(shift):
    """Softmax in float32 would call 80 and 60 both 1."""
    logits = torch.tensor([0.0, 60.0, 61.0]).view(3, 1, 1, 1) * (1 if shift > 0 else -1) + shift
    assert labelled(logits, (1, 1, 1)).item() == (2 if shift > 0 else 0)
