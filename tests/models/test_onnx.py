"""Networks as ONNX files: standard operators, any number of images of any size, the logits of torch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from study_cases import images, without_repeats
from test_contract import build
from torch import Tensor
from torch.export import Dim

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.ops.wkv import export

ANY_SIZE = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
EXPORTED = (2, 3, 64, 80)
# the stage with a mixer has H W / 256 tokens, in one chunk of 8 or several
OTHERS = [(1, 3, 37, 53), (3, 3, 160, 96), (1, 3, 16, 40), (2, 3, 1, 1), (1, 3, 224, 224)]


@pytest.mark.slow  # torch reasons about every symbolic size
def test_a_file_for_all_sizes_gives_the_logits_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as many levels of chunks as it really has, the operator has in a file of tests/ops
    monkeypatch.setattr(export, "LEVELS", 1)
    # one block of every kind, those of stage 1 with batch norm, of stage 4 with layer norm and a mixer
    model = without_repeats(build("rwkv_unet_tiny", depths=(1, 1, 1, 2)), stages=(0, 3)).eval()
    path = tmp_path / "tiny.onnx"
    write_onnx(model, (images(*EXPORTED),), ANY_SIZE, path)
    check_onnx(path)
    in_onnxruntime = open_onnx(path)
    for shape in (EXPORTED, *OTHERS):
        found, expected = _logits(in_onnxruntime, shape), _logits(model, shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * min(1.0, float(expected.std())))


def _logits(model: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model(images(*shape))
